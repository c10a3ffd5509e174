"""Verdicts on right files of many writers: how many are PROVED, and that none FAILs.

Each network is written by resdeploy, by both exporters of torch at several opsets, and by tools
that rewrite files; each file gets the whole verdict of `resdeploy verify` in three sessions. What a
writer cannot write is left out and counted.

    python benchmarks/verify/writers.py --json benchmarks/verify/writers.json

Interrupted, it goes on where it was: files that stand in the JSON are not judged again.
"""

import json
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import click
import onnx
import torch

from resdeploy.export.golden import golden_for
from resdeploy.export.reference import reference_or_reason
from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import to_json
from resdeploy.schema.sessions import SessionSpec
from resdeploy.verify.outputs import open_sessions
from resdeploy.verify.verdict import judge_model

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from writers import NETWORKS, WRITERS, source_of

# What a writer writes as another network, and says so.
OTHER = {("bilinear", "torchscript 9"), ("bilinear to size", "torchscript 9")}
SESSIONS = [
    SessionSpec(num_threads=1),
    SessionSpec(num_threads=2, graph_level="basic"),
    SessionSpec(num_threads=1, graph_level="disabled"),
]
NUM_INPUTS = 8


def judged(network: str, path: Path) -> dict[str, dict[str, Any]]:
    """Return the outcome of each writer's file of a network, by the writer."""
    source = source_of(network)
    golden = golden_for(source, num_inputs=NUM_INPUTS)
    reference = reference_or_reason(source, golden)
    found = {}
    for writer, write in WRITERS.items():
        if (network, writer) in OTHER:
            continue
        try:
            model = write(source)
        except Exception as error:  # whatever an exporter raises
            found[writer] = {"unwritten": f"{type(error).__name__}: {str(error)[:120]}"}
            continue
        onnx.save(model, path)
        sessions = open_sessions(path, SESSIONS)
        report = judge_model(path, reference, golden, sessions, conformance=False)
        reasons = [*report.reasons, *(r for v in report.verdicts for r in v.reasons)]
        found[writer] = {
            "verdict": report.verdict,
            "sessions": len(sessions),
            "why": (*reasons, *report.unproved)[:2],
            "noise_ratio": max(v.comparison.noise_ratio for v in report.verdicts),
        }
    return found


def summary(networks: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the counts of verdicts, altogether and by writer; a session is a verdict."""
    by_writer: dict[str, Counter[str]] = defaultdict(Counter)
    for files in networks.values():
        for writer, one in files.items():
            by_writer[writer][one.get("verdict", "unwritten")] += one.get("sessions", 1)
    total = sum(by_writer.values(), Counter())
    return {
        "verdicts": sum(total[word] for word in ("PROVED", "AGREES", "FAIL")),
        "total": total,
        "by_writer": by_writer,
    }


@click.command()
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(json_path: Path) -> None:
    """Judge every network of every writer."""
    torch.set_num_threads(1)
    environment = to_json(read_environment())
    networks = json.loads(json_path.read_text())["networks"] if json_path.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            if network not in networks:
                networks[network] = judged(network, Path(folder) / "model.onnx")
                record = {
                    "environment": environment,
                    "summary": summary(networks),
                    "networks": networks,
                }
                json_path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                click.echo(
                    f"{network}: {Counter(o.get('verdict') for o in networks[network].values())}"
                )


if __name__ == "__main__":
    main()
