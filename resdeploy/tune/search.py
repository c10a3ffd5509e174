"""Search for the fastest way to run a bundle's model on this machine, within an accuracy budget.

Three steps, in this order. Every candidate is first judged by its answers: lossless, it must pass
verification as float32; with an accuracy budget, the whole interval of the drop must be within it.
Those admitted race (`statistics.racing`), each block a fresh process for each, timed in turn. The
winner is then timed once more, against the bundle's model with the provider's defaults, in
processes that had no part in the race: the winner among many was also lucky, and this is the figure
in the report. If it does not hold there, the defaults stay.
"""

import dataclasses
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

from resdeploy.bench.in_turn import bench_in_turn, time_in_turn
from resdeploy.bench.layer_times import read_profile
from resdeploy.bench.measure import set_up
from resdeploy.bundle.check import golden_answers
from resdeploy.bundle.evaluate import LoadSamples, Progress
from resdeploy.bundle.folder import BundleFolder
from resdeploy.bundle.tuned_settings import target_of
from resdeploy.errors import EnvironmentLacksError, ResdeployError
from resdeploy.machine.environment import read_environment
from resdeploy.schema.benchmarks import BenchComparison, Profile
from resdeploy.schema.machines import Environment
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.tunings import TunedSettings, TuneReport, TuneSpec, TuneTrial
from resdeploy.session.providers import find_provider
from resdeploy.session.session import open_session
from resdeploy.statistics.paired import pooled_percentile
from resdeploy.statistics.racing import race
from resdeploy.tune.journal import Journal
from resdeploy.tune.judge import Judge
from resdeploy.tune.space import Candidate, Variant, candidates_for

__all__ = ["tune"]

# The most processes with their model in memory at a time.
_MOST_AT_ONCE = 8

# Pairs of processes of the last comparison.
_FINAL_BLOCKS = 8

_PROFILE_RUNS = 30

# The runs of a process: at least these, and beyond them as many as fit into this time. A network
# of a third of a second would otherwise race for hours, for medians that vary less than a short
# one's.
_FEWEST_RUNS = 20
_TIMED_NS = 3e9


