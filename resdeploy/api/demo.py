"""The whole chain on embedded data, as a user would run it stage by stage."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from resdeploy.api.arguments import OnStage, silent
from resdeploy.api.bundle import pack_bundle
from resdeploy.bench.process import bench
from resdeploy.bundle.check import check_bundle
from resdeploy.errors import ProviderError
from resdeploy.export.export import export_onnx
from resdeploy.export.golden import golden_for
from resdeploy.export.reference import reference_graph
from resdeploy.export.source import load_source
from resdeploy.files import atomic_directory
from resdeploy.recipe import load_recipe
from resdeploy.schema.benchmarks import BenchResult, BenchSpec
from resdeploy.schema.bundles import DemoReport, DemoStage
from resdeploy.schema.codec import dump_json
from resdeploy.schema.exports import ExportReport, ExportSpec
from resdeploy.schema.recipes import DataSpec, EpochMetrics, SourceSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.verdicts import ProviderVerdict, VerifyReport
from resdeploy.session.session import open_session
from resdeploy.training.checkpoint import CHECKPOINT_NAME
from resdeploy.training.loop import train
from resdeploy.verify.outputs import open_sessions
from resdeploy.verify.verdict import judge_model

__all__ = ["run_demo"]

RECIPE = "digits-resnet8"
REPORT_NAME = "report.json"
_PROVIDERS = ("cpu", "cuda")


def run_demo(out: Path, *, force: bool = False, on_stage: OnStage = silent) -> DemoReport:
    """Train, fold, export, verify, bench and bundle a small ResNet on scikit-learn's digits.

    `out` is written whole or not at all; `force` replaces the folder of an earlier demo.

    Raises:
        ResdeployError: `out` exists or cannot be written.
    """
    stages: list[DemoStage] = []
    stage = partial(_stage, stages, on_stage)
    recipe = load_recipe(RECIPE)
    with atomic_directory(out, force=force, marker=REPORT_NAME) as folder:
        model = folder / "model.onnx"
        with stage("train") as say:

            def on_epoch(metrics: EpochMetrics) -> None:
                on_stage(
                    f"train, epoch {metrics.epoch} of {recipe.train.epochs}, "
                    f"test accuracy {metrics.test_accuracy:.2%}"
                )

            trained = train(recipe, folder / "run", on_epoch=on_epoch)
            say(f"{trained.last.test_accuracy:.2%} of {trained.num_test} held-out digits right")
        with stage("fold and export") as say:
            source = load_source(SourceSpec(path=str(folder / "run")))
            golden = golden_for(source, data=DataSpec(name=recipe.data.name))
            exported = export_onnx(source, ExportSpec(), model, golden=golden)
            say(_export_outcome(exported))
        sessions, unavailable = _available_sessions(model)
        with stage("verify") as say:
            reference = reference_graph(source, golden)
            verification = judge_model(model, reference, golden, open_sessions(model, sessions))
            say("\n".join(_verdict_outcome(v, verification) for v in verification.verdicts))
            for provider, why in unavailable.items():
                say(f"{provider}: not on this machine. {why}")
        with stage("bench") as say:
            specs = [BenchSpec(session=session, num_runs=500) for session in sessions]
            timed = tuple(bench(model, spec) for spec in specs)
            say("\n".join(map(_bench_outcome, timed)))
        with stage("bundle and check") as say:
            packed = folder / "bundle"
            pack_bundle(
                source,
                exported,
                model,
                packed,
                golden=golden,
                reference=reference,
                name=recipe.name,
            )
            checked = check_bundle(packed, sessions)
            say(f"{checked.num_files} files intact, {checked.verification.verdict}")
        # Paths of the final folder, which gets its name at the end.
        names = {"run": "run", "model": model.name, "bundle": packed.name, "report": REPORT_NAME}
        paths = {kind: str(out / name) for kind, name in names.items()}
        checkpoint = str(out / "run" / CHECKPOINT_NAME)
        report = DemoReport(
            train=replace(trained, run_directory=paths["run"], checkpoint=checkpoint),
            export=exported,
            verification=verification,
            bench=timed,
            check=checked,
            stages=tuple(stages),
            unavailable=unavailable,
            paths=paths,
        )
        (folder / REPORT_NAME).write_text(dump_json(report), encoding="utf-8")
    return report


@contextmanager
def _stage(
    stages: list[DemoStage], on_stage: OnStage, name: str
) -> Iterator[Callable[[str], None]]:
    """Time a stage and add it to `stages`; the function given takes its outcome."""
    on_stage(name)
    outcome: list[str] = []
    started = time.perf_counter()
    yield outcome.append
    duration_s = time.perf_counter() - started
    stages.append(DemoStage(stage=name, outcome="\n".join(outcome), duration_s=duration_s))


def _available_sessions(model: Path) -> tuple[list[SessionSpec], dict[str, str]]:
    """Return a session for each provider that starts here, and the reasons of the others."""
    sessions, unavailable = [], {}
    for provider in _PROVIDERS:
        spec = SessionSpec(provider=provider)
        try:
            open_session(model, spec)
        except ProviderError as error:
            unavailable[provider] = error.what
        else:
            sessions.append(spec)
    return sessions, unavailable


def _export_outcome(report: ExportReport) -> str:
    assert report.fold is not None
    folded, refused = report.fold.folded, report.fold.refused
    worst = max((site.max_ulp for site in folded), default=0.0)
    return (
        f"{len(folded)} BatchNorms folded (every weight within {worst:.2f} ulp), "
        f"{len(refused)} refused\n"
        f"one ONNX file, {report.num_nodes} nodes, {report.file.size_bytes / 1e3:.0f} kB"
    )


def _verdict_outcome(verdict: ProviderVerdict, report: VerifyReport) -> str:
    c, word = verdict.comparison, report.verdict if verdict.passed else "FAIL"
    return (
        f"{verdict.session.spec.provider}: {word}, the error is "
        f"{c.noise_ratio:.2f} x the noise of float32 (limit {c.noise_ratio_limit:g})\n"
        f"{c.top1_agreement:.2%} of the predictions as in float64"
    )


def _bench_outcome(result: BenchResult) -> str:
    summary = result.summary
    p50_ms, p99_ms = summary.p50_ns / 1e6, summary.p99_ns / 1e6
    return (
        f"{result.spec.session.provider}: p50 {p50_ms:.3f} ms, p99 {p99_ms:.3f} ms, "
        f"{summary.throughput_per_s:,.0f} images/s at batch {result.spec.batch_size}"
    )
