"""`resdeploy check`."""

from pathlib import Path
from typing import Any

import click

from resdeploy.cli.command import Command
from resdeploy.cli.on_devices import Devices, device_options, finish
from resdeploy.cli.options import Emit, accept_option, json_option, sessions_options
from resdeploy.cli.parameter_types import MODEL
from resdeploy.schema.sessions import SessionSpec


@click.command(cls=Command)
@click.argument("bundle", type=MODEL)
@sessions_options
@accept_option
@click.option("--digest", help="The bundle's digest, as you received it by another way.")
@device_options
@json_option
def check(
    bundle: Path, provider: list[SessionSpec], devices: Devices, emit: Emit, **options: Any
) -> None:
    """Re-verify BUNDLE on this machine: every byte, then the numbers. Needs no torch.

    BUNDLE is a folder, or the one file of `bundle -o NAME.zip`; an ONNX file is judged by its own
    graph in float64. Nothing is run if a single byte
    differs from what was packed. Settings that `tune` found for such a machine are checked
    too: lossless ones must pass as float32; those within a budget may not compute clearly worse
    outputs for the golden inputs than when tuned.

    PROVED says that these bytes were proved where they were made, and that the outputs here are
    those that float32 explains. A manifest is not signed: with --digest nothing but the bundle that
    you were promised passes.

    \b
    Example:
        resdeploy check digits-bundle
        resdeploy check digits-bundle --provider cuda
        resdeploy check digits.zip --on pi@kitchen.local --on pi@10.0.0.7
    """
    if devices.given:
        from resdeploy.remote.jobs import check_job

        finish(devices.run(check_job(bundle, devices.options)), emit)

    from resdeploy.api.check import check as check_bundle

    emit(check_bundle(bundle, provider=provider, **options))
