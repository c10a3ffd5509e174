"""`--on` and `--fleet`: a command on other machines, over SSH."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from resdeploy.cli.command import as_written
from resdeploy.cli.options import PATH, Emit, gathered
from resdeploy.errors import ReportedError
from resdeploy.schema.remotes import DeviceSpec, RemoteReport

if TYPE_CHECKING:
    from resdeploy.remote.fleet_run import DeviceJob
    from resdeploy.remote.jobs import Options

__all__ = ["Devices", "device_options", "finish"]

# Options about this machine: they do not travel.
_STAYING = {
    *("addresses", "fleet", "emit", "against", "out", "force", "work"),
    *("data", "calibration", "variants"),
}


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The devices that were named on the command line, if any."""

    addresses: tuple[str, ...]
    fleet: Path | None

    @property
    def given(self) -> bool:
        """True if the command is to run on devices instead of here."""
        return bool(self.addresses) or self.fleet is not None

    @property
    def options(self) -> "Options":
        """The options of the command that travel, as they were written."""
        context = click.get_current_context()
        travelling = {one.name for one in context.command.params if one.name} - _STAYING
        return tuple(as_written(context, travelling))

    @functools.cached_property
    def specs(self) -> tuple[DeviceSpec, ...]:
        """The devices, those of the fleet file first."""
        from resdeploy.remote.fleet import load_fleet, parse_address, refuse_duplicates

        fleet = () if self.fleet is None else load_fleet(self.fleet)
        devices = (*fleet, *map(parse_address, self.addresses))
        refuse_duplicates(devices)
        return devices

    def run(self, job: "DeviceJob") -> RemoteReport:
        """Run a job on all of them, with a table of their progress on stderr."""
        from resdeploy.cli.progress import show_devices
        from resdeploy.remote.fleet_run import run_on_fleet

        devices = self.specs
        with show_devices(job.calls[-1].command, [one.name for one in devices]) as on_stage:
            return run_on_fleet(job, devices, on_stage=on_stage)


def finish(report: RemoteReport, emit: Emit) -> NoReturn:
    """Print the report, its failures on stderr, and exit with its code."""
    failures = [
        ReportedError(f"{one.device.name}: {failure.what}", where=failure.where, fix=failure.fix)
        for one in report.devices
        if (failure := one.failure) is not None
    ]
    emit(report, exit_code=report.exit_code, note="\n".join(f"error: {one}" for one in failures))
    raise click.exceptions.Exit


# The command, a `Command`, gets `devices`.
device_options = gathered(
    "devices",
    Devices,
    {
        "addresses": click.option(
            "--on",
            "addresses",
            multiple=True,
            metavar="[USER@]HOST[:PORT]",
            help="Run on this device instead, over SSH. May be given several times.",
        ),
        "fleet": click.option(
            "--fleet",
            type=PATH,
            metavar="FLEET.TOML",
            help="Run on the devices of this file instead.",
        ),
    },
)
