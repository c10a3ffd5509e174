"""`resdeploy ship`."""

from pathlib import Path
from typing import Any

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import (
    Emit,
    Number,
    accept_option,
    force_option,
    json_option,
    max_drop_option,
    output_option,
    precisions_option,
    providers_option,
    source_options,
    target_option,
    work_option,
)
from resdeploy.cli.parameter_types import DATA, TRAINED
from resdeploy.errors import EXIT_INTERRUPTED
from resdeploy.schema.files import SourceSpec


@click.command(cls=Command)
@click.argument("source", metavar="CHECKPOINT", required=False, type=TRAINED)
@output_option("The bundle to write: a folder, or one file, NAME.zip.")
@source_options("source")
@click.option(
    "--data",
    type=DATA,
    help="Samples: a folder with one of images per class, x.npz, NAME, NAME:PATH.",
)
@max_drop_option("Accuracy may be so many points lower, shown on --data.  [default: 1]")
@click.option(
    "--max-flips",
    type=Number(min=0, max=1),
    help="Without labels: fraction of predictions that may change.  [default: 0.01]",
)
@precisions_option
@providers_option(default=(), remark="  [default: all that start here]")
@target_option
@accept_option
@work_option("The folder with finished stages.  [default: beside -o, until the end]")
@force_option
@json_option
def ship(source: SourceSpec, out: Path, work: Path | None, emit: Emit, **options: Any) -> None:
    """Make of CHECKPOINT the bundle for a device: proved, small and fast, in one go.

    The network, its preprocessing and its classes are found, as far as files and --data tell. The
    model is exported and proved, made in int8, and the fastest way to run it is searched for.
    A lower precision is shipped only if --data shows it to be within the budget; the
    samples it is judged on are not those it was made with.

    Tells how long it takes once the first stages are over. Stopped, the same command goes on.

    \b
    Example:
        resdeploy ship last.ckpt --data photos --max-drop 0.5 -o parts.zip
        resdeploy ship resnet50.pth --preprocess-as imagenet -o parts.zip
    """
    from resdeploy.api.ship import ship as ship_model
    from resdeploy.api.ship import work_folder
    from resdeploy.cli.progress import show_stages

    try:
        with show_stages("ship") as on_stage:
            report = ship_model(
                source,
                out,
                work=work,
                on_stage=on_stage,
                on_note=lambda line: click.echo(line, err=True),
                **options,
            )
    except KeyboardInterrupt:
        folder = work or work_folder(out)
        click.echo(
            f"interrupted; finished stages are in {folder}: the same command goes on", err=True
        )
        raise SystemExit(EXIT_INTERRUPTED) from None
    emit(report)
