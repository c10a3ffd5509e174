"""One model in several forms, timed in turn by `bench`'s engine: what the scripts here share."""

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import onnx

from resdeploy.bench.in_turn import time_in_turn
from resdeploy.machine.environment import read_environment
from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.codec import to_json
from resdeploy.schema.sessions import SessionSpec
from resdeploy.statistics.paired import mean_ratio, pooled_percentile

NUM_RUNS = 200


def medians_of(
    models: Mapping[str, onnx.ModelProto], *, batch_size: int, blocks: int
) -> list[dict[str, float]]:
    """Return the median nanoseconds of each form in each block, on one thread."""
    spec = BenchSpec(
        session=SessionSpec(num_threads=1), batch_size=batch_size, num_runs=NUM_RUNS // batch_size
    )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in models}
        for name, model in models.items():
            onnx.save(model, paths[name])
        for number in range(blocks):
            # The other way round in every other block.
            names = list(models)[:: 1 if number % 2 == 0 else -1]
            sides = [(paths[name], spec) for name in names]
            timed = time_in_turn(sides, prove_placement=False)
            medians = [pooled_percentile(one.bursts_ns, 50) for one in timed]
            found.append(dict(zip(names, medians, strict=True)))
    return found


def ratios_to(first: str, medians: list[dict[str, float]]) -> dict[str, Any]:
    """Return the time of each form over that of the first, and the first's own."""
    others = [name for name in medians[0] if name != first]
    return {
        "blocks": len(medians),
        "median_us": statistics.median(block[first] for block in medians) / 1e3,
        "ratios": {
            name: to_json(mean_ratio([math.log(block[name] / block[first]) for block in medians]))
            for name in sorted(others)
        },
    }


def command(measure: Callable[[int], dict[str, Any]]) -> click.Command:
    """Return the command of a script: it measures, prints, and writes its JSON."""

    @click.command(help=measure.__doc__)
    @click.option("--blocks", default=8, show_default=True, type=click.IntRange(min=2))
    @click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write it here.")
    def main(blocks: int, json_path: Path | None) -> None:
        result = measure(blocks)
        click.echo(json.dumps(result, indent=2))
        if json_path is not None:
            record = {"environment": to_json(read_environment()), **result}
            json_path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    return main
