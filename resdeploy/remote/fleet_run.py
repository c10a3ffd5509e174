"""One job on every device of a fleet at once; what one does never touches another's result."""

import asyncio
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from resdeploy.errors import EXIT_BUG, EXIT_CHECK_FAILED, EnvironmentLacksError, ReportedError
from resdeploy.remote.connection import connected
from resdeploy.remote.installation import install
from resdeploy.remote.job_client import linked
from resdeploy.remote.parse_output import failure_of, read_record
from resdeploy.remote.wheel import write_wheel
from resdeploy.schema.benchmarks import BenchComparison, BenchReport
from resdeploy.schema.bundles import CheckReport
from resdeploy.schema.machines import ProbeReport
from resdeploy.schema.remotes import (
    DeviceFailure,
    DeviceResult,
    DeviceSpec,
    RemoteCommand,
    RemoteReport,
)
from resdeploy.schema.tunings import TuneReport

__all__ = ["DeviceCall", "DeviceJob", "FetchedFile", "OnStage", "run_on_fleet"]

# Called with the number of the device and the stage that it has come to.
OnStage = Callable[[int, str], None]

_FIELDS: dict[type, str] = {
    CheckReport: "check",
    BenchReport: "bench",
    BenchComparison: "comparison",
    ProbeReport: "probe",
    TuneReport: "tune",
}
# What makes a command write how far it is, line by line, where no terminal shows it.
_WITH_PROGRESS = {"RESDEPLOY_PROGRESS": "lines"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCall:
    """One command of resdeploy on a device, and the record that it prints with --json.

    `options` are (name, value) pairs, (name,) for a flag.
    """

    command: RemoteCommand
    record: type
    arguments: tuple[str, ...] = ()
    options: tuple[tuple[str, ...], ...] = ()

    def words(self, provider: str | None) -> list[str]:
        """Return the command line, on `provider` in the place of the one in the options."""
        options = self.options
        if provider is not None and self.command != "probe":
            options = tuple(option for option in options if option[0] != "--provider")
            options = (*options, ("--provider", provider))
        words = [word for option in options for word in option]
        return [self.command, *self.arguments, *words, "--json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceJob:
    """What to do on every device: copy files to these names, then run these commands in turn.

    Attributes:
        command: what the user asked for.
        calls: the commands to run.
        files: what to copy there, each with its name there.
        extras: of resdeploy, to be installed there beside the device's own.
        fetch: given the number of the device and its last record, the file to copy back.
    """

    command: RemoteCommand
    calls: tuple[DeviceCall, ...]
    files: tuple[tuple[Path, str], ...] = field(default=())
    extras: tuple[str, ...] = ()
    fetch: Callable[[int, Any], "FetchedFile | None"] = lambda number, record: None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFile:
    """A file to copy from a device: its name there, its size as the record says, its place here."""

    name: str
    size_bytes: int
    path: Path


def run_on_fleet(
    job: DeviceJob, devices: Sequence[DeviceSpec], *, on_stage: OnStage
) -> RemoteReport:
    """Return what every device made of the job; the failure of one is in its own result.

    An interruption ends what runs on the devices before it is raised.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    return asyncio.run(_run(job, devices, on_stage))


async def _run(job: DeviceJob, devices: Sequence[DeviceSpec], on_stage: OnStage) -> RemoteReport:
    with tempfile.TemporaryDirectory(prefix="resdeploy-") as folder:
        wheel = None
        if any(device.environment is None for device in devices):
            wheel = write_wheel(Path(folder))
        # Not gather: interrupted, it is over with the first device that has ended what runs there,
        # and the others are cut off while they wait for theirs.
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    _Device(device, number, partial(on_stage, number)).run(job, wheel)
                )
                for number, device in enumerate(devices)
            ]
    return RemoteReport(command=job.command, devices=tuple(task.result() for task in tasks))


class _Device:
    """One device at work: the result grows as it comes."""

    def __init__(self, device: DeviceSpec, number: int, on_stage: Callable[[str], None]) -> None:
        self._device = device
        self._number = number
        self._on_stage = on_stage
        self._stage = ""
        self._result = DeviceResult(device=device)

    async def run(self, job: DeviceJob, wheel: Path | None) -> DeviceResult:
        limit = asyncio.timeout(self._device.timeout_s)
        try:
            async with limit:
                await self._run(job, wheel)
        except ReportedError as error:
            self._fail(error.what, error.where, error.fix, error.exit_code)
        except Exception:
            if limit.expired():
                self._fail(
                    f"The device was not done in {self._device.timeout_s:g} seconds.",
                    self._device.address,
                    "ask for less, or give it a longer timeout_s in the fleet file",
                    EnvironmentLacksError.exit_code,
                )
            else:
                # The other devices' results must not go with it.
                what = "This is a bug in resdeploy; please report it."
                self._fail(what, traceback.format_exc(), None, EXIT_BUG)
        self._enter("done" if self._result.passed else "failed")
        return self._result

    def _enter(self, stage: str) -> None:
        self._stage = stage
        self._on_stage(stage)

    def _progress(self, text: str) -> None:
        self._on_stage(f"{self._stage}: {text}")

    def _fail(self, what: str, where: str | None, fix: str | None, exit_code: int) -> None:
        # Some of it a device wrote.
        parts = [None if part is None else _printable(part) for part in (where, fix)]
        failure = DeviceFailure(
            stage=self._stage,
            what=_printable(what),
            where=parts[0],
            fix=parts[1],
            exit_code=exit_code,
        )
        self._found(failure=failure)

    def _found(self, **fields: Any) -> None:
        self._result = replace(self._result, **fields)

    async def _run(self, job: DeviceJob, wheel: Path | None) -> None:
        device = self._device
        self._enter("connect")
        async with connected(device) as connection:
            host_key = connection.get_server_host_key()
            self._found(host_key=None if host_key is None else host_key.get_fingerprint())
            async with linked(connection, device) as link:
                about = await link.greet()
                self._enter("install")
                extended = replace(device, extra=",".join((device.extra, *job.extras)))
                installation = await install(link, extended, about, wheel)
                self._found(installation=installation)
                self._enter("copy")
                for path, name in job.files:
                    await link.put(path, name)
                for call in job.calls:
                    self._enter(call.command)
                    # -P: what was copied there is data, even if it is called numpy.py.
                    command = [installation.python, "-P", "-m", "resdeploy"]
                    ended = await link.run(
                        [*command, *call.words(device.provider)],
                        # Of nothing that is timed meanwhile: who passes it on would be heard.
                        environment=_WITH_PROGRESS if call.command == "tune" else {},
                        on_progress=self._progress,
                    )
                    if ended.code not in (0, EXIT_CHECK_FAILED) or not ended.stdout.strip():
                        raise failure_of(call.command, ended, device)
                    record: Any = read_record(call.record, ended.stdout, where=device.address)
                    self._found(**{_FIELDS[call.record]: record})
                if (fetched := job.fetch(self._number, record)) is not None:
                    self._enter("fetch")
                    await link.get(fetched.name, fetched.path, fetched.size_bytes)


def _printable(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
