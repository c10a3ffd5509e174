"""The program on the device: one job, and its end when the client is lost.

This file is not installed there: its text is sent through the SSH connection to the device's own
Python (3.7 or newer, the standard library alone), which executes it.

SSH does not tell a command without a terminal that the connection ended. So this program watches
its standard input: at its end, after `SILENCE_S` without a byte, or on a signal it stops every
process of the job and removes the job's folder. A waiting client sends an empty line now and then.

Requests and answers are one line of JSON each, `{"do": NAME, ...}`, then `size` bytes. The first
answer follows the line `GREETING`, as a device may print a welcome.

    greet    make the job's folder; answer the facts about this device
    put      write a file to that folder
    prepare  lock an environment; answer if it is complete
    complete mark it as complete; an incomplete one is removed at the end
    run      run a command to its end; answer its exit code and output; before that, any number of
             answers with its progress
    get      send a piece of a file of that folder
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

GREETING = "resdeploy remote job 1"
SILENCE_S = 60.0

_CHUNK_BYTES = 1 << 16
_TAIL_BYTES = 8192
_GRACE_S = 3.0
_TICK_S = 0.5
_SHORT_TICK_S = 0.02
# The mark of a line of progress on stderr, and the shortest time between two that are passed on.
_PROGRESS = b"progress: "
_PROGRESS_S = 1.0
_COMPLETE = "resdeploy-complete"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ClientLostError(Exception):
    """The client disconnected, fell silent, or asked the job to stop."""


class Requests:
    """Standard input, by line or by size; its end raises `ClientLostError`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._held = b""

    def line(self) -> bytes:
        """Return the next line that is not empty."""
        while True:
            while b"\n" not in self._held:
                self._wait()
            line, _, self._held = self._held.partition(b"\n")
            if line:
                return line

    def take(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes, in pieces."""
        while size:
            if not self._held:
                self._wait()
            piece, self._held = self._held[:size], self._held[size:]
            size -= len(piece)
            yield piece

    def read(self) -> None:
        """Read the available bytes."""
        piece = os.read(self.descriptor, _CHUNK_BYTES)
        if not piece:
            raise ClientLostError
        self._held += piece

    def _wait(self) -> None:
        if not select.select([self.descriptor], [], [], SILENCE_S)[0]:
            raise ClientLostError
        self.read()


class RemoteJob:
    """One job: its folder, its environment, and its process."""

    def __init__(self, requests: Requests, answers: IO[bytes]) -> None:
        self._requests = requests
        self._answers = answers
        self._cache = ""
        self._folder: str | None = None
        self._incomplete: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._locks: list[IO[str]] = []

    def serve(self) -> None:
        """Answer requests until there are no more."""
        methods = (self._greet, self._put, self._prepare, self._complete, self._run, self._get)
        handlers: dict[str, Callable[..., None]] = {m.__name__[1:]: m for m in methods}
        while True:
            request = json.loads(self._requests.line())
            try:
                handlers[request.pop("do")](**request)
            except OSError as error:
                self._say(failed=error.strerror or str(error), where=error.filename)

    def clean_up(self) -> None:
        """Stop the process, and remove the job's folder and an incomplete environment."""
        if self._process is not None:
            _stop(self._process)
        for folder in (self._folder, self._incomplete):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _say(self, payload: bytes = b"", **content: Any) -> None:
        try:
            self._answers.write(json.dumps(dict(content, size=len(payload))).encode() + b"\n")
            self._answers.write(payload)
            self._answers.flush()
        except OSError as error:
            raise ClientLostError from error

    def _greet(self, cache: str | None) -> None:
        default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "resdeploy")
        self._cache = os.path.abspath(os.path.expanduser(cache or default))
        jobs = os.path.join(self._cache, "jobs")
        os.makedirs(jobs, mode=0o700, exist_ok=True)
        # One job at a time removes the folders that a power cut left behind.
        with open(os.path.join(self._cache, "lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in os.listdir(jobs):
                _remove_if_abandoned(os.path.join(jobs, name))
            self._folder = tempfile.mkdtemp(dir=jobs)
            self._lock(os.path.join(self._folder, ".lock"))
        self._say(
            folder=self._folder,
            executable=sys.executable,
            python_version=list(sys.version_info[:3]),
            machine=platform.machine(),
        )

    def _put(self, name: str, size: int) -> None:
        """Write a file; if that fails, skip to the next request."""
        path = os.path.join(str(self._folder), name)
        pieces = self._requests.take(size)
        digest = hashlib.sha256()
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                for piece in pieces:
                    digest.update(piece)
                    file.write(piece)
        except OSError:
            for _ in pieces:
                pass
            raise
        self._say(sha256=digest.hexdigest())

    def _prepare(self, name: str) -> None:
        folder = os.path.join(self._cache, "environments", name)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._lock(f"{folder}.lock")
        complete = os.path.exists(os.path.join(folder, _COMPLETE))
        if not complete:
            self._incomplete = folder
        self._say(folder=folder, complete=complete)

    def _complete(self) -> None:
        with open(os.path.join(str(self._incomplete), _COMPLETE), "w"):
            pass
        self._incomplete = None
        self._say()

    def _lock(self, path: str) -> None:
        """Lock a file until this process ends, however it ends."""
        lock = open(path, "w")  # noqa: SIM115
        self._locks.append(lock)
        while not _locked(lock):
            # Not by a lock that waits: the end of the input must be noticed.
            if select.select([self._requests.descriptor], [], [], _TICK_S)[0]:
                self._requests.read()

    def _get(self, name: str, start: int, most_bytes: int) -> None:
        with open(os.path.join(str(self._folder), name), "rb") as file:
            file.seek(start)
            piece = file.read(most_bytes)
        self._say(piece)

    def _run(
        self, command: list[str], most_bytes: int, environment: dict[str, str] | None = None
    ) -> None:
        self._process = process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            env=dict(os.environ, PYTHONUTF8="1", **(environment or {})),
            # A session, and so a group, of its own: all of it can be stopped at once.
            start_new_session=True,
            preexec_fn=_end_with_parent,  # safe, as there are no threads here
        )
        output, tail = self._follow(process, most_bytes)
        too_much = len(output) > most_bytes
        code = None if too_much else process.wait()
        _stop(process)
        self._process = None
        stderr = bytes(tail).decode("utf-8", "replace")
        self._say(b"" if too_much else bytes(output), code=code, stderr=stderr)

    def _follow(
        self, process: subprocess.Popen[bytes], most_bytes: int
    ) -> tuple[bytearray, bytearray]:
        """Return the output of a process until it ends, and the tail of its stderr."""
        assert process.stdout is not None
        assert process.stderr is not None
        output, tail = bytearray(), bytearray()
        kept = {process.stdout.fileno(): output, process.stderr.fileno(): tail}
        last_read = last_sent = time.monotonic()
        while len(output) <= most_bytes:
            ended = process.poll() is not None
            if ended and not kept:
                break
            # Both outputs closed: the end is near, and select cannot see it.
            tick = _TICK_S if kept else _SHORT_TICK_S
            ready, _, _ = select.select([self._requests.descriptor, *kept], [], [], tick)
            if ended and not set(ready) & set(kept):
                break
            if self._requests.descriptor in ready:
                self._requests.read()
                last_read = time.monotonic()
            elif time.monotonic() - last_read > SILENCE_S:
                raise ClientLostError
            for descriptor in [d for d in kept if d in ready]:
                piece = os.read(descriptor, _CHUNK_BYTES)
                kept[descriptor] += piece
                if not piece:
                    del kept[descriptor]
            del tail[:-_TAIL_BYTES]
            last = bytes(tail).rpartition(b"\n")[0].rpartition(b"\n")[2]
            if last.startswith(_PROGRESS) and time.monotonic() - last_sent >= _PROGRESS_S:
                last_sent = time.monotonic()
                self._say(progress=last[len(_PROGRESS) :].decode("utf-8", "replace"))
        return output, tail


def _remove_if_abandoned(folder: str) -> None:
    with contextlib.suppress(OSError), open(os.path.join(folder, ".lock"), "w") as lock:
        if _locked(lock):
            shutil.rmtree(folder, ignore_errors=True)


def _locked(file: IO[str]) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _end_with_parent() -> None:
    """Ask Linux to kill this process if the remote job is killed, and so cannot stop it."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End every process of the group: by SIGTERM, then by SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(process.pid, number)
        end = time.monotonic() + _GRACE_S
        while time.monotonic() < end:
            process.poll()  # else an ended process would still count
            if not _signal_group(process.pid, 0):
                return
            time.sleep(_SHORT_TICK_S)


def _signal_group(group: int, number: int) -> bool:
    """Send a signal, or 0 for none, to a process group; return True unless it is empty."""
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.killpg(group, number)
        return True
    return False


def main() -> None:
    """Run one job."""

    def leave(*_: Any) -> None:
        raise ClientLostError

    endings = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    for number in endings:
        signal.signal(number, leave)
    answers = os.fdopen(os.dup(1), "wb")
    # Nothing else may write between the answers.
    os.dup2(2, 1)
    job = RemoteJob(Requests(0), answers)
    try:
        answers.write(f"\n{GREETING}\n".encode())
        answers.flush()
        job.serve()
    except (ClientLostError, OSError):
        pass
    finally:
        for number in endings:
            signal.signal(number, signal.SIG_IGN)
        job.clean_up()


if __name__ == "__main__":
    main()
