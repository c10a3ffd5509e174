"""Comparison with a saved result: weaker evidence than timing both in turn."""

import math
from pathlib import Path

from resdeploy.errors import ResdeployError
from resdeploy.schema.benchmarks import (
    BenchBlock,
    BenchComparison,
    BenchReport,
    BenchResult,
    BenchSide,
)
from resdeploy.schema.codec import load_json
from resdeploy.statistics.latency import STABLE_SHIFT_LIMIT
from resdeploy.statistics.paired import CONFIDENCE, ratio_of_single_runs
from resdeploy.statistics.quantiles import runs_needed

__all__ = ["compare_with_saved", "load_result"]


def load_result(path: Path) -> BenchResult:
    """Return the one result of a file that `bench --json` wrote.

    Raises:
        ResdeployError: there is no such file, or it holds something else, or several results.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResdeployError(f"The result cannot be read: {error}.", where=str(path)) from error
    report = load_json(BenchReport, text, where=str(path))
    if len(report.results) != 1:
        raise ResdeployError(
            f"The file holds {len(report.results)} results; one can be compared with.",
            where=str(path),
            fix="save a result of one batch size and one number of threads",
        )
    return report.results[0]


def compare_with_saved(
    candidate: BenchResult, baseline: BenchResult, *, max_slowdown: float | None = None
) -> BenchComparison:
    """Return the ratio of two results that were not measured in turn.

    Each is one process in a minute of its own, whose effect on its times cannot be seen from
    inside. The interval over runs is therefore widened, on both sides, by `STABLE_SHIFT_LIMIT`: a
    run that moves by less within itself still counts as stable, so two runs that differ by less may
    be the same. Where one of them was not even stable, or they come from different machines, the
    interval says nothing at all: from 0 to infinity.

    Raises:
        ResdeployError: the two did not do the same: batch size, input shape or scenario differ.
    """
    for name, new, old in (
        ("scenario", candidate.spec.scenario, baseline.spec.scenario),
        ("rate of queries", candidate.spec.qps, baseline.spec.qps),
        ("input shape", candidate.input_shape, baseline.input_shape),
    ):
        if new != old:
            raise ResdeployError(
                f"The {name} is {new}, and of the saved result {old}: no ratio compares them.",
                fix="save a result with the same options",
            )
    worthless = tuple(_worthless(candidate, baseline))
    both = (candidate.latencies_ns, baseline.latencies_ns)
    too_few = tuple(
        f"too few runs for p99: {len(runs_ns)} of the {name} result, it takes some {needed}"
        for name, runs_ns in zip(("new", "saved"), both, strict=True)
        if (needed := runs_needed(runs_ns, 99)) > len(runs_ns)
    )
    sides = [
        BenchSide(spec=result.spec, model=result.model, session=result.session)
        for result in (candidate, baseline)
    ]
    unknown = math.inf if worthless else STABLE_SHIFT_LIMIT
    p50, p99 = (ratio_of_single_runs(*both, q, unknown=unknown) for q in (50, 99))
    block = BenchBlock(
        candidate_ns=(candidate.latencies_ns,),
        baseline_ns=(baseline.latencies_ns,),
        candidate_first=False,
    )
    return BenchComparison(
        candidate=sides[0],
        baseline=sides[1],
        environment=candidate.environment,
        interleaved=False,
        blocks=(block,),
        confidence=CONFIDENCE,
        p50=p50,
        p99=None if too_few else p99,
        max_slowdown=max_slowdown,
        caveats=(
            f"not timed in turn: differences below {STABLE_SHIFT_LIMIT:.0%} do not count",
            *too_few,
            *worthless,
            *_versions_that_differ(candidate, baseline),
        ),
        before=candidate.before,
        after=candidate.after,
    )


def _worthless(candidate: BenchResult, baseline: BenchResult) -> list[str]:
    reasons = [
        f"the {name} result is not stable: {'; '.join(result.unstable_reasons)}"
        for name, result in (("new", candidate), ("saved", baseline))
        if not result.stable
    ]
    new, old = candidate.environment, baseline.environment
    reasons += [
        f"measured on another machine ({name} {now}, then {then})"
        for name, now, then in (
            ("CPU", new.cpu_model, old.cpu_model),
            ("CPUs", new.num_cpus_allowed, old.num_cpus_allowed),
            ("GPUs", new.gpu_names, old.gpu_names),
        )
        if now != then
    ]
    return reasons


def _versions_that_differ(candidate: BenchResult, baseline: BenchResult) -> list[str]:
    new, old = candidate.environment.versions, baseline.environment.versions
    return [
        f"{name} is {new.get(name, 'not installed')}, and was {old.get(name, 'not installed')}"
        for name in sorted({*new, *old})
        if new.get(name) != old.get(name)
    ]
