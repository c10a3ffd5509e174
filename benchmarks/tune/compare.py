"""Latency of the winner of `tune`, against the other ways to run the model on this machine.

    python -m benchmarks.tune.compare CHECKPOINT BUNDLE INT8 --json X.json

Competitors: what `resdeploy tune` finds, without a loss and with one; ONNX Runtime's defaults on
the float32 model, and on what `onnxruntime.quantization.quantize_static` makes of it by its own
defaults; PyTorch eager, channels last and compiled; OpenVINO itself, where --openvino names an
interpreter that has it. Each is a fresh process in each block, and all of a block are timed in
bursts that take turns.

`tune` searches in this interpreter, or in each of those that --runtime names, as an environment can
have one runtime only: the best of all is what a user would install.

Speed is what is compared: weights are random, with calibrated BatchNorms, and the calibration data
are noise, so no accuracy is claimed, and every drop is allowed. A cell that the JSON holds already
is not measured again.
"""

import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from resdeploy.bench.in_turn import Contender, time_those_that_run
from resdeploy.bundle.folder import BundleFolder, read_bundle
from resdeploy.cli.progress import show_steps
from resdeploy.files import atomic_write
from resdeploy.machine.environment import read_environment
from resdeploy.schema.benchmarks import BenchSpec, RunnerSpec
from resdeploy.schema.codec import load_json, to_json
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.tunings import TuneReport
from resdeploy.statistics.paired import mean_ratio, pooled_percentile

OURS = ("tune, lossless", "tune, int8")
NUM_IMAGES = 8
NUM_BURSTS = 4