def tune(
    bundle: BundleFolder,
    spec: TuneSpec,
    variants: Sequence[Variant] = (),
    *,
    load: LoadSamples | None = None,
    journal: Journal | None = None,
    on_progress: Progress = lambda done, total, remark: None,
) -> TuneReport:
    """Return the best way to run `bundle` on this machine, and all trials.

    `variants` are other forms of the model, such as its int8; `load` returns labelled samples, on
    which the drop is judged; `journal` has the findings of this very search so far, and takes new
    ones; `on_progress` is called with the number of steps done in a stage, their total, a remark.

    Raises:
        ResdeployError: an accuracy budget without samples, nothing to search, or two models of one
            name.
        EnvironmentLacksError: not even the provider's defaults run here.
    """
    if spec.max_drop is not None and load is None:
        raise ResdeployError(
            "An accuracy budget needs labelled samples to be judged on.",
            fix="name them with --data, or ask for --lossless",
        )
    base = Variant(path=bundle.model)
    _refuse_same_names((base, *variants))
    environment = read_environment()
    default = Candidate(
        variant=base,
        session=SessionSpec(provider=spec.providers[0]),
        batch_size=spec.batch_sizes[0],
        inputs=bundle.golden_sizes,
    )
    # Not caught: where the defaults do not start there is nothing to be faster than.
    open_session(bundle.model, default.session)
    candidates = candidates_for(default, (base, *variants), spec)
    judge = Judge(bundle, spec, load)
    journal = journal or Journal()
    trials = []
    for number, candidate in enumerate(candidates):
        on_progress(number, len(candidates), "judge answers")
        found = journal.once(f"judge {number}", partial(_judged, judge, candidate))
        path, refused = candidate.variant.path, candidate.variant.refused
        trials.append(
            TuneTrial(
                model=path.name,
                session=candidate.session,
                batch_size=candidate.batch_size,
                size_bytes=0 if refused else path.stat().st_size,
                **found,
            )
        )
    admitted = [place for place, trial in enumerate(trials) if trial.out is None]
    if not admitted:
        raise ResdeployError(
            f"Not one of {len(trials)} candidates is within the budget: {trials[0].out}.",
            fix="allow a larger --max-drop, or give more --data",
        )
    in_race, num_blocks = _race(trials, candidates, admitted, spec, journal, on_progress)
    winner = _best(trials, in_race, spec)
    comparison = None
    if candidates[winner] != default:
        num_runs = _runs_that_fit(spec, trials[winner].times_ns)
        comparison = _last_comparison(candidates[winner], default, num_runs, on_progress)
        is_slower = comparison.p50.ratio > 1 and spec.objective in ("latency", "p99", "throughput")
        # Defaults whose answers will not do, as bfloat16's where float32 is asked for, win nothing.
        if is_slower and admitted[0] == 0:
            trials[winner] = dataclasses.replace(
                trials[winner], out="fell behind the defaults in the last comparison"
            )
            winner, comparison = 0, None
    best, chosen = trials[winner], candidates[winner]
    return TuneReport(
        name=bundle.manifest.name,
        spec=spec,
        environment=environment,
        trials=tuple(trials),
        winner=winner,
        ties=tuple(place for place in in_race if place != winner and trials[place].out is None),
        front=_front(trials),
        num_blocks=num_blocks,
        comparison=comparison,
        profile=_profile(chosen, environment),
        settings=TunedSettings(
            target=target_of(environment),
            model=best.model,
            session=best.session,
            batch_size=best.batch_size,
            objective=spec.objective,
            ratio=None if comparison is None else comparison.p50,
            max_drop=spec.max_drop,
            evidence=best.evidence,
            answers=golden_answers(chosen.variant.path, chosen.session, bundle.golden),
            quant=chosen.variant.quant,
        ),
        quants=tuple(one.quant for one in variants if one.quant is not None),
    )


def _judged(judge: Judge, candidate: Candidate) -> dict[str, Any]:
    return dataclasses.asdict(judge(candidate))


def _refuse_same_names(variants: Sequence[Variant]) -> None:
    """Raise ResdeployError for two files of one name, the key in the bundle and the report."""
    names = [one.path.name for one in variants]
    for one in variants:
        if names.count(one.path.name) > 1:
            raise ResdeployError(
                f"Two of the models are called {one.path.name}.",
                where=str(one.path),
                fix="give the file of a --variant another name",
            )


# --- the race ------------------------------------------------------------------------------------


def _race(
    trials: list[TuneTrial],
    candidates: Sequence[Candidate],
    admitted: Sequence[int],
    spec: TuneSpec,
    journal: Journal,
    on_progress: Progress,
) -> tuple[list[int], int]:
    """Put the times into the trials; return the places of those never beaten, and the blocks."""
    times: dict[int, list[float]] = {place: [] for place in admitted}
    peaks: dict[int, int] = {}
    q = 99 if spec.objective == "p99" else 50

    def time(group: Sequence[int], number: int) -> list[tuple[float, int | None]]:
        chosen = [(candidates[place], _runs_that_fit(spec, times[place])) for place in group]
        sides = [(one.variant.path, one.bench_spec(num_runs)) for one, num_runs in chosen]
        timed = time_in_turn(sides, prove_placement=number == 0)
        return [(pooled_percentile(one.bursts_ns, q), one.ram_peak_bytes) for one in timed]

    def measure(alive: Sequence[int], number: int) -> list[float]:
        # The other way round each time, so that the last one is not always the same.
        places = [admitted[one] for one in alive][:: 1 if number % 2 == 0 else -1]
        found: dict[int, float] = {}
        for start in range(0, len(places), _MOST_AT_ONCE):
            on_progress(number, spec.max_blocks, f"race, {len(places)} left")
            group = places[start : start + _MOST_AT_ONCE]
            timed = journal.once(f"time {number} {start}", partial(time, group, number))
            for place, (duration_ns, ram_peak_bytes) in zip(group, timed, strict=True):
                times[place].append(duration_ns)
                found[place] = duration_ns / candidates[place].batch_size
                if ram_peak_bytes is not None:
                    peaks[place] = max(peaks.get(place, 0), ram_peak_bytes)
        return [found[admitted[one]] for one in alive]

    # One block is enough for the memory of a candidate; its time then only breaks ties.
    max_blocks = 1 if spec.objective in ("memory", "size") else spec.max_blocks
    result = race(len(admitted), measure, max_blocks=max_blocks)
    in_race = [admitted[one] for one in result.in_race]
    for place in admitted:
        is_out = place not in in_race and max_blocks > 1
        trials[place] = dataclasses.replace(
            trials[place],
            times_ns=tuple(times[place]),
            ram_peak_bytes=peaks.get(place),
            out=f"beaten after {len(times[place])} blocks" if is_out else None,
        )
    return in_race if max_blocks > 1 else list(admitted), result.num_blocks


