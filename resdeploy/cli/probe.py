"""`resdeploy probe`."""

from pathlib import Path

import click

from resdeploy.cli.on_devices import DeviceCommand, Devices, device_options, finish
from resdeploy.cli.options import force_option, json_option
from resdeploy.schema.codec import dump_json
from resdeploy.schema.machines import ProbeReport


@click.command(cls=DeviceCommand)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the record here.")
@force_option
@device_options
@json_option
def probe(output: Path | None, force: bool, devices: Devices, as_json: bool) -> None:
    """Say what this machine can run: the runtime, the providers that start, CPU, memory, GPU.

    A tiny model is opened and run on each provider. The record that -o writes is what
    `resdeploy export --for` takes, on the machine where the model is made.

    \b
    Example:
        resdeploy probe
        resdeploy probe -o target.json
        resdeploy probe --on pi@kitchen.local -o target.json
    """
    if devices.given:
        from resdeploy.remote.jobs import probe_job

        if output is not None and len(devices.specs) > 1:
            raise click.UsageError("-o takes the record of one device: name one.")
        reports = devices.run(probe_job())
        if output is not None and (probed := reports.devices[0].probe) is not None:
            _write(probed, output, force=force)
        finish(reports, as_json=as_json)

    from resdeploy.cli.render import emit
    from resdeploy.machine.probe import probe as probe_machine

    report = probe_machine()
    if output is not None:
        _write(report, output, force=force)
    emit(report, as_json=as_json)


def _write(report: ProbeReport, output: Path, *, force: bool) -> None:
    from resdeploy.files import atomic_write

    with atomic_write(output, force=force) as temporary:
        temporary.write_text(dump_json(report) + "\n", encoding="utf-8", newline="\n")
