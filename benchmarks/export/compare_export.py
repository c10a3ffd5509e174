"""Cost of `resdeploy export` of a ResNet-50, beside a bare export that verifies nothing.

Both are whole processes, from a weight file to an ONNX file, run in turn:

    resdeploy export   import, load, trace, translate, simplify, fold, verify, write
    bare               import, load, torch.onnx.export(dynamo=True), onnxsim, write

The claims are ratios, pair by pair: of wall and of CPU time, on a quiet machine and with every core
kept busy by a process that this script starts; and of the peaks of memory.

    python benchmarks/export/compare_export.py --pairs 7 --json benchmarks/export/resnet50.json
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import to_json

BARE = """
import sys

import onnx
import onnxsim
import torch

from resdeploy.networks import build_network
from resdeploy.schema.recipes import ModelSpec

weights, out = sys.argv[1:]
network = build_network(ModelSpec(arch="resnet50", num_classes=1000)).eval()
network.load_state_dict(torch.load(weights, weights_only=True))
program = torch.onnx.export(
    network,
    (torch.randn(2, 3, 224, 224),),
    dynamo=True,
    dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    verbose=False,
)
program.save(out, external_data=False)
simplified, _ = onnxsim.simplify(onnx.load(out))
onnx.save(simplified, out)
"""


@click.command()
@click.option("--pairs", default=7, show_default=True, help="Counted pairs, after one of warm-up.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(pairs: int, json_path: Path | None) -> None:
    """Measure both, in turn, and print the ratios."""
    from resdeploy.export.export import stage_versions

    environment = read_environment()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "resnet50.pth"
        write_weights(weights)
        commands = {
            "resdeploy": [
                *(sys.executable, "-m", "resdeploy", "export", str(weights), "--arch", "resnet50"),
                *("-o", str(Path(folder) / "ours.onnx"), "--force"),
            ],
            "bare": [sys.executable, "-c", BARE, str(weights), str(Path(folder) / "bare.onnx")],
        }
        quiet = compared(commands, pairs)
        with busy_cores():
            busy = compared(commands, pairs)
    result = {
        "question": "whole process of resdeploy export / bare torch.onnx.export + onnxsim",
        "network": "resnet50, 224 px, dynamic batch, random weights",
        "quiet": quiet,
        "busy": busy,
        "environment": to_json(environment),
        "versions": stage_versions(),
    }
    for name, part in (("quiet", quiet), ("busy", busy)):
        for unit, values in part["ratios"].items():
            spread = f"{min(values):.3f} to {max(values):.3f}"
            click.echo(f"{name:6}{unit:11}{part['median_ratio'][unit]:.3f}   {spread}")
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n")


def compared(commands: dict[str, list[str]], pairs: int) -> dict[str, Any]:
    """Return what each process took, and the ratios of the first to the second."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for index in range(pairs + 1):
        # A B, B A, …: a machine that slows down steadily favours neither.
        order = list(commands) if index % 2 == 0 else list(commands)[::-1]
        for name in order:
            run = measured(commands[name])
            if index:
                runs[name].append(run)
    ours, bare = runs.values()
    ratios = {
        unit: [a[unit] / b[unit] for a, b in zip(ours, bare, strict=True)] for unit in ours[0]
    }
    medians = {unit: statistics.median(values) for unit, values in ratios.items()}
    return {"median_ratio": medians, "ratios": ratios, "runs": runs}


def measured(command: list[str]) -> dict[str, float]:
    """Return wall and CPU time in seconds, and the peak of memory, of one process that succeeds."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "120"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise click.ClickException(f"exit code {process.returncode} of {' '.join(command[:4])}")
    return {
        "wall_s": wall_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": 1024 * usage.ru_maxrss,
    }


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core busy with a process that does nothing else."""
    spin = [sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def write_weights(path: Path) -> None:
    """Write a ResNet-50 with random weights, as any user's weight file."""
    import torch

    from resdeploy.networks import build_network
    from resdeploy.schema.recipes import ModelSpec

    torch.manual_seed(0)
    torch.save(build_network(ModelSpec(arch="resnet50", num_classes=1000)).state_dict(), path)


if __name__ == "__main__":
    main()
