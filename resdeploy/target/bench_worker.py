"""The process that a benchmark runs in: a job on standard input, records on standard output.

    echo JOB | python -m resdeploy.target.bench_worker

The job is one line, a `BenchJob`. Each line of the answer is an object with a `kind`: "progress",
"ready" and "burst" (of a job in bursts), at the end "result" or "failure". Of a job in bursts each
further line of input is a number of runs to time; the end of the input ends it.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from resdeploy.errors import ReportedError
from resdeploy.files import file_info
from resdeploy.schema.benchmarks import BenchJob, BenchSide
from resdeploy.schema.codec import from_json, to_json
from resdeploy.target.machine import peak_ram_bytes
from resdeploy.target.measure import check_spec, collector_off, measure, prove, set_up

__all__ = ["main", "own_standard_output"]

# Often enough for a progress bar, and seldom enough not to be felt in the times.
_PROGRESS_S = 0.2


def main() -> None:
    """Do the job that standard input tells."""
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

    result = measure(Path(job.model), job.spec, on_run=on_run, prove_placement=job.prove_placement)
    say("result", result=to_json(result))


def _serve(job: BenchJob, say: Any) -> None:
    model = Path(job.model)
    check_spec(job.spec)
    stand = set_up(model, job.spec)
    if job.prove_placement:
        prove(stand)
    with collector_off():
        stand.warm_up()
        side = BenchSide(
            spec=job.spec,
            model=file_info(model, relative_to=model.parent),
            session=stand.session.info,
        )
        say("ready", side=to_json(side))
        for line in sys.stdin:
            latencies_ns = [stand.run() for _ in range(int(line))]
            say("burst", latencies_ns=latencies_ns, ram_peak_bytes=peak_ram_bytes())


if __name__ == "__main__":
    main()