def _runs_that_fit(spec: TuneSpec, times_ns: Sequence[float]) -> int:
    """Return the number of runs for a process with these times; the fewest where none is known.

    At most the spec's number; all of them for the 99th percentile.
    """
    if spec.objective == "p99":
        return spec.num_runs
    fitting = int(_TIMED_NS / min(times_ns)) if times_ns else 0
    return min(spec.num_runs, max(_FEWEST_RUNS, fitting))


def _time_per_sample(trial: TuneTrial) -> float:
    return trial.time_ns / trial.batch_size


def _best(trials: Sequence[TuneTrial], in_race: Sequence[int], spec: TuneSpec) -> int:
    def cost(place: int) -> tuple[float, float]:
        trial = trials[place]
        memory = trial.ram_peak_bytes or float("inf")
        return memory if spec.objective == "memory" else trial.size_bytes, _time_per_sample(trial)

    return min(in_race, key=cost) if spec.objective in ("memory", "size") else in_race[0]


def _front(trials: Sequence[TuneTrial]) -> tuple[int, ...]:
    """Return the Pareto front: the places of the trials that no other one dominates."""
    costs = {
        place: (
            _time_per_sample(trial),
            trial.ram_peak_bytes or 0,
            trial.size_bytes,
            trial.drop or 0.0,
        )
        for place, trial in enumerate(trials)
        if trial.times_ns
    }
    return tuple(
        place
        for place, mine in costs.items()
        if not any(o != mine and all(map(operator.le, o, mine)) for o in costs.values())
    )


# --- the winner ----------------------------------------------------------------------------------


def _last_comparison(
    winner: Candidate, default: Candidate, num_runs: int, on_progress: Progress
) -> BenchComparison:
    baseline = dataclasses.replace(default, batch_size=winner.batch_size)
    return bench_in_turn(
        (winner.variant.path, winner.bench_spec(num_runs)),
        (baseline.variant.path, baseline.bench_spec(num_runs)),
        num_blocks=_FINAL_BLOCKS,
        on_block=lambda done: on_progress(done, _FINAL_BLOCKS, "against the defaults"),
    )


def _profile(winner: Candidate, environment: Environment) -> Profile | None:
    """Return the profile of the winner, for its work and the machine's ceilings at least.

    Other providers that compute on the CPU have no times of layers: for those it is the profile of
    the same model on ONNX Runtime's own. None where there is neither.
    """
    session = winner.session
    provider = find_provider(session.provider)
    if not provider.on_cpu:
        return None
    if not provider.has_layer_times:
        session = SessionSpec(num_threads=session.num_threads)
    seen = dataclasses.replace(winner, session=session)
    try:
        stand = set_up(winner.variant.path, seen.bench_spec(1))
        return read_profile(
            winner.variant.path,
            session,
            stand.feed,
            num_runs=_PROFILE_RUNS,
            num_threads=session.num_threads or environment.num_cpus_allowed,
        )
    except EnvironmentLacksError:
        if session == winner.session:
            raise
        return None
