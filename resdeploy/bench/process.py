"""Benchmark processes, each fresh, for one job: start, answers, the explanation of a death."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import resdeploy
from resdeploy import errors
from resdeploy.bench.measure import check_spec
from resdeploy.errors import EnvironmentLacksError, MissingExtraError, ReportedError
from resdeploy.schema.benchmarks import BenchJob, BenchResult, BenchSpec
from resdeploy.schema.codec import from_json, to_json

__all__ = ["BenchProcess", "bench", "slow_warnings"]

_STOP_TIMEOUT_S = 5.0


def bench(
    model: Path,
    spec: BenchSpec,
    *,
    on_run: Callable[[int], None] | None = None,
    prove_placement: bool = True,
) -> BenchResult:
    """Time `model` in a process of its own, which has nothing loaded but the runtime.

    Memory, thread pools and caches of an earlier session would change a later one, and its peak
    memory would include theirs.

    Args:
        model: an ONNX file with one float input whose only dynamic dimension, if any, is the
            first.
        spec: session, batch size, numbers of runs, scenario.
        on_run: called with the number of runs done, now and then.
        prove_placement: check the kernels of a profile of one further run.

    Raises:
        ResdeployError: the numbers of `spec` are out of range, or the model cannot be read or
            cannot be timed with this batch size.
        ProviderError: the provider did not start, failed, or left kernels to another.
        EnvironmentLacksError: the process was killed.
    """
    check_spec(spec)
    job = BenchJob(model=str(model), spec=spec, prove_placement=prove_placement)
    with BenchProcess(job) as process:
        while (answer := process.receive())["kind"] == "progress":
            if on_run is not None:
                on_run(answer["done"])
        result = from_json(BenchResult, answer["result"], where="the benchmark process")
        return dataclasses.replace(result, warnings=slow_warnings(process.printed))


class BenchProcess:
    """A fresh interpreter for one job, ended with the block."""

    def __init__(self, job: BenchJob, *, limit_s: float = math.inf) -> None:
        """Take the job, and the longest wait for an answer in seconds."""
        runner = job.spec.runner
        self._python = runner.python or sys.executable
        unnamed = dataclasses.replace(job.spec, runner=dataclasses.replace(runner, python=None))
        self._job = dataclasses.replace(job, spec=unnamed)
        self._limit_s = limit_s

    def __enter__(self) -> Self:
        package = str(Path(resdeploy.__file__).parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        # Its prints, from C too; a file, as no thread empties a pipe while it runs.
        self._printed = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            # -P: a numpy.py in the current folder is not what is meant.
            [self._python, "-P", "-m", "resdeploy.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            text=True,
            encoding="utf-8",
        )
        self.send(json.dumps(to_json(self._job)))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        process = self._process
        try:
            if process.stdin is not None:
                process.stdin.close()
            if kind is not None:
                process.kill()
            process.wait(timeout=_STOP_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        finally:
            if process.stdout is not None:
                process.stdout.close()
            self._printed.close()

    @property
    def printed(self) -> str:
        """Its prints so far."""
        self._printed.seek(0)
        return self._printed.read().decode(errors="replace")

    def send(self, line: str) -> None:
        """Write one line to the process; if it has died, `receive` raises."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            ReportedError: the error that the process reported.
            EnvironmentLacksError: the process was killed, or did not answer in time.
            RuntimeError: it ended for a reason that only a bug explains.
        """
        assert self._process.stdout is not None
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self._process.kill()

        with ExitStack() as stack:
            if math.isfinite(self._limit_s):
                timer = threading.Timer(self._limit_s, end)
                timer.start()
                stack.callback(timer.cancel)
            line = self._process.stdout.readline()
        if not line.endswith("\n"):
            if is_late.is_set():
                raise EnvironmentLacksError(
                    f"The process gave no answer within {self._limit_s:.0f} s.", where=self._where
                )
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if answer["kind"] == "failure":
            raise _as_it_was(answer)
        return answer

    @property
    def _where(self) -> str | None:
        return self._job.model or self._job.spec.runner.source.factory

    def _death(self) -> Exception:
        code = self._process.wait()
        printed = self.printed.strip()
        if code < 0:
            name = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")
            why = _KILLED_BY.get(name, "")
            killed = EnvironmentLacksError(
                f"The process that timed the model was killed by {name}{why}; nothing was timed.",
                where=self._where,
                fix="try a smaller --batch, another --provider or another version of onnxruntime",
            )
            killed.add_note(printed)
            return killed
        if missing := re.search(r"The package '(\w+)' is not installed", printed):
            return MissingExtraError(missing[1], extra="cpu")
        return RuntimeError(f"the benchmark process ended with code {code}\n{printed}")


_KILLED_BY = {
    "SIGKILL": ", as happens where memory runs out",
    "SIGILL": ": the runtime uses an instruction that this processor lacks",
    "SIGSEGV": " inside the runtime",
    "SIGABRT": " inside the runtime",
    "SIGBUS": ", as happens where memory or disk runs out",
}


def _as_it_was(answer: dict[str, Any]) -> ReportedError:
    """Return the error that a process reported, of the class it had there."""
    kind = getattr(errors, answer["error"], ReportedError)
    if kind is MissingExtraError:
        kind = EnvironmentLacksError  # whose message is made already
    error: ReportedError = kind(answer["what"], where=answer["where"], fix=answer["fix"])
    for note in answer["notes"]:
        error.add_note(note)
    return error


def slow_warnings(printed: str) -> tuple[str, ...]:
    """Return the runtime's own warnings of slow operators.

    CUDA's Conv prints one where cuDNN has no plan for it: "OP Conv(name) running in Fallback mode.
    May be extremely slow."
    """
    found = re.findall(r"OP (\S+ running in Fallback mode)", printed)
    return tuple(dict.fromkeys(found))