def quantize_by_default(model: Path, out: Path, shape: Sequence[int]) -> Path:
    """Write what ONNX Runtime makes of a model by its own defaults: S8S8, per tensor, MinMax."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    rng = np.random.default_rng(1)
    left = [rng.standard_normal((1, *shape), dtype=np.float32) for _ in range(NUM_IMAGES)]

    class Noise(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return {"input": left.pop()} if left else None

    quantize_static(str(model), str(out), Noise())
    return out


def write_labelled(out: Path, shape: Sequence[int]) -> Path:
    """Write images that `tune --data` takes; what they show does not matter."""
    images = np.random.default_rng(2).integers(0, 256, (NUM_IMAGES, *shape), dtype=np.uint8)
    np.savez(out, x=images, y=np.arange(NUM_IMAGES))
    return out


def search(python: str, bundle: Path, batch: int, *options: str) -> tuple[TuneReport, float]:
    """Return the report of `resdeploy tune` in an interpreter, and its duration in seconds."""
    start = time.monotonic()
    done = subprocess.run(
        [python, "-m", "resdeploy", "tune", str(bundle), "--batch", str(batch), "--json", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(f"{python}: {done.stderr.strip()}")
    report = load_json(TuneReport, done.stdout, where=f"tune in {python}")
    return report, time.monotonic() - start


def found_by_tune(
    opened: BundleFolder,
    int8: Path,
    data: Path,
    batch: int,
    runtimes: Sequence[str],
    threads: str | None,
    update: Callable[[int, int, str], None],
) -> tuple[dict[str, Contender], list[dict[str, Any]]]:
    """Return the best session of each kind of search, and every search."""
    common = ["--runs", str(max(20, 60 // batch))]
    common += [] if threads is None else ["--threads", threads]
    budget = ("--variant", str(int8), "--max-drop", "100", "--data", f"npz:{data}")
    asked = {OURS[0]: (*common, "--lossless"), OURS[1]: (*common, *budget)}
    found: dict[str, Contender] = {}
    searches = []
    for name, options in asked.items():
        best_ns = math.inf
        for place, python in enumerate(runtimes):
            update(place, len(runtimes), f"batch {batch}: {name}")
            report, seconds = search(python, opened.path, batch, *options)
            winner = report.best
            model = int8 if winner.model == int8.name else opened.model
            searches.append(
                {
                    "search": name,
                    "runtime_version": report.settings.target.runtime_version,
                    "model": winner.model,
                    "session": to_json(winner.session),
                    "time_ns": winner.time_ns,
                    "num_candidates": len(report.trials),
                    "evidence": winner.evidence,
                    "seconds": round(seconds, 1),
                }
            )
            if winner.time_ns < best_ns:
                best_ns, runner = winner.time_ns, RunnerSpec(python=python)
                found[name] = model, BenchSpec(session=winner.session, runner=runner)
    return found, searches


def others(
    checkpoint: Path, model: Path, plain_int8: Path, openvino: str | None
) -> dict[str, Contender]:
    """Return the contenders without resdeploy."""

    def by(runner: str, path: Path, python: str | None = None) -> Contender:
        return path, BenchSpec(session=SessionSpec(), runner=RunnerSpec(name=runner, python=python))

    found = {
        "ORT float32": by("onnxruntime", model),
        "ORT quantize_static": by("onnxruntime", plain_int8),
        "torch eager": by("torch", checkpoint),
        "torch channels last": by("torch-channels-last", checkpoint),
        "torch.compile": by("torch-compile", checkpoint),
    }
    return found if openvino is None else {**found, "OpenVINO": by("openvino", model, openvino)}


def compared(
    contenders: dict[str, Contender],
    golden: Path,
    batch: int,
    *,
    blocks: int,
    runs: int,
    on_block: Callable[[int], None],
) -> dict[str, Any]:
    """Return the contenders, the median of each in every block, and the ratios."""
    num_runs = max(12, runs // batch)
    sides = [
        (
            model,
            dataclasses.replace(spec, batch_size=batch, num_runs=num_runs, max_warmup=2 * num_runs),
        )
        for model, spec in contenders.values()
    ]
    medians, timed = [], {}
    for number in range(blocks):
        on_block(number)
        found = time_those_that_run(
            sides, golden=golden, num_bursts=NUM_BURSTS, last_first=number % 2 == 1
        )
        timed = dict(zip(contenders, found, strict=True))
        if failed := [
            f"{name}: {one}" for name, one in timed.items() if isinstance(one, Exception)
        ]:
            raise click.ClickException("; ".join(failed))
        medians.append({name: pooled_percentile(one.bursts_ns, 50) for name, one in timed.items()})
    return {
        "competitors": [
            {
                "name": name,
                "runner": one.side.spec.runner.name,
                "model": one.side.model.path,
                "session": to_json(one.side.spec.session),
                "rel_l2": one.side.rel_l2,
                "version": one.side.session.runtime_version,
                "in_force": dict(one.side.options),
            }
            for name, one in timed.items()
        ],
        "medians_ns": medians,
        "ratios": {
            ours: {
                name: to_json(mean_ratio([math.log(m[ours] / m[name]) for m in medians]))
                for name in contenders
                if name != ours
            }
            for ours in OURS
        },
    }


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("int8", type=click.Path(path_type=Path))
@click.option("--batches", default="1,8", show_default=True)
@click.option("--blocks", default=6, show_default=True, type=click.IntRange(min=2))
@click.option("--runs", default=40, show_default=True, help="Of each process, at batch 1.")
@click.option("--threads", help="Handed to tune, where its own choice would take hours.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    default=[sys.executable],
    help="An interpreter for tune to search in; may be given several times.  [default: this one]",
)
@click.option("--openvino", help="An interpreter that has OpenVINO itself.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), required=True)
def main(
    checkpoint: Path,
    bundle: Path,
    int8: Path,
    batches: str,
    blocks: int,
    runs: int,
    threads: str | None,
    runtimes: tuple[str, ...],
    openvino: str | None,
    json_path: Path,
) -> None:
    """Compare, for each batch size."""
    opened = read_bundle(bundle)
    shape = opened.manifest.preprocess.input_shape
    cells = json.loads(json_path.read_text())["cells"] if json_path.is_file() else []
    done = [cell["batch"] for cell in cells]
    with tempfile.TemporaryDirectory() as folder, show_steps("compare") as update:
        plain_int8 = quantize_by_default(opened.model, Path(folder) / "default-int8.onnx", shape)
        data = write_labelled(Path(folder) / "noise.npz", shape)
        for batch in (size for size in map(int, batches.split(",")) if size not in done):
            ours, searches = found_by_tune(opened, int8, data, batch, runtimes, threads, update)
            figures = compared(
                ours | others(checkpoint, opened.model, plain_int8, openvino),
                bundle / "golden.npz",
                batch,
                blocks=blocks,
                runs=runs,
                on_block=lambda number, size=batch: update(number, blocks, f"batch {size}"),
            )
            cells.append({"batch": batch, "searches": searches, **figures})
            for name in figures["medians_ns"][0]:
                median = statistics.median(m[name] for m in figures["medians_ns"])
                click.echo(f"batch {batch}  {name:22} {median / 1e6:8.2f} ms")
            report = {
                "question": "time of a run over that of each other; less than 1 is faster",
                "model": bundle.name,
                "cells": cells,
                "environment": to_json(read_environment()),
            }
            with atomic_write(json_path, force=True) as temporary:
                temporary.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
