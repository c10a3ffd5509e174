"""What runs on the device: it keeps one job, and ends it when whoever asked for it has gone.

This file is not installed there: its text is sent through the SSH connection to the device's own
Python (3.7 or newer, the standard library alone), which executes it.

A command that SSH starts without a terminal is not told when the connection ends. So the keeper
watches its standard input. When that ends, or nothing has come for `SILENCE_S`, or it is asked to
end by a signal, it stops every process of the job, and removes the job's folder. The other side
writes an empty line now and then, while it waits.

Each request is one line of JSON, `{"do": NAME, ...}`, and bytes after it where `size` says so; each
answer likewise. The first answer follows the line `GREETING`, as a device may print a welcome.

    greet    make the job's folder; say what this device is
    put      write a file to that folder
    prepare  lock an environment; say whether it is complete
    complete say that it is now; what is not complete at the end is removed
    run      run a command to its end; answer its exit code and output; before that, any number of
             answers that say how far it is
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

GREETING = "resdeploy keeper 1"
SILENCE_S = 60.0

_CHUNK_BYTES = 1 << 16
_TAIL_BYTES = 8192
_GRACE_S = 3.0
_TICK_S = 0.5
_SHORT_TICK_S = 0.02
# What a command writes to its second output to say how far it is, and how often that is passed on.
_PROGRESS = b"progress: "
_PROGRESS_S = 1.0
_COMPLETE = "resdeploy-complete"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class GoneError(Exception):
    """Whoever asked has gone, or wants an end."""


class Requests:
    """Standard input, whose end is noticed."""

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

    def hear(self) -> None:
        """Read what is there."""
        heard = os.read(self.descriptor, _CHUNK_BYTES)
        if not heard:
            raise GoneError
        self._held += heard

    def _wait(self) -> None:
        if not select.select([self.descriptor], [], [], SILENCE_S)[0]:
            raise GoneError
        self.hear()


class Keeper:
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
        handlers: dict[str, Callable[..., None]] = {
            "greet": self._greet,
            "put": self._put,
            "prepare": self._prepare,
            "complete": self._complete,
            "run": self._run,
            "get": self._get,
        }
        while True:
            request = json.loads(self._requests.line())
            try:
                handlers[request.pop("do")](**request)
            except OSError as error:
                self._say(failed=error.strerror or str(error), where=error.filename)

    def clean_up(self) -> None:
        """Stop what runs, and remove what is not to stay."""
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
            raise GoneError from error

    def _greet(self, cache: str | None) -> None:
        self._cache = os.path.abspath(os.path.expanduser(cache or _default_cache()))
        jobs = os.path.join(self._cache, "jobs")
        os.makedirs(jobs, mode=0o700, exist_ok=True)
        # Only one at a time looks for what a power cut left behind.
        with open(os.path.join(self._cache, "lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in os.listdir(jobs):
                _remove_if_abandoned(os.path.join(jobs, name))
            self._folder = tempfile.mkdtemp(dir=jobs)
            self._lock(os.path.join(self._folder, ".lock"), wait=False)
        self._say(
            folder=self._folder,
            executable=sys.executable,
            python_version=list(sys.version_info[:3]),
            machine=platform.machine(),
        )

    def _put(self, name: str, size: int) -> None:
        """Write a file; where that fails, read on to where the next request begins."""
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
        self._lock(f"{folder}.lock", wait=True)
        complete = os.path.exists(os.path.join(folder, _COMPLETE))
        if not complete:
            self._incomplete = folder
        self._say(folder=folder, complete=complete)

    def _complete(self) -> None:
        with open(os.path.join(str(self._incomplete), _COMPLETE), "w"):
            pass
        self._incomplete = None
        self._say()

    def _lock(self, path: str, wait: bool) -> None:
        """Lock a file until this process ends, however it ends."""
        lock = open(path, "w")  # noqa: SIM115
        self._locks.append(lock)
        while not _locked(lock):
            if not wait:
                raise OSError(f"{path} is locked")
            # Not by a lock that waits: the end of the input must be noticed.
            if select.select([self._requests.descriptor], [], [], _TICK_S)[0]:
                self._requests.hear()

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
        self._say(
            b"" if too_much else bytes(output),
            code=code,
            stderr=bytes(tail).decode("utf-8", "replace"),
        )

    def _follow(
        self, process: subprocess.Popen[bytes], most_bytes: int
    ) -> tuple[bytearray, bytearray]:
        """Return what a process writes until it ends, of its second output the last of it."""
        assert process.stdout is not None
        assert process.stderr is not None
        output, tail = bytearray(), bytearray()
        kept = {process.stdout.fileno(): output, process.stderr.fileno(): tail}
        heard = told = time.monotonic()
        while len(output) <= most_bytes:
            ended = process.poll() is not None
            if ended and not kept:
                break
            # Without outputs nothing tells of the end, which is near.
            tick = _TICK_S if kept else _SHORT_TICK_S
            ready, _, _ = select.select([self._requests.descriptor, *kept], [], [], tick)
            if ended and not set(ready) & set(kept):
                break
            if self._requests.descriptor in ready:
                self._requests.hear()
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_S:
                raise GoneError
            for descriptor in [d for d in kept if d in ready]:
                piece = os.read(descriptor, _CHUNK_BYTES)
                kept[descriptor] += piece
                if not piece:
                    del kept[descriptor]
            del tail[:-_TAIL_BYTES]
            last = bytes(tail).rpartition(b"\n")[0].rpartition(b"\n")[2]
            if last.startswith(_PROGRESS) and time.monotonic() - told >= _PROGRESS_S:
                told = time.monotonic()
                self._say(progress=last[len(_PROGRESS) :].decode("utf-8", "replace"))
        return output, tail


def _default_cache() -> str:
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "resdeploy")


def _remove_if_abandoned(folder: str) -> None:
    with contextlib.suppress(OSError), open(os.path.join(folder, ".lock"), "w") as lock:
        if _locked(lock):
            shutil.rmtree(folder, ignore_errors=True)


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end_with_parent() -> None:
    """Ask Linux to kill this process when the keeper is killed and can stop nothing."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End every process of the group: asked first, and then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(process.pid, number)
        end = time.monotonic() + _GRACE_S
        while time.monotonic() < end:
            process.poll()  # or what has ended would still count as there
            if not _signal_group(process.pid, 0):
                return
            time.sleep(_SHORT_TICK_S)


def _signal_group(group: int, number: int) -> bool:
    """Send a signal, or 0 for none, to a group; return whether there is anyone in it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def main() -> None:
    """Keep one job."""

    def leave(*_: Any) -> None:
        raise GoneError

    endings = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    for number in endings:
        signal.signal(number, leave)
    answers = os.fdopen(os.dup(1), "wb")
    # Nothing else may write between the answers.
    os.dup2(2, 1)
    keeper = Keeper(Requests(0), answers)
    try:
        answers.write(f"\n{GREETING}\n".encode())
        answers.flush()
        keeper.serve()
    except (GoneError, OSError):
        pass
    finally:
        for number in endings:
            signal.signal(number, signal.SIG_IGN)
        keeper.clean_up()


if __name__ == "__main__":
    main()
