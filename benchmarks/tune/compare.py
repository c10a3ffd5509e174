"""How fast the winner of `tune` is, beside what else there is on this machine.

Competitors: ONNX Runtime's defaults on the float32 model; the winner of `tune --lossless`; the int8
model of `quantize`, as `tune` would run it; what `onnxruntime.quantization.quantize_static` makes
by its own defaults; PyTorch eager, channels last, and `torch.compile`. Every competitor is a fresh
process in each block, and all of a block are timed in bursts that take turns.

Speed is what is compared: weights are random, with calibrated BatchNorms, and the calibration data
are noise, so no accuracy is claimed. BUNDLE and INT8 come from the same checkpoint:

    resdeploy bundle resnet18.safetensors -o resnet18
    resdeploy quantize resnet18/model.onnx -o resnet18-int8.onnx --calibration noise.npz
    python benchmarks/tune/compare.py resnet18.safetensors resnet18 resnet18-int8.onnx --json X.json
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

from resdeploy.bundle import read_bundle
from resdeploy.cli.progress import show_steps
from resdeploy.paired import pooled_percentile, student_interval
from resdeploy.schema.codec import to_json
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.tunings import TuneSpec
from resdeploy.target.environment import read_environment
from resdeploy.target.tune import tune
from resdeploy.target.tune_space import Variant

WORKER = """
import json, sys, time
import numpy as np
job = json.loads(sys.stdin.readline())
shape = (job["batch"], 3, 224, 224)
x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
if job["kind"] == "torch":
    import torch
    from pathlib import Path
    from resdeploy.host.build import load_source
    from resdeploy.schema.recipes import SourceSpec
    torch.set_num_threads(job["threads"])
    module = load_source(SourceSpec(path=job["model"])).module.eval()
    value = torch.from_numpy(x)
    if job["way"] == "channels last":
        module = module.to(memory_format=torch.channels_last)
        value = value.to(memory_format=torch.channels_last)
    if job["way"] == "compile":
        module = torch.compile(module)
    def run():
        with torch.inference_mode():
            return module(value)
else:
    from pathlib import Path
    from resdeploy.schema.codec import from_json
    from resdeploy.schema.sessions import SessionSpec
    from resdeploy.target.session import open_session
    session = open_session(Path(job["model"]), from_json(SessionSpec, job["session"], where="job"))
    name = session.ort.get_inputs()[0].name
    def run():
        return session.ort.run(None, {name: x})
for _ in range(job["warmup"]):
    run()
print("ready", flush=True)
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    print(json.dumps(times), flush=True)
"""


def quantize_by_default(model: Path, out: Path) -> Path:
    """Write what ONNX Runtime makes of a model by its own defaults: S8S8, per tensor, MinMax."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Noise(CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(1)
            self.left = [rng.standard_normal((1, 3, 224, 224), dtype=np.float32) for _ in range(8)]

        def get_next(self):
            return {"input": self.left.pop()} if self.left else None

    quantize_static(str(model), str(out), Noise())
    return out


def block(jobs: dict[str, dict], num_runs: int, num_bursts: int, number: int) -> dict[str, float]:
    """Return the median of each competitor, timed in turn in processes of its own."""
    order = list(jobs) if number % 2 == 0 else list(jobs)[::-1]
    times: dict[str, list[int]] = {name: [] for name in jobs}
    with ExitStack() as stack:
        processes = {}
        for name in order:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
            stack.callback(process.stdin.close)
            process.stdin.write(json.dumps(jobs[name]) + "\n")
            process.stdin.flush()
            if process.stdout.readline().strip() != "ready":
                raise click.ClickException(f"{name} did not start")
            processes[name] = process
        for burst in range(num_bursts):
            for name in order if burst % 2 == 0 else order[::-1]:
                processes[name].stdin.write(f"{num_runs // num_bursts}\n")
                processes[name].stdin.flush()
                times[name] += json.loads(processes[name].stdout.readline())
    return {name: statistics.median(values) for name, values in times.items()}


def interval(logs: list[float]) -> dict[str, float]:
    low, high = student_interval(logs)
    return {"ratio": math.exp(statistics.fmean(logs)), "low": math.exp(low), "high": math.exp(high)}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("int8", type=click.Path(path_type=Path))
