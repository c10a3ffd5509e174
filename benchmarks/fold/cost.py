"""Cost of a fold, against the `torch.export` trace before it.

Each run is a process of its own: it traces a network, translates and folds it, and reports the
seconds of trace and fold, and how much the peak memory grew while folding. The claims are the ratio
of the times, and the growth over the size of the weights.

    python benchmarks/fold/cost.py --json benchmarks/fold/cost.json
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import click

from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import to_json

RUN = """
import json, resource, sys, time

import torch

from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.fold.pipeline import simplified
from resdeploy.export.translate import translate
from resdeploy.networks import build_network
from resdeploy.export.trace import trace
from resdeploy.schema.recipes import ModelSpec

network = build_network(ModelSpec(arch=sys.argv[1], num_classes=1000)).eval()
inputs = (torch.randn(2, 3, 64, 64),)
trace(network, inputs)  # once for the imports that torch.export puts off
started = time.perf_counter()
program = trace(network, inputs)
traced = time.perf_counter()
model, _ = simplified(translate(program, opset=18), batch_dimension="batch")
started_fold = time.perf_counter()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = fold_batchnorm(model)
print(json.dumps({
    "trace_s": traced - started,
    "fold_s": time.perf_counter() - started_fold,
    "growth_bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
    "weights_bytes": sum(p.numel() * p.element_size() for p in network.parameters()),
    "num_folded": len(report.folded),
}))
"""


@click.command()
@click.option("--runs", default=5, show_default=True, help="Processes for each network.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(runs: int, json_path: Path | None) -> None:
    """Fold each network in fresh processes and print the two ratios."""
    networks = {}
    for arch in ("resnet18", "resnet50", "resnet152"):
        rows = [
            json.loads(
                subprocess.run(
                    [sys.executable, "-c", RUN, arch], check=True, capture_output=True, text=True
                ).stdout.splitlines()[-1]
            )
            for _ in range(runs)
        ]
        networks[arch] = {
            "runs": rows,
            "median_time_ratio": statistics.median(r["fold_s"] / r["trace_s"] for r in rows),
            "median_growth_ratio": statistics.median(
                r["growth_bytes"] / r["weights_bytes"] for r in rows
            ),
        }
        click.echo(
            f"{arch:10} fold / trace {networks[arch]['median_time_ratio']:.2f}   "
            f"memory growth / weights {networks[arch]['median_growth_ratio']:.2f}"
        )
    if json_path is not None:
        result = {
            "question": "seconds of the fold / of torch.export; growth of peak memory / weights",
            "networks": networks,
            "environment": to_json(read_environment()),
        }
        json_path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
