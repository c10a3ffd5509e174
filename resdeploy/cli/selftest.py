"""`resdeploy selftest`."""

from pathlib import Path

import click

from resdeploy.cli.options import SourceOptions, json_option, source_options, threads_option
from resdeploy.errors import EXIT_CHECK_FAILED


@click.command()
@click.argument("source", required=False, type=click.Path(path_type=Path))
@source_options
@click.option(
    "--num-inputs",
    default=8,
    show_default=True,
    type=click.IntRange(min=2),
    help="How many seeded inputs each faulty model is run on.",
)
@threads_option
@json_option
def selftest(
    source: Path | None,
    source_of: SourceOptions,
    num_inputs: int,
    num_threads: int | None,
    as_json: bool,
) -> None:
    """Plant faults into SOURCE, a model of yours, and show what verification makes of each.

    Every fault has to be caught, and a fault of one layer has to be named by that layer; correct
    models have to pass. Beside it stands what fixed tolerances would have said.

    \b
    Example:
        resdeploy selftest runs/digits
        resdeploy selftest resnet50.pth --arch resnet50 --num-inputs 4
    """
    from resdeploy.api.selftest import selftest as run_selftest
    from resdeploy.cli.progress import show_stages
    from resdeploy.cli.render import emit
    from resdeploy.export.source import load_source

    with show_stages("selftest") as on_stage:
        report = run_selftest(
            load_source(source_of(source)),
            num_inputs=num_inputs,
            num_threads=num_threads,
            on_stage=on_stage,
        )
    emit(report, as_json=as_json)
    if not report.passed:
        raise SystemExit(EXIT_CHECK_FAILED)
