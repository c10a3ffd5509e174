"""`resdeploy demo`."""

from pathlib import Path

import click

from resdeploy.cli.options import PATH, force_option, json_option


@click.command()
@click.option(
    "-o",
    "--output",
    default="demo-out",
    show_default=True,
    type=PATH,
    help="The folder to write.",
)
@force_option
@json_option
def demo(output: Path, force: bool, as_json: bool) -> None:
    """Train, fold, export, verify, bench and bundle a small ResNet on real digits.

    Takes a minute on two cores and needs no network. Runs on CUDA too, where that really starts.

    \b
    Example:
        resdeploy demo
        resdeploy check demo-out/bundle
    """
    from resdeploy.api.demo import run_demo
    from resdeploy.cli.progress import show_stages
    from resdeploy.cli.render import emit_verdict

    with show_stages("demo") as on_stage:
        report = run_demo(output, force=force, on_stage=on_stage)
    emit_verdict(report, as_json=as_json)
