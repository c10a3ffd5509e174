"""Ceiling of int8: the rate of its matrix product over that of float32 on this machine.

    python benchmarks/tune/ceilings.py --json benchmarks/tune/ceilings.json

Large matrix products in ONNX Runtime's CPU provider, of float32 and of uint8 by int8, in turn. In
AVX-512 an instruction of VNNI multiplies and adds 64 pairs, one of float32 16: where both are
carried out as often, the ratio is 4. AMX has more.
"""

import json
import math
from pathlib import Path

import click

from resdeploy.bench.ceilings import peak_macs_per_s
from resdeploy.files import atomic_write
from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import to_json
from resdeploy.schema.sessions import SessionSpec
from resdeploy.statistics.paired import mean_ratio


@click.command()
@click.option("--blocks", default=20, show_default=True, type=click.IntRange(min=2))
@click.option("--json", "json_path", type=click.Path(path_type=Path), required=True)
def main(blocks: int, json_path: Path) -> None:
    """Measure both ceilings in turn."""
    spec = SessionSpec()
    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(blocks):
        for integer in (False, True) if number % 2 == 0 else (True, False):
            rates[integer].append(peak_macs_per_s(spec, integer=integer))
    logs = [math.log(fast / slow) for slow, fast in zip(rates[False], rates[True], strict=True)]
    found = mean_ratio(logs)
    report = {
        "question": "rate of a large product of uint8 by int8 over that of one of float32",
        "ratio": found.ratio,
        "interval": [found.low, found.high],
        "float32_macs_per_s": rates[False],
        "int8_macs_per_s": rates[True],
        "environment": to_json(read_environment()),
    }
    with atomic_write(json_path, force=True) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(f"int8 over float32: {found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})")


if __name__ == "__main__":
    main()
