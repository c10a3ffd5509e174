"""`resdeploy probe`."""

from pathlib import Path

import click

from resdeploy.cli.command import Command
from resdeploy.cli.on_devices import Devices, device_options, finish
from resdeploy.cli.options import Emit, force_option, json_option, output_option
from resdeploy.files import atomic_write
from resdeploy.schema.codec import dump_json
from resdeploy.schema.machines import ProbeReport


@click.command(cls=Command)
@output_option("Also write the record here.", required=False)
@force_option
@device_options
@json_option
def probe(out: Path | None, force: bool, devices: Devices, emit: Emit) -> None:
    """Report what this machine can run: the runtime, the providers that start, CPU, memory, GPU.

    A tiny model is opened and run on each provider. `resdeploy export --for` takes the
    record that -o writes, on the machine where the model is made.

    \b
    Example:
        resdeploy probe
        resdeploy probe -o target.json
        resdeploy probe --on pi@kitchen.local -o target.json
    """
    if devices.given:
        from resdeploy.remote.jobs import probe_job

        if out is not None and len(devices.specs) > 1:
            raise click.UsageError("-o takes the record of one device: name one.")
        reports = devices.run(probe_job())
        _write(reports.devices[0].probe, out, force=force)
        finish(reports, emit)

    from resdeploy.machine.probe import probe as probe_machine

    report = probe_machine()
    _write(report, out, force=force)
    emit(report)


def _write(record: ProbeReport | None, out: Path | None, *, force: bool) -> None:
    """Write the record, if there is one to write, as JSON to `out`."""
    if record is not None and out is not None:
        with atomic_write(out, force=force) as temporary:
            temporary.write_text(dump_json(record) + "\n", encoding="utf-8", newline="\n")