@click.option("--batches", default="1,8", show_default=True)
@click.option("--blocks", default=5, show_default=True)
@click.option("--runs", default=40, show_default=True, help="Of each process, at batch 1.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(
    checkpoint: Path,
    bundle: Path,
    int8: Path,
    batches: str,
    blocks: int,
    runs: int,
    json_path: Path | None,
) -> None:
    """Compare, for each batch size."""
    environment = read_environment()
    threads = environment.num_cpus_allowed
    opened = read_bundle(bundle)
    cells = []
    with tempfile.TemporaryDirectory() as folder, show_steps("compare") as update:
        plain_int8 = quantize_by_default(opened.model, Path(folder) / "default-int8.onnx")
        for batch in map(int, batches.split(",")):
            num_runs = max(10, runs // batch)
            spec = TuneSpec(
                batch_sizes=(batch,),
                threads=(None, *sorted({1, threads})),
                num_runs=max(20, num_runs),
                max_blocks=4,
            )
            # The search of each model by itself; the int8 one is the base there, as its answers
            # are not the question here.
            lossless = tune(opened, spec, on_progress=update)
            sessions = {"lossless": lossless.best.session}
            sessions["int8"] = best_session(opened, int8, spec, update)

            def ort(model: Path, session: SessionSpec, size: int = batch) -> dict:
                return {
                    "kind": "ort",
                    "model": str(model),
                    "session": to_json(session),
                    "batch": size,
                    "warmup": 5,
                }

            def torch(way: str, size: int = batch) -> dict:
                return {
                    "kind": "torch",
                    "way": way,
                    "model": str(checkpoint),
                    "threads": threads,
                    "batch": size,
                    "warmup": 5,
                }

            jobs = {
                "ORT float32": ort(opened.model, SessionSpec()),
                "tune, lossless": ort(opened.model, sessions["lossless"]),
                "tune, int8": ort(int8, sessions["int8"]),
                "ORT quantize_static": ort(plain_int8, SessionSpec()),
                "torch eager": torch("eager"),
                "torch channels last": torch("channels last"),
                "torch.compile": torch("compile"),
            }
            medians = []
            for number in range(blocks):
                update(number, blocks, f"batch {batch}")
                medians.append(block(jobs, num_runs, 4, number))
            cells.append(
                {
                    "batch": batch,
                    "sessions": to_json(sessions),
                    "medians_ns": medians,
                    "ratios": {
                        ours: {
                            theirs: interval([math.log(m[ours] / m[theirs]) for m in medians])
                            for theirs in jobs
                            if theirs != ours
                        }
                        for ours in ("tune, lossless", "tune, int8")
                    },
                }
            )
            for name in jobs:
                median = statistics.median(m[name] for m in medians)
                click.echo(f"batch {batch}  {name:22} {median / 1e6:8.2f} ms")
            if json_path is not None:
                figures = {
                    "question": "time of a run over that of each other; less than 1 is faster",
                    "model": bundle.name,
                    "cells": cells,
                    "environment": to_json(environment),
                }
                json_path.write_text(json.dumps(figures, indent=1) + "\n")


def best_session(opened, int8: Path, spec: TuneSpec, update) -> SessionSpec:
    """Return the session in which a race of `tune` finds the int8 model to be the fastest."""
    from resdeploy.racing import race
    from resdeploy.schema.benchmarks import BenchSpec
    from resdeploy.target.bench_in_turn import time_in_turn
    from resdeploy.target.tune_space import sessions_for

    sessions = list(sessions_for("cpu", spec))
    sides = [
        (
            Variant(path=int8).path,
            BenchSpec(session=session, batch_size=spec.batch_sizes[0], num_runs=spec.num_runs),
        )
        for session in sessions
    ]

    def measure(alive, number):
        update(number, spec.max_blocks, "int8 sessions")
        timed = time_in_turn([sides[place] for place in alive], prove_placement=False)
        return [pooled_percentile(one.bursts_ns, 50) for one in timed]

    return sessions[race(len(sides), measure, max_blocks=spec.max_blocks).winner]


if __name__ == "__main__":
    main()
