"""The client of a remote job: sends requests, reads answers, explains a lost connection.

A device's answers are data and nothing else: JSON of limited length.
"""

import asyncio
import hashlib
import json
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from resdeploy.errors import EnvironmentLacksError, ResdeployError
from resdeploy.remote.connection import ssh_arguments
from resdeploy.remote.remote_job import GREETING, SILENCE_S
from resdeploy.schema.codec import from_json
from resdeploy.schema.remotes import DeviceSpec

__all__ = ["MOST_OUTPUT_BYTES", "CompletedCommand", "DeviceInfo", "JobClient", "job_client"]

T = TypeVar("T")

# A result with a million latencies has some 10 MB.
MOST_OUTPUT_BYTES = 64 << 20
_MOST_WELCOME_LINES = 1000
BEAT_S = SILENCE_S / 6
# A remote job sends SIGTERM, 3 seconds later SIGKILL, then removes files.
_STOP_TIMEOUT_S = 15.0
_MOST_PROGRESS_LETTERS = 80
_CHUNK_BYTES = 1 << 18
_PIECE_BYTES = 1 << 22
REMOTE_JOB = Path(__file__).with_name("remote_job.py")
_BOOTSTRAP = "import sys; exec(sys.stdin.buffer.raw.readline())"


@dataclass(frozen=True, slots=True)
class CompletedCommand:
    """A command that ended on the device: its code (negative for a signal) and its output.

    `code` is None where it wrote more than is read; `stderr` is the tail.
    """

    code: int | None
    stdout: bytes
    stderr: str


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Facts about a device from its remote job, and the folder of the job."""

    folder: str
    executable: str
    python_version: tuple[int, ...]
    machine: str


@dataclass(frozen=True, slots=True)
class Environment:
    """A private environment on the device, locked for this job; `complete` if made before."""

    folder: str
    complete: bool


class JobClient:
    """A remote job at work, seen from here."""

    def __init__(self, process: "asyncssh.SSHClientProcess[bytes]", device: DeviceSpec) -> None:
        self._process = process
        self._device = device
        self._greeted = False

    async def greet(self) -> DeviceInfo:
        """Start the remote job, and return the facts about its device."""
        source = json.dumps(REMOTE_JOB.read_text(encoding="utf-8"))
        try:
            async with asyncio.timeout(self._device.connect_timeout_s):
                self._write(f"exec({source})\n".encode())
                for _ in range(_MOST_WELCOME_LINES):
                    if await self._line() == GREETING.encode() + b"\n":
                        break
                else:
                    raise self._nonsense("a welcome without end")
                self._greeted = True
                return await self._ask_for(DeviceInfo, "greet", cache=self._device.cache)
        except TimeoutError as error:
            raise EnvironmentLacksError(
                f"{self._device.python} there has not answered in "
                f"{self._device.connect_timeout_s:g} seconds.",
                where=self._device.address,
                fix="see what the device is busy with; connect_timeout_s of a fleet file is longer",
            ) from error

    async def end(self) -> None:
        """Ask the remote job to stop everything and end, and wait for that."""
        with suppress(Exception):
            self._process.stdin.write_eof()
            # Another program may never end.
            if self._greeted:
                await asyncio.wait_for(self._process.wait_closed(), _STOP_TIMEOUT_S)
        self._process.close()

    async def prepare(self, name: str) -> Environment:
        """Lock the environment of this name, after other jobs that hold it."""
        return await self._ask_for(Environment, "prepare", name=name)

    async def complete(self) -> None:
        """Mark the environment as complete, so that it stays."""
        await self._ask("complete")

    async def put(self, path: Path, name: str) -> None:
        """Copy a file into the folder of the job."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            self._request("put", name=name, size=path.stat().st_size)
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                self._write(chunk)
                with suppress(OSError, asyncssh.Error):
                    await self._process.stdin.drain()
        answer, _ = await self._answer()
        if answer.get("sha256") != digest.hexdigest():
            raise self._nonsense("another digest of a file than was sent")

    async def get(self, name: str, path: Path, size_bytes: int) -> None:
        """Copy a file of `size_bytes` from the folder of the job to `path`."""
        with path.open("xb") as file:
            while (start := file.tell()) < size_bytes:
                most_bytes = min(_PIECE_BYTES, size_bytes - start)
                _, piece = await self._ask("get", name=name, start=start, most_bytes=most_bytes)
                if not 0 < len(piece) <= most_bytes:
                    raise self._nonsense(f"{len(piece)} bytes of {name}")
                file.write(piece)

    async def run(
        self, words: list[str], on_progress: Callable[[str], None] | None = None
    ) -> CompletedCommand:
        """Run a command in the folder of the job, to its end; pass its progress on, if asked."""
        variables = {"RESDEPLOY_PROGRESS": "lines"} if on_progress else {}
        answer, stdout = await self._ask(
            "run", command=words, most_bytes=MOST_OUTPUT_BYTES, environment=variables
        )
        while "progress" in answer:
            text = str(answer["progress"])[:_MOST_PROGRESS_LETTERS]
            if on_progress:
                on_progress("".join(letter for letter in text if letter.isprintable()))
            answer, stdout = await self._answer()
        code, stderr = answer.get("code"), answer.get("stderr")
        if not isinstance(code, int | None) or not isinstance(stderr, str):
            raise self._nonsense(f"{answer!r:.80}")
        return CompletedCommand(code, stdout, stderr)

    async def _ask(self, do: str, **content: Any) -> tuple[dict[str, Any], bytes]:
        self._request(do, **content)
        return await self._answer()

    async def _ask_for(self, kind: type[T], do: str, **content: Any) -> T:
        """Return an answer as a record without control characters."""
        answer, _ = await self._ask(do, **content)
        try:
            found = from_json(kind, answer, where="")
        except ResdeployError as error:
            raise self._nonsense(error.what) from error
        if not all(text.isprintable() for text in answer.values() if isinstance(text, str)):
            raise self._nonsense(f"{answer!r:.80}")
        return found

    def _request(self, do: str, **content: Any) -> None:
        self._write(json.dumps({"do": do, **content}).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        with suppress(OSError):  # the next answer explains a lost device
            self._process.stdin.write(data)

    async def _answer(self) -> tuple[dict[str, Any], bytes]:
        reading = asyncio.ensure_future(self._line())
        try:
            while not (await asyncio.wait({reading}, timeout=BEAT_S))[0]:
                self._write(b"\n")
            line = await reading
        finally:
            reading.cancel()
        try:
            answer = json.loads(line)
            size = answer.pop("size", None)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise self._nonsense(repr(line[:80])) from error
        if not isinstance(size, int) or not 0 <= size <= MOST_OUTPUT_BYTES:
            raise self._nonsense(repr(line[:80]))
        payload = await self._read(size)
        if "failed" in answer:
            raise EnvironmentLacksError(
                f"The device cannot do that: {answer['failed']}.",
                where=f"{self._device.address}: {answer.get('where')}",
                fix="see that there is free space and that this can be read and written; `cache` "
                "in a fleet file names another folder",
            )
        return answer, payload

    async def _line(self) -> bytes:
        with suppress(OSError, asyncssh.Error):
            line = await self._process.stdout.readline()
            if line.endswith(b"\n"):
                return line
            if len(line) > _CHUNK_BYTES:
                raise self._nonsense(repr(line[:80]))
        raise await self._death()

    async def _read(self, size: int) -> bytes:
        with suppress(OSError, asyncssh.Error, asyncio.IncompleteReadError):
            return await self._process.stdout.readexactly(size) if size else b""
        raise await self._death()

    async def _death(self) -> EnvironmentLacksError:
        """Return the reason for a missing answer."""
        process = self._process
        said = ""
        with suppress(OSError, asyncssh.Error, TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait_closed()
                said = (await process.stderr.read(_CHUNK_BYTES)).decode("utf-8", "replace").strip()
        last = said.splitlines()[-1] if said else ""
        if process.exit_status == 127 or "not found" in last:
            what = f"There is no {self._device.python} on the device."
            fix = (
                "install Python 3.11 or newer there, or set `python` or `environment` in a fleet "
                "file"
            )
        elif process.exit_signal is not None:
            what = f"The process on the device was killed by SIG{process.exit_signal[0]}."
            fix = "see there whether memory ran out: dmesg"
        elif process.exit_status is not None:
            what = f"The process on the device ended with code {process.exit_status}: {last or '-'}"
            python = shlex.quote(self._device.python)
            fix = f"see whether its Python works: ssh {ssh_arguments(self._device)} {python} -V"
        else:
            what = "The connection to the device was lost."
            fix = (
                "see whether it is still on and on the network, and run again: the job there ends "
                f"by itself, {SILENCE_S:g} seconds later at the latest"
            )
        return EnvironmentLacksError(what, where=self._device.address, fix=fix)

    def _nonsense(self, found: str) -> EnvironmentLacksError:
        return EnvironmentLacksError(
            f"The device answers something else than was asked for: {found}.",
            where=self._device.address,
            fix="see what its login scripts print and its Python does",
        )


@asynccontextmanager
async def job_client(
    connection: asyncssh.SSHClientConnection, device: DeviceSpec
) -> AsyncIterator[JobClient]:
    """Yield the client of a new remote job; all that it started ends with the block."""
    python = f"{device.environment}/bin/python" if device.environment else device.python
    # In quotes the shell would take ~ as it stands.
    home = "~/" if python.startswith("~/") else ""
    interpreter = home + shlex.quote(python.removeprefix("~/"))
    command = f"exec {interpreter} -c {shlex.quote(_BOOTSTRAP)}"
    try:
        process = await connection.create_process(command, encoding=None)
    except (OSError, asyncssh.Error) as error:
        raise EnvironmentLacksError(
            f"The device does not run commands: {error}.", where=device.address
        ) from error
    client = JobClient(process, device)
    try:
        yield client
    finally:
        await client.end()  # also when cancelled
