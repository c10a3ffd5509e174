"""`resdeploy.bench`: the time of a model in fresh processes, by itself or in turn with another."""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, get_args, overload

from resdeploy.api.arguments import (
    InputShape,
    OnProgress,
    PathLike,
    Providers,
    one_of,
    optional_path,
    path_of,
    sessions_of,
    silent,
)
from resdeploy.api.sources import refuse_checkpoint
from resdeploy.errors import ResdeployError
from resdeploy.schema.benchmarks import (
    BenchComparison,
    BenchReport,
    BenchSide,
    BenchSpec,
    LoadgenSpec,
    RunnerSpec,
    Scenario,
)
from resdeploy.schema.files import SourceSpec, inputs_of
from resdeploy.schema.sessions import SessionSpec

if TYPE_CHECKING:
    from resdeploy.bundle.folder import BundleFolder

__all__ = ["bench"]

_PROFILE_RUNS = 50


class _Timing(TypedDict, total=False):
    provider: Providers | None
    batch_size: int | Sequence[int]
    input_shape: InputShape | None
    num_runs: int
    num_warmup: int | None
    scenario: Scenario
    qps: float | None
    seed: int
    loadgen: LoadgenSpec | None
    profile: bool
    on_progress: OnProgress


@overload
def bench(model: PathLike, **timing: Unpack[_Timing]) -> BenchReport: ...
@overload
def bench(
    model: PathLike,
    *,
    against: PathLike | None = None,
    against_source: SourceSpec | None = None,
    against_provider: str | SessionSpec | None = None,
    num_blocks: int = 8,
    max_slowdown: float | None = None,
    **timing: Unpack[_Timing],
) -> BenchReport | BenchComparison: ...
def bench(
    model: PathLike,
    *,
    provider: Providers | None = None,
    batch_size: int | Sequence[int] = 1,
    input_shape: InputShape | None = None,
    num_runs: int = 200,
    num_warmup: int | None = None,
    scenario: Scenario = "single-stream",
    qps: float | None = None,
    seed: int = 0,
    loadgen: LoadgenSpec | None = None,
    profile: bool = False,
    against: PathLike | None = None,
    against_source: SourceSpec | None = None,
    against_provider: str | SessionSpec | None = None,
    num_blocks: int = 8,
    max_slowdown: float | None = None,
    on_progress: OnProgress = silent,
) -> BenchReport | BenchComparison:
    """Time a model on this machine, in fresh processes that have nothing loaded but the runtime.

    Args:
        model: an ONNX file; or a bundle, every byte of which is checked first.
        provider: where to run: names, or `SessionSpec`s, each timed; None for cpu, and of a bundle
            for the settings that `tune` found for this machine.
        batch_size: samples of one run; of several, each is timed with each of `provider`.
        input_shape: of one sample, where the model leaves sizes open; of a bundle, by default
            that of its golden inputs.
        num_runs: number of timed runs.
        num_warmup: runs of warm-up; None until the times have settled.
        scenario: one run after the other; all at once; or at random times.
        qps: mean runs per second, of the scenario "server".
        seed: of those random times.
        loadgen: let MLCommons LoadGen drive the runs.
        profile: time each layer too, beside the CPU's peak rates.
        against: time `model` in turn with this one, a file or a bundle; by another runner where one
            is named before a colon, as in "torch:resnet50.pth"; or hold it against a saved result,
            a `.json`, which is weaker evidence.
        against_source: of torch, the architecture of the checkpoint, or the factory of a module.
        against_provider: the other's session; of the same model without `against`.
        num_blocks: pairs of fresh processes of a comparison.
        max_slowdown: the fraction by which `model` may be slower than the other.
        on_progress: called with the runs or blocks done, their total or None, and a remark.

    Returns:
        A `BenchReport`, whose `.p50_ms` is the median latency in milliseconds and whose `.results`
        keep every latency; or a `BenchComparison` with the ratio of the times, its interval,
        `.passed`, and of bundles the verdict on their answers: who is faster, and still right.

    Raises:
        ResdeployError: arguments contradict each other, or the model cannot be timed.
        ProviderError: a provider did not start; another one is never timed instead.

    Example:
        >>> resdeploy.bench("resnet50.onnx").p50_ms
        21.4
        >>> resdeploy.bench("new.onnx", against="old.onnx").p50.verdict
        'faster'
    """
    path = path_of(model, "model")
    refuse_checkpoint(path)
    runner, other = _runner_of(against, against_source)
    one_of(scenario, "scenario", get_args(Scenario))
    sessions = sessions_of("cpu" if provider is None else provider)
    sizes = (batch_size,) if isinstance(batch_size, int) else tuple(batch_size)
    spec = BenchSpec(
        session=sessions[0],
        num_runs=num_runs,
        scenario=scenario,
        qps=qps,
        seed=seed,
        loadgen=loadgen,
        num_profile_runs=_PROFILE_RUNS if profile else 0,
        inputs=inputs_of(input_shape),
    )
    if num_warmup is not None:
        spec = dataclasses.replace(spec, num_warmup=num_warmup, max_warmup=num_warmup)
    specs = [
        dataclasses.replace(spec, batch_size=size, session=session)
        for size, session in itertools.product(sizes, sessions)
    ]
    is_compared = against is not None or against_provider is not None
    _refuse_contradictions(specs, is_compared=is_compared, max_slowdown=max_slowdown)
    from resdeploy.bundle.archive import is_archive, opened_bundle

    with contextlib.ExitStack() as stack:

        def opened_model(given: Path) -> "tuple[Path, BundleFolder | None]":
            if not given.is_dir() and not is_archive(given):
                return given, None
            bundle = stack.enter_context(opened_bundle(given))
            return bundle.model, bundle

        path, opened = opened_model(path)
        if opened is not None:
            sizes_asked = spec.inputs or opened.golden_sizes
            specs = [dataclasses.replace(one, inputs=sizes_asked) for one in specs]
        if not is_compared:
            return _sweep(_ways(path, specs, opened if provider is None else None), on_progress)
        if runner is None and other is not None and other.suffix == ".json":
            if against_provider is not None:
                raise ResdeployError(
                    "Options of the other are not for a saved result, which has its own."
                )
            from resdeploy.bench.saved import compare_with_saved, load_result

            baseline = load_result(other)
            candidate = _sweep([(path, specs[0])], on_progress).results[0]
            compared = compare_with_saved(candidate, baseline, max_slowdown=max_slowdown)
            return _with_verdicts(compared, opened, None)
        from resdeploy.bench.in_turn import bench_in_turn

        session = specs[0].session
        if against_provider is not None:
            (session,) = sessions_of(against_provider, "against_provider")
        baseline_spec = dataclasses.replace(specs[0], session=session)
        baseline_bundle = None
        if runner is not None:
            baseline_spec = _by_runner(baseline_spec, runner, specs[0].session)
        elif other is None:
            other, baseline_bundle = path, opened
        else:
            other, baseline_bundle = opened_model(other)
        compared = bench_in_turn(
            (path, specs[0]),
            (other, baseline_spec),
            num_blocks=num_blocks,
            max_slowdown=max_slowdown,
            on_block=lambda done: on_progress(done, num_blocks, "blocks"),
        )
        return _with_verdicts(compared, opened, baseline_bundle)


