"""Agreement of `bench` with a plain loop, its overhead on a run, and its imports.

Processes take turns: one is `bench`'s worker, with an I/O binding as it uses it; the other a loop
around `run_with_iobinding` that uses nothing of resdeploy. Both do the same numbers of runs of the
same network, and the figure is the ratio of their medians over the pairs, with Student's interval.
LoadGen's single stream is the third: the median of its own log, over that of `bench`'s runs, which
copy in and out as it does. The overhead is what a run takes beyond the clock: the loop's whole
time, less the sum of its times.

    python benchmarks/bench/agreement.py MODEL.onnx --json benchmarks/bench/agreement.json
"""

import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

from resdeploy.bench.process import bench
from resdeploy.cli.progress import show_steps
from resdeploy.machine.environment import read_environment
from resdeploy.schema.benchmarks import BenchResult, BenchSpec, LoadgenSpec
from resdeploy.schema.codec import to_json
from resdeploy.schema.sessions import SessionSpec
from resdeploy.statistics.paired import mean_ratio

LOOP = """
import json, sys, time
import numpy as np, onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(entry,) = session.get_inputs()
shape = [1 if isinstance(size, str) else size for size in entry.shape]
value = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
binding = session.io_binding()
binding.bind_ortvalue_input(entry.name, onnxruntime.OrtValue.ortvalue_from_numpy(value, "cpu", 0))
for output in session.get_outputs():
    binding.bind_output(output.name, "cpu", 0)
times = []
for _ in range(int(sys.argv[2])):
    start = time.perf_counter_ns()
    session.run_with_iobinding(binding)
    times.append(time.perf_counter_ns() - start)
print(json.dumps(times[len(times) // 5:]))
"""

OVERHEAD = """
import dataclasses, json, sys, time
from pathlib import Path
from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.bench.measure import collector_off, set_up

stand = set_up(Path(sys.argv[1]), BenchSpec(session=SessionSpec(num_threads=1)))
stand.settle(stand.once)
extra = []
with collector_off():
    for _ in range(200):
        start = time.perf_counter_ns()
        inside = stand.time(stand.once)
        extra.append(time.perf_counter_ns() - start - inside)
print(json.dumps(sorted(extra)[100]))
"""

LOADGEN_S = 5.0

IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def python(*arguments: str) -> str:
    run = subprocess.run([sys.executable, *arguments], capture_output=True, check=True, text=True)
    return run.stdout


def loadgen_median(result: BenchResult) -> float:
    """Return the median latency in nanoseconds by LoadGen's own clock."""
    found = re.search(
        r"^50\.00 percentile latency \(ns\)\s*:\s*(\d+)", result.loadgen.summary, re.M
    )
    return float(found[1])


def ratio_of(pairs: list[tuple[float, float]]) -> dict:
    """Return the mean ratio of the pairs and its interval."""
    return to_json(mean_ratio([math.log(ours / theirs) for ours, theirs in pairs]))


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--pairs", default=20, show_default=True, help="Processes of each kind.")
@click.option("--runs", default=300, show_default=True, help="Timed runs of each process.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(model: Path, pairs: int, runs: int, json_path: Path | None) -> None:
    """Time MODEL by `bench` and by a plain loop, in turn."""
    environment = read_environment()
    spec = BenchSpec(session=SessionSpec(num_threads=1), num_runs=1, num_bound_runs=runs)
    driven = BenchSpec(session=spec.session, loadgen=LoadgenSpec(min_duration_s=LOADGEN_S))
    medians: list[tuple[float, float]] = []
    loadgens: list[tuple[float, float]] = []
    imports: list[tuple[float, float]] = []
    with show_steps("agreement") as update:
        for number in range(pairs):

            def ours() -> float:
                return float(np.median(bench(model, spec, prove_placement=False).bound_ns))

            def theirs() -> float:
                return float(np.median(json.loads(python("-c", LOOP, str(model), str(runs)))))

            first = number % 2 == 0
            pair = (ours(), theirs()) if first else (theirs(), ours())[::-1]
            medians.append(pair)
            plain = BenchSpec(session=spec.session, num_runs=runs)
            loadgens.append(
                (
                    loadgen_median(bench(model, driven, prove_placement=False)),
                    bench(model, plain, prove_placement=False).summary.p50_ns,
                )
            )
            imports.append(
                (
                    float(python("-c", IMPORT.format("resdeploy.bench.worker"))),
                    float(python("-c", IMPORT.format("onnxruntime"))),
                )
            )
            update(number + 1, pairs, "")
    overhead_ns = statistics.median(
        int(python("-c", OVERHEAD, str(model))) for _ in range(min(pairs, 5))
    )
    figures = {
        "question": "median of bench's bound runs / of a plain loop; of LoadGen's log / of bench's "
        "runs; import of the worker / of onnxruntime; what a run takes beyond its clock",
        "latency": ratio_of(medians),
        "loadgen": ratio_of(loadgens),
        "import": ratio_of(imports),
        "overhead_per_run_us": overhead_ns / 1e3,
        "model": model.name,
        "num_pairs": pairs,
        "medians_ns": medians,
        "loadgen_medians_ns": loadgens,
        "imports_s": imports,
        "spec": to_json(spec),
        "environment": to_json(environment),
    }
    for name in ("latency", "loadgen", "import"):
        one = figures[name]
        click.echo(f"{name:10} ratio {one['ratio']:.4f} [{one['low']:.4f}, {one['high']:.4f}]")
    click.echo(f"overhead   {overhead_ns / 1e3:.1f} us a run, off the clock")
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
