"""Duration of `resdeploy export` of a ResNet-50, against a bare export without verification.

Both are whole processes, from a weight file to an ONNX file, run in turn:

    resdeploy export   import, load, trace, fold, translate, simplify, verify, write
    bare               import, load, torch.onnx.export(dynamo=True), onnxsim, write

The claim is the ratio of the two, pair by pair.

    python benchmarks/export/compare_export.py --pairs 7 --json benchmarks/export/resnet50.json
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    """Time both, in turn, and print the ratio pair by pair."""
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
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for index in range(pairs + 1):
            # A B, B A, …: a machine that slows down steadily favours neither.
            order = list(commands) if index % 2 == 0 else list(commands)[::-1]
            for name in order:
                duration = timed(commands[name])
                if index:
                    seconds[name].append(duration)
    ratios = [a / b for a, b in zip(seconds["resdeploy"], seconds["bare"], strict=True)]
    result = {
        "question": "whole process of resdeploy export / bare torch.onnx.export + onnxsim",
        "network": "resnet50, 224 px, dynamic batch, random weights",
        "seconds": seconds,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "environment": to_json(environment),
        "versions": stage_versions(),
    }
    for name, values in seconds.items():
        click.echo(f"{name:10} median {statistics.median(values):6.2f} s  min {min(values):6.2f} s")
    click.echo(
        f"ratio      median {result['median_ratio']:.3f}  {min(ratios):.3f} to {max(ratios):.3f}"
    )
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n")


def timed(command: list[str]) -> float:
    """Return the wall time in seconds of one whole process, which must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "COLUMNS": "120"})
    return time.perf_counter() - started


def write_weights(path: Path) -> None:
    """Write a ResNet-50 with random weights, as any user's weight file."""
    import torch

    from resdeploy.networks import build_network
    from resdeploy.schema.recipes import ModelSpec

    torch.manual_seed(0)
    torch.save(build_network(ModelSpec(arch="resnet50", num_classes=1000)).state_dict(), path)


if __name__ == "__main__":
    main()