def _with_verdicts(
    compared: BenchComparison, candidate: "BundleFolder | None", baseline: "BundleFolder | None"
) -> BenchComparison:
    """Return the comparison with the word for each model that came in a bundle."""
    return dataclasses.replace(
        compared,
        candidate=_with_verdict(compared.candidate, candidate),
        baseline=_with_verdict(compared.baseline, baseline),
    )


def _with_verdict(side: BenchSide, bundle: "BundleFolder | None") -> BenchSide:
    if bundle is None:
        return side
    from resdeploy.bundle.check import judge_with_proof

    report = judge_with_proof(bundle, bundle.model, [side.spec.session])
    return dataclasses.replace(side, verdict=report.verdict)


def _runner_of(
    against: PathLike | None, source: SourceSpec | None
) -> tuple[RunnerSpec | None, Path | None]:
    """Return the runner and the file of `against`; no runner for a session of resdeploy."""
    name, colon, rest = ("", "", "") if against is None else str(against).partition(":")
    if not colon or Path(str(against)).exists():
        if source is not None:
            raise ResdeployError(
                "An architecture, or a module, was given for a model that needs none.",
                where=f"against {against}",
                fix="name the runner before the checkpoint, as in torch:CHECKPOINT",
            )
        return None, optional_path(against, "against")
    from resdeploy.bench.runners import find_runner

    if find_runner(name).form is None and source is not None:
        raise ResdeployError(
            f"The runner {name} takes ONNX files, not an architecture.", where=f"against {against}"
        )
    source = source or SourceSpec()
    if not rest and source.factory is None:
        raise ResdeployError(
            f"The runner {name} needs a file.",
            where=f"against {against}",
            fix=f"name it after the colon: {name}:FILE",
        )
    return RunnerSpec(name=name, source=source), Path(rest) if rest else None


def _by_runner(spec: BenchSpec, runner: RunnerSpec, ours: SessionSpec) -> BenchSpec:
    """Return the spec of another runner, which has no option of a session but its threads."""
    session = spec.session
    if dataclasses.replace(session, num_threads=ours.num_threads) != ours:
        raise ResdeployError(
            f"The runner {runner.name} has no option of a session but its threads.",
            where=f"against {runner.name}",
        )
    from resdeploy.session.providers import find_provider

    device = find_provider(session.provider).memory
    session = SessionSpec(provider=device, num_threads=session.num_threads)
    return dataclasses.replace(spec, session=session, runner=runner)


def _refuse_contradictions(
    specs: Sequence[BenchSpec], *, is_compared: bool, max_slowdown: float | None
) -> None:
    if max_slowdown is not None and not is_compared:
        raise ResdeployError("A largest slowdown needs another model, or other options.")
    if is_compared and len(specs) > 1:
        raise ResdeployError("Two are compared with one batch size and one session each.")
    if is_compared and (specs[0].num_profile_runs or specs[0].loadgen is not None):
        raise ResdeployError("A profile, and LoadGen, are for one model.")


def _ways(
    model: Path, specs: Sequence[BenchSpec], bundle: "BundleFolder | None"
) -> list[tuple[Path, BenchSpec]]:
    """Return the models and specs to time; of a bundle, those that `tune` found."""
    if bundle is None:
        return [(model, spec) for spec in specs]
    from resdeploy.bundle.tuned_settings import fastest_way

    found = [(spec, *fastest_way(bundle, batch_size=spec.batch_size)) for spec in specs]
    return [(path, dataclasses.replace(spec, session=session)) for spec, path, session in found]


def _sweep(ways: Sequence[tuple[Path, BenchSpec]], on_progress: OnProgress) -> BenchReport:
    from resdeploy.bench import process

    results = []
    for number, (model, spec) in enumerate(ways):
        is_plain = spec.scenario == "single-stream" and spec.loadgen is None
        bound = spec.num_runs if is_plain else 0

        def on_run(done: int, remark: str = f"{number + 1} of {len(ways)}") -> None:
            on_progress(done, None, remark)

        spec = dataclasses.replace(spec, num_bound_runs=bound)
        results.append(process.bench(model, spec, on_run=on_run))
    return BenchReport(results=tuple(results))
