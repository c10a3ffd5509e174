"""`resdeploy selftest`."""

from typing import Any

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import Emit, json_option, source_options, threads_option
from resdeploy.cli.parameter_types import SOURCE
from resdeploy.schema.recipes import SourceSpec


@click.command(cls=Command)
@click.argument("source", required=False, type=SOURCE)
@source_options("source")
@click.option(
    "--num-inputs",
    default=8,
    type=click.IntRange(min=2),
    help="Seeded inputs for each faulty model.",
)
@click.option("--attack", is_flag=True, help="Plant back doors, too: none may be PROVED.")
@threads_option
@json_option
def selftest(source: SourceSpec, emit: Emit, **options: Any) -> None:
    """Plant faults into SOURCE, a model of yours or an ONNX file, and show the verdict on each.

    Every fault has to be caught, and a fault of one layer has to be named by that layer; correct
    models have to pass. The verdicts of fixed tolerances stand beside it.

    \b
    Example:
        resdeploy selftest runs/digits
        resdeploy selftest resnet50.pth --arch resnet50 --num-inputs 4
        resdeploy selftest runs/digits --attack
    """
    from resdeploy.api.selftest import selftest as run_selftest
    from resdeploy.cli.progress import show_stages

    with show_stages("selftest") as on_stage:
        report = run_selftest(source, on_stage=on_stage, **options)
    emit(report)
