"""The one command: `python -m benchmarks.cuda`. Its measurements are described in the README."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click

from benchmarks.cuda.plan import BATCHES, NETWORKS, cases_for, choose
from benchmarks.cuda.records import RunSpec
from benchmarks.cuda.run import Limits, Store, carry_out
from resdeploy.cli.options import Number
from resdeploy.errors import EXIT_CHECK_FAILED, EXIT_INTERRUPTED, EXIT_PASSED, ReportedError


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@click.command()
@click.option("--provider", default="cuda", show_default=True, help="cpu tries every part but it.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/gpu-check"),
    show_default=True,
    help="A folder: report.json, report.md. One that is there is gone on with.",
)
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the networks are kept.  [default: models in the folder of --out]",
)
@click.option("--networks", default=",".join(NETWORKS), show_default=True)
@click.option("--batches", default=",".join(map(str, BATCHES)), show_default=True)
@click.option("--side", type=click.IntRange(min=8), help="Of images, in pixels, for a small trial.")
@click.option("--inputs", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--runs", default=100, show_default=True, type=click.IntRange(min=4))
@click.option("--blocks", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--minutes",
    type=Number(min=0),
    help="Begin nothing after this long, and end by then.",
)
@click.option(
    "--limit",
    default=600.0,
    show_default=True,
    type=Number(min=0, min_open=True),
    help="Seconds that one case may take.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="WORDS",
    help='Cases whose title has all these words, as "verify resnet50"; may be repeated.',
)
@click.option(
    "--skip-peer", multiple=True, metavar="NAME", help='As "torch compile": by its start.'
)
@click.option("--retry", is_flag=True, help="Run again what failed.")
@click.option("--list", "lists", is_flag=True, help="Print the titles of the cases, and end.")
def main(
    provider: str,
    out: Path,
    models: Path | None,
    networks: str,
    batches: str,
    side: int | None,
    inputs: int,
    runs: int,
    blocks: int,
    minutes: float | None,
    limit: float,
    only: tuple[str, ...],
    skip_peer: tuple[str, ...],
    retry: bool,
    lists: bool,
) -> None:
    r"""Prove, verify and time the networks on a provider, beside everything else that runs them.

    Each case is a process of its own. What is done is kept after each: stopped at any moment, the
    same command goes on where it was.

    \b
    Example:
        python -m benchmarks.cuda --minutes 9
        python -m benchmarks.cuda --only "verify resnet50" --only "ceilings"
        python -m benchmarks.cuda --provider cpu --side 32 --networks resnet18 --batches 1
    """
    begun = time.monotonic()
    cases = choose(
        cases_for(
            provider, networks.split(","), [int(size) for size in batches.split(",")], blocks
        ),
        only,
    )
    if lists:
        click.echo("\n".join(case.title for case in cases))
        return
    # Stopped from outside as from the keyboard: children end, and nothing is lost.
    signal.signal(signal.SIGTERM, _interrupt)
    spec = RunSpec(provider=provider, side=side, num_inputs=inputs, num_runs=runs)
    try:
        store = Store.open(out, spec, retry=retry)
        carry_out(
            cases,
            store,
            models or out / "models",
            Limits(
                case_s=limit,
                end_s=None if minutes is None else begun + 60 * minutes,
                skip_peers=skip_peer,
            ),
            say=lambda line: click.echo(line, err=True),
        )
    except ReportedError as error:
        click.echo(error, err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(EXIT_PASSED if store.report.passed else EXIT_CHECK_FAILED)


if __name__ == "__main__":
    main()
