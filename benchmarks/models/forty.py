"""Networks that people deploy, each exported and verified: how many are PROVED.

The networks are those of `tests/support/deployed_networks.py`, with small images. A refusal is an
outcome with its reason; so is a verdict below PROVED.

    python benchmarks/models/forty.py --json benchmarks/models/forty.json

Interrupted, it goes on where it was: networks that stand in the JSON are not judged again, unless
named: --network U-Net judges that one alone.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import torch

import resdeploy
from resdeploy.errors import ReportedError
from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import to_json

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from deployed_networks import NETWORKS, build

NUM_INPUTS = 8


def outcome(name: str, path: Path) -> dict[str, Any]:
    """Return the verdict on a network's file, or the reason why it was refused."""
    module, shape = build(name), NETWORKS[name][1]
    try:
        exported = resdeploy.export(module, path, input_shape=shape, force=True)
        report = resdeploy.verify(path, module, input_shape=shape, num_inputs=NUM_INPUTS)
    except ReportedError as error:
        return {"outcome": "refused", "why": [str(error)]}
    return {
        "outcome": report.verdict,
        "why": [
            *report.reasons,
            *(r for v in report.verdicts for r in v.reasons),
            *report.unproved,
        ],
        "folded": len(exported.fold.folded) if exported.fold else 0,
        "not_folded": len(exported.fold.refused) if exported.fold else 0,
        "nodes": exported.num_nodes,
        "parameters": sum(p.numel() for p in module.parameters()),
    }


@click.command()
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
@click.option("--network", "named", multiple=True, help="Judge this one alone; repeatable.")
def main(json_path: Path, named: tuple[str, ...]) -> None:
    """Judge every network."""
    torch.set_num_threads(1)
    environment = to_json(read_environment())
    networks = json.loads(json_path.read_text())["networks"] if json_path.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            if name not in named if named else name in networks:
                continue
            begun = time.process_time()
            networks[name] = outcome(name, Path(folder) / "model.onnx")
            networks[name]["cpu_s"] = round(time.process_time() - begun, 1)
            ordered = {each: networks[each] for each in NETWORKS if each in networks}
            counts = Counter(one["outcome"] for one in ordered.values())
            record = {"environment": environment, "counts": counts, "networks": ordered}
            json_path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            one = networks[name]
            click.echo(f"{name}: {one['outcome']} {one['why'][:1]} {one['cpu_s']} s")


if __name__ == "__main__":
    main()
