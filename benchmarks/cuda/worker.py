"""The process of one case: it does it, and writes the outcome.

python -m benchmarks.cuda.worker    a task on standard input, the outcome on standard output
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cuda.models import Files, make_model
from benchmarks.cuda.plan import peers_of, settings_of
from benchmarks.cuda.records import Case, Form, Outcome, RunSpec, Timed
from resdeploy.bench.in_turn import Contender, TimedSide, time_those_that_run
from resdeploy.errors import ReportedError
from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.codec import Record, dump_json, from_json, record
from resdeploy.schema.verdicts import VerifyReport

__all__ = ["Task", "main"]

# Enough to see a kernel that adds in the order in which its threads happen to end.
_NUM_REPETITIONS = 10

# Of each process in a block; few, as up to 17 take turns.
_NUM_BURSTS = 4

_GPU_MATRIX, _GPU_COPY_BYTES = 8192, 1 << 30
_CPU_MATRIX, _CPU_COPY_BYTES = 512, 1 << 26


@record
class Task(Record):
    """A case, what decides its numbers, and where the models are.

    Of those timed in turn, "settings" and "peers", `start_limit_s` is how long one may take to be
    ready, and `all_started_s` all of them together.
    """

    case: Case
    spec: RunSpec
    folder: str
    start_limit_s: float = 240.0
    all_started_s: float = 420.0
    skip_peers: tuple[str, ...] = ()


def main() -> None:
    """Do the task that standard input tells."""
    from resdeploy.bench.worker import own_standard_output

    answers = own_standard_output()
    task = from_json(Task, json.loads(sys.stdin.readline()), where="the task")
    try:
        outcome = _DOES[task.case.kind](task)
    except ReportedError as error:
        outcome = Outcome(case=task.case, failure=str(error))
    except Exception as error:  # of torch or the runtime: this case alone fails
        what = str(error).strip().partition("\n")[0]
        failure = f"{type(error).__name__}: {what}"
        outcome = Outcome(case=task.case, failure=failure)
    answers.write(dump_json(outcome, indent=None) + "\n")
    answers.flush()


def _stage(name: str) -> None:
    """Say on standard error what is being done: the last line is what a killed process was at."""
    print(name, file=sys.stderr, flush=True)


def _device(provider: str) -> str:
    return "cuda" if provider in ("cuda", "tensorrt") else "cpu"


def _measure_ceilings(task: Task) -> Outcome:
    from benchmarks.cuda.roofline import measure_ceilings

    device = _device(task.spec.provider)
    size, copy_bytes = (
        (_CPU_MATRIX, _CPU_COPY_BYTES) if device == "cpu" else (_GPU_MATRIX, _GPU_COPY_BYTES)
    )
    ceilings = measure_ceilings(device, matrix_size=size, copy_bytes=copy_bytes)
    return Outcome(case=task.case, ceilings=ceilings)


def _make(task: Task) -> Outcome:
    files = _files(task)
    make_model(files, task.case.network, task.case.form, task.spec, on_stage=_stage)
    work = files.read_work() if task.case.form == "float32" else None
    return Outcome(case=task.case, work=work)


def _verify(task: Task) -> Outcome:
    """Return the verdict as `resdeploy verify --provider` gives it, as far as the case asks."""
    from resdeploy.api.verify import reference_or_reason
    from resdeploy.export.source import load_source
    from resdeploy.schema.recipes import SourceSpec
    from resdeploy.session.session import open_session
    from resdeploy.verify.golden_file import load_golden
    from resdeploy.verify.outputs import judge_session_outputs
    from resdeploy.verify.verdict import judge_model

    case, files = task.case, _files(task)
    assert case.session is not None
    golden, model = load_golden(files.golden), files.model(case.form)
    _stage("open the session")
    session = open_session(model, case.session)
    if case.thorough:
        _stage("float64 reference")
        source = load_source(SourceSpec(path=str(files.checkpoint)))
        report = judge_model(
            model, reference_or_reason(source, golden), golden, [session], on_stage=_stage
        )
    else:
        _stage("run, and look where the kernels were")
        report = judge_session_outputs(model, golden, [session], precision=case.arithmetic)
    _stage("run again and again")
    return Outcome(case=case, verify=_with_repetitions(report, session, golden.inputs))


def _with_repetitions(report: VerifyReport, session: Any, inputs: Any) -> VerifyReport:
    """Return `report` with what the same run again and again gave: the same bits, or not."""
    from resdeploy.session.run import run_session
    from resdeploy.verify.conformance_evidence import judge_conformance

    runs = [run_session(session, inputs, batch_size=len(inputs)) for _ in range(_NUM_REPETITIONS)]
    again = judge_conformance(
        batches={},
        levels={},
        stress={},
        runs=runs,
        missing=("batches, graph levels and odd values: looked at in the plain session",),
    )
    (verdict,) = report.verdicts
    if (found := verdict.conformance) is not None:
        again = dataclasses.replace(
            found,
            deterministic=found.deterministic and again.deterministic,
            max_run_to_run=max(found.max_run_to_run, again.max_run_to_run),
        )
    return dataclasses.replace(report, verdicts=(dataclasses.replace(verdict, conformance=again),))


def _bench(task: Task) -> Outcome:
    from resdeploy.bench.process import bench

    case = task.case
    assert case.session is not None
    num_runs = task.spec.runs_for(case.batch_size)
    result = bench(
        _files(task).model(case.form),
        BenchSpec(
            session=case.session,
            batch_size=case.batch_size,
            max_warmup=2 * num_runs,
            num_runs=num_runs,
            num_bound_runs=num_runs,
        ),
    )
    return Outcome(case=case, bench=result)


def _time_settings(task: Task) -> Outcome:
    model = _files(task).model(task.case.form)
    return _in_turn(task, settings_of(task.spec.provider, task.case.form, model))


def _time_peers(task: Task) -> Outcome:
    files = _files(task)
    forms: tuple[Form, ...] = ("float32", "float16", "int8")
    models = {form: files.model(form) for form in forms}
    peers = peers_of(task.spec.provider, files.checkpoint, models)
    return _in_turn(
        task, {name: one for name, one in peers.items() if not name.startswith(task.skip_peers)}
    )


def _in_turn(task: Task, contenders: Mapping[str, Contender]) -> Outcome:
    num_runs = task.spec.runs_for(task.case.batch_size)
    names = list(contenders)
    found = time_those_that_run(
        [
            (
                model,
                dataclasses.replace(
                    spec,
                    batch_size=task.case.batch_size,
                    max_warmup=2 * num_runs,
                    num_runs=num_runs,
                    num_bound_runs=num_runs,
                ),
            )
            for model, spec in contenders.values()
        ],
        golden=_files(task).golden,
        num_bursts=_NUM_BURSTS,
        last_first=task.case.block % 2 == 1,
        limit_s=task.start_limit_s,
        all_started_s=task.all_started_s,
        on_stage=lambda place: _stage(names[place]),
    )
    timed = tuple(map(_timed, names, found))
    failure = None
    if not any(one.device_ns for one in timed):
        failure = f"none of {len(timed)} could be timed; {timed[0].name}: {timed[0].failure}"
    return Outcome(case=task.case, timed=timed, failure=failure)


def _timed(name: str, found: TimedSide | Exception) -> Timed:
    if isinstance(found, Exception):
        return Timed(name=name, failure=str(found))
    return Timed(
        name=name,
        host_ns=tuple(itertools.chain(*found.bursts_ns)),
        device_ns=tuple(itertools.chain(*found.bound_bursts_ns)),
        rel_l2=found.side.rel_l2,
        options=found.side.options,
    )


def _files(task: Task) -> Files:
    return Files.of(Path(task.folder), task.case.network, task.spec)


_DOES: dict[str, Callable[[Task], Outcome]] = {
    "ceilings": _measure_ceilings,
    "model": _make,
    "verify": _verify,
    "bench": _bench,
    "settings": _time_settings,
    "peers": _time_peers,
}

if __name__ == "__main__":
    main()
