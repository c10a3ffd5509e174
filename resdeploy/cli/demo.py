"""`resdeploy demo`."""

from pathlib import Path

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import Emit, force_option, json_option, output_option


@click.command(cls=Command)
@output_option("The folder to write.", required=False, default="demo-out")
@force_option
@json_option
def demo(out: Path, force: bool, emit: Emit) -> None:
    """Train, fold, export, verify, bench and bundle a small ResNet on real digits.

    Takes a minute on two cores and needs no network. Runs on CUDA too, where that really starts.

    \b
    Example:
        resdeploy demo
        resdeploy check demo-out/bundle
    """
    from resdeploy.api.demo import run_demo
    from resdeploy.cli.progress import show_stages

    with show_stages("demo") as on_stage:
        report = run_demo(out, force=force, on_stage=on_stage)
    emit(report)
