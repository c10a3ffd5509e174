"""One job on every device of a fleet at once, each with its own result."""

import asyncio
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from resdeploy.errors import EXIT_BUG, EXIT_CHECK_FAILED, EnvironmentLacksError, ReportedError
from resdeploy.remote.connection import connected
from resdeploy.remote.installation import install
from resdeploy.remote.job_client import job_client
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

__all__ = ["DeviceCall", "DeviceJob", "FetchedFile", "run_on_fleet"]

_FIELDS: dict[type, str] = {
    CheckReport: "check",
    BenchReport: "bench",
    BenchComparison: "comparison",
    ProbeReport: "probe",
    TuneReport: "tune",
}


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
        """Return the command line; `provider` replaces the one in the options."""
        options = self.options
        if provider is not None and self.command != "probe":
            kept = (option for option in options if option[0] != "--provider")
            options = (*kept, ("--provider", provider))
        words = [word for option in options for word in option]
        return [self.command, *self.arguments, *words, "--json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceJob:
    """Work for every device: files to copy, then commands to run in turn.

    `calls` are the commands, the last one the user's; `files` are (path here, name there) of each
    file to copy; `extras` of resdeploy are installed there besides the device's own; `fetch`
    returns the file to copy back, from the device's number and its last record.
    """

    calls: tuple[DeviceCall, ...]
    files: tuple[tuple[Path, str], ...] = ()
    extras: tuple[str, ...] = ()
    fetch: Callable[[int, Any], "FetchedFile | None"] = lambda number, record: None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFile:
    """A file to copy from a device: its name there, its size by the record, its path here."""

    name: str
    size_bytes: int
    path: Path


def run_on_fleet(
    job: DeviceJob, devices: Sequence[DeviceSpec], *, on_stage: Callable[[int, str], None]
) -> RemoteReport:
    """Return the results of all devices; the failure of one is in its own result.

    `on_stage` is called with the number of a device and the stage that it has come to. An
    interruption ends what runs on the devices before it is raised.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    return asyncio.run(_run(job, devices, on_stage))


async def _run(
    job: DeviceJob, devices: Sequence[DeviceSpec], on_stage: Callable[[int, str], None]
) -> RemoteReport:
    with tempfile.TemporaryDirectory(prefix="resdeploy-") as folder:
        needs_wheel = any(device.environment is None for device in devices)
        wheel = write_wheel(Path(folder)) if needs_wheel else None
        # Not gather: interrupted, it ends with the first device, and cuts the others off while
        # they still stop their processes.
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_Device(device, n, partial(on_stage, n)).run(job, wheel))
                for n, device in enumerate(devices)
            ]
    return RemoteReport(
        command=job.calls[-1].command, devices=tuple(task.result() for task in tasks)
    )


class _Device:
    """One device at work, and its growing result."""

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
        texts = {"what": _printable(what), "where": _printable(where), "fix": _printable(fix)}
        self._found(failure=DeviceFailure(stage=self._stage, exit_code=exit_code, **texts))

    def _found(self, **fields: Any) -> None:
        self._result = replace(self._result, **fields)

    async def _run(self, job: DeviceJob, wheel: Path | None) -> None:
        device = self._device
        self._enter("connect")
        async with connected(device) as connection:
            host_key = connection.get_server_host_key()
            self._found(host_key=None if host_key is None else host_key.get_fingerprint())
            async with job_client(connection, device) as client:
                about = await client.greet()
                self._enter("install")
                extended = replace(device, extra=",".join((device.extra, *job.extras)))
                installation = await install(client, extended, about, wheel)
                self._found(installation=installation)
                self._enter("copy")
                for path, name in job.files:
                    await client.put(path, name)
                for call in job.calls:
                    self._enter(call.command)
                    # -P: what was copied there is data, even if it is called numpy.py.
                    command = [installation.python, "-P", "-m", "resdeploy"]
                    words = [*command, *call.words(device.provider)]
                    # Never during a benchmark: passing progress on would disturb it.
                    on_progress = self._progress if call.command == "tune" else None
                    ended = await client.run(words, on_progress)
                    if ended.code not in (0, EXIT_CHECK_FAILED) or not ended.stdout.strip():
                        raise failure_of(call.command, ended, device)
                    record: Any = read_record(call.record, ended.stdout, where=device.address)
                    self._found(**{_FIELDS[call.record]: record})
                if (fetched := job.fetch(self._number, record)) is not None:
                    self._enter("fetch")
                    await client.get(fetched.name, fetched.path, fetched.size_bytes)


def _printable(text: str | None) -> Any:
    """Return a text without control characters, which a terminal obeys."""
    return text and "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
