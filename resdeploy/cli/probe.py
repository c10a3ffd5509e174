"""`resdeploy probe`."""

from pathlib import Path

import click

from resdeploy.cli.on_devices import DeviceCommand, Devices, device_options, finish
from resdeploy.cli.options import PATH, force_option, json_option


@click.command(cls=DeviceCommand)
@click.option("-o", "--output", "out", type=PATH, help="Also write the record here.")
@force_option
@device_options
@json_option
def probe(out: Path | None, force: bool, devices: Devices, as_json: bool) -> None:
    """Report what this machine can run: the runtime, the providers that start, CPU, memory, GPU.

    A tiny model is opened and run on each provider. `resdeploy export --for` takes the
    record that -o writes, on the machine where the model is made.

    \b
    Example:
        resdeploy probe
        resdeploy probe -o target.json
        resdeploy probe --on pi@kitchen.local -o target.json
    """
    from resdeploy.cli.render import emit, write_record

    if devices.given:
        from resdeploy.remote.jobs import probe_job

        if out is not None and len(devices.specs) > 1:
            raise click.UsageError("-o takes the record of one device: name one.")
        reports = devices.run(probe_job())
        if out is not None and (probed := reports.devices[0].probe) is not None:
            write_record(probed, out, force=force)
        finish(reports, as_json=as_json)

    from resdeploy.machine.probe import probe as probe_machine

    report = probe_machine()
    if out is not None:
        write_record(report, out, force=force)
    emit(report, as_json=as_json)
