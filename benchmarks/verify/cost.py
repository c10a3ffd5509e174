"""Cost of certifying a ResNet-50 (L0 to L3), against one float64 pass of its inputs in torch.

Both in one process, in turn, several times; the claim is the ratio, pair by pair. The certificate
holds that pass, too: it is where its reference comes from.

    python benchmarks/verify/cost.py --json benchmarks/verify/cost.json
"""

import copy
import json
import statistics
import tempfile
import time
from pathlib import Path

import click
import torch
from null import make_network

from resdeploy.data.input_kinds import FLOATS
from resdeploy.export.export import export_onnx
from resdeploy.export.golden import golden_for, run_module
from resdeploy.export.reference import reference_graph
from resdeploy.export.source import SourceModel
from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import to_json
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.verify.outputs import open_sessions
from resdeploy.verify.verdict import judge_model


def certify(source: SourceModel, path: Path, num_inputs: int) -> dict[str, float]:
    """Do what `resdeploy verify` does, and return the seconds of each part."""
    seconds = {}
    started = time.perf_counter()

    def mark(part: str) -> None:
        nonlocal started
        seconds[part], started = time.perf_counter() - started, time.perf_counter()

    def mark_stage(name: str) -> None:
        nonlocal stage
        mark(stage)
        stage = name

    stage = "open the session"
    golden = golden_for(source, num_inputs=num_inputs)
    mark("outputs in float64, float32 and their spread")
    reference = reference_graph(source, golden)
    mark("reference graph")
    sessions = open_sessions(path, [SessionSpec(num_threads=2)])
    report = judge_model(path, reference, golden, sessions, conformance=False, on_stage=mark_stage)
    mark(stage)
    assert report.passed, report.reasons
    return seconds


@click.command()
@click.option("--pairs", default=3, show_default=True)
@click.option("--num-inputs", default=64, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(pairs: int, num_inputs: int, json_path: Path | None) -> None:
    """Time both and print the ratio."""
    torch.set_num_threads(2)
    environment = read_environment()
    made = make_network("resnet50", 0)
    source = SourceModel(
        module=made.module, input_shape=(3, 224, 224), description="resnet50", info=None
    )
    inputs = FLOATS.draw((num_inputs, *source.input_shape))
    double = copy.deepcopy(source.module).double()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.onnx"
        export_onnx(source, ExportSpec(), path)
        for _ in range(pairs):
            started = time.perf_counter()
            run_module(double, inputs, dtype=torch.float64)
            float64_s = time.perf_counter() - started
            parts = certify(source, path, num_inputs)
            total_s = sum(parts.values())
            rows.append({"float64_s": float64_s, "certify_s": total_s, "parts_s": parts})
            click.echo(f"{total_s / float64_s:.2f} = {total_s:.1f} s / {float64_s:.1f} s  {parts}")
    ratios = [row["certify_s"] / row["float64_s"] for row in rows]
    click.echo(f"median ratio {statistics.median(ratios):.2f}")
    if json_path is not None:
        record = {
            "environment": to_json(environment),
            "num_inputs": num_inputs,
            "median_ratio": statistics.median(ratios),
            "runs": rows,
        }
        json_path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
