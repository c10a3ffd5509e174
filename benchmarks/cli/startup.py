"""Start of the command line, against `import click` alone: CPU time of whole processes, in turn.

Each block is a fresh process of each. CPU time, since what else runs on the machine takes none of
it; the ratio is the mean of the blocks' own, with Student's interval.

    python benchmarks/cli/startup.py --json benchmarks/cli/startup.json
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import click

from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import to_json
from resdeploy.statistics.paired import mean_ratio

BASELINE = ["-c", "import click"]
HELP = {"resdeploy": [], "resdeploy export": ["export"], "resdeploy bench": ["bench"]}


def cpu_seconds(*arguments: str) -> float:
    """Return the CPU time of a fresh interpreter, user and system."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{arguments} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


@click.command()
@click.option("--blocks", default=60, show_default=True, help="Processes of each.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(blocks: int, json_path: Path | None) -> None:
    """Time the help of the program and of two commands."""
    commands = {name: ["-m", "resdeploy", *words, "--help"] for name, words in HELP.items()}
    for arguments in (BASELINE, *commands.values()):
        cpu_seconds(*arguments)  # writes the bytecode
    times: dict[str, list[float]] = {"import click": [], **{name: [] for name in commands}}
    for _ in range(blocks):
        times["import click"].append(cpu_seconds(*BASELINE))
        for name, arguments in commands.items():
            times[name].append(cpu_seconds(*arguments))
    ratios = {
        name: mean_ratio(
            [
                math.log(ours / clicks)
                for ours, clicks in zip(times[name], times["import click"], strict=True)
            ]
        )
        for name in commands
    }
    for name, ratio in ratios.items():
        click.echo(f"{name} --help: {ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
    if json_path is not None:
        record = {
            "environment": to_json(read_environment()),
            "ratios": {name: to_json(ratio) for name, ratio in ratios.items()},
            "cpu_seconds": times,
        }
        json_path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
