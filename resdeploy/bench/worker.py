"""Benchmark process: a job on standard input, records on standard output.

    echo JOB | python -m resdeploy.bench.worker

The job is one line, a `BenchJob`. Each line of the answer is an object with a `kind`: "progress",
"ready" and "burst" (of a job in bursts), at the end "result" or "failure". Of a job in bursts each
further line of input is a number of runs to time, after the word "bound" where input and output
stay in device memory; the end of the input ends it.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from resdeploy.bench.measure import TimedRunner, check_spec, collector_off, measure, set_up
from resdeploy.errors import ReportedError
from resdeploy.files import file_info
from resdeploy.machine.state import peak_ram_bytes
from resdeploy.schema.benchmarks import BenchJob, BenchSide
from resdeploy.schema.codec import from_json, to_json

if TYPE_CHECKING:
    from resdeploy.verify.golden_file import Golden

__all__ = ["main", "own_standard_output"]

# Often enough for a progress bar, and seldom enough not to be felt in the times.
_PROGRESS_S = 0.2


def main() -> None:
    """Do the job on standard input."""
    answers = own_standard_output()
    job = from_json(BenchJob, json.loads(sys.stdin.readline()), where="the job")

    def say(kind: str, **content: Any) -> None:
        answers.write(json.dumps({"kind": kind, **content}, allow_nan=False) + "\n")
        answers.flush()

    try:
        if job.in_bursts:
            _serve(job, say)
        else:
            _measure(job, say)
    except ReportedError as error:
        say(
            "failure",
            error=type(error).__name__,
            what=error.what,
            where=error.where,
            fix=error.fix,
            notes=getattr(error, "__notes__", []),
        )


def own_standard_output() -> TextIO:
    """Return standard output, and send what the runtime prints there to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _measure(job: BenchJob, say: Any) -> None:
    last = time.monotonic()

    def on_run(num_done: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > _PROGRESS_S:
            last = now
            say("progress", done=num_done)

    assert job.model is not None
    result = measure(Path(job.model), job.spec, on_run=on_run, prove_placement=job.prove_placement)
    say("result", result=to_json(result))


def _serve(job: BenchJob, say: Any) -> None:
    check_spec(job.spec)
    model = None if job.model is None else Path(job.model)
    golden = None
    if job.golden is not None:
        from resdeploy.verify.golden_file import load_golden  # noqa: PLC0415 - for few jobs

        golden = load_golden(Path(job.golden))
    stand = set_up(model, job.spec, inputs=None if golden is None else golden.inputs)
    if job.prove_placement:
        stand.runner.prove(stand.values)
    with collector_off():
        stand.settle(stand.once)
        launches: dict[str, Callable[[], object]] = {"": stand.once}
        if job.spec.num_bound_runs:
            launches["bound"] = stand.bind()
            stand.settle(launches["bound"])
        file = stand.runner.file
        side = BenchSide(
            spec=job.spec,
            model=None if file is None else file_info(file, relative_to=file.parent),
            session=stand.runner.info,
            options=stand.runner.options,
            rel_l2=None if golden is None else _rel_l2(stand, golden),
        )
        say("ready", side=to_json(side))
        for line in sys.stdin:
            where, _, number = line.rpartition(" ")
            num_runs = int(number)
            latencies_ns = [stand.time(launches[where]) for _ in range(num_runs)]
            say("burst", latencies_ns=latencies_ns, ram_peak_bytes=peak_ram_bytes())


def _rel_l2(stand: TimedRunner, golden: "Golden") -> float | None:
    """Return the relative L2 distance of the outputs to the reference; None if not finite."""
    from resdeploy.verify.compare import tensor_diff  # noqa: PLC0415 - as above
    from resdeploy.verify.named_outputs import float_columns  # noqa: PLC0415

    num = min(len(stand.values), len(golden.inputs))
    with stand.runner.errors():
        outputs = [np.asarray(y)[:num] for y in stand.once()]
    found = tensor_diff(float_columns(outputs, golden.info.outputs), golden.finite[:num]).rel_l2
    return found if math.isfinite(found) else None


if __name__ == "__main__":
    main()
