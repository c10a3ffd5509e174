"""Interleaved timing of two runners, or of several for `tune` and the benchmarks.

A block is a pair of fresh processes, both loaded and warm, that run bursts in turn: A B B A,
A B B A. A disturbance of the machine reaches both a moment apart, and a drift cancels within each
four. The next block is another pair, begun by the other one (B A A B), since processes differ by
the place of their memory.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdeploy.bench.measure import check_spec
from resdeploy.bench.process import BenchProcess
from resdeploy.errors import EnvironmentLacksError, ReportedError, ResdeployError
from resdeploy.machine.environment import read_environment
from resdeploy.machine.state import read_machine_state
from resdeploy.schema.benchmarks import BenchBlock, BenchComparison, BenchJob, BenchSide, BenchSpec
from resdeploy.schema.codec import from_json
from resdeploy.statistics.paired import CONFIDENCE, runs_per_process, speed_ratio

__all__ = [
    "MIN_BLOCKS",
    "NUM_BURSTS",
    "Contender",
    "TimedSide",
    "bench_in_turn",
    "time_in_turn",
    "time_those_that_run",
]

# A model, None where a factory makes it, and the spec of its timing.
Contender = tuple[Path | None, BenchSpec]

# Bursts of each process in a block; a multiple of two, for A B B A.
NUM_BURSTS = 10

# With fewer, Student's t is so large that only enormous differences show.
MIN_BLOCKS = 3


def bench_in_turn(
    candidate: Contender,
    baseline: Contender,
    *,
    num_blocks: int,
    max_slowdown: float | None = None,
    on_block: Callable[[int], None] | None = None,
) -> BenchComparison:
    """Time two models, or one with two settings, in turn; each process does `num_runs` runs.

    Args:
        candidate: the model and the settings in question.
        baseline: those it is held against.
        num_blocks: the number of pairs of processes.
        max_slowdown: the fraction by which the candidate may be slower.
        on_block: called after each block with the number of those done.

    Raises:
        ResdeployError: a number is out of range, or a model cannot be timed.
        EnvironmentLacksError: a provider did not start or left kernels to another, or a process
            was killed.
    """
    if num_blocks < MIN_BLOCKS:
        raise ResdeployError(
            f"The number of blocks is {num_blocks}.", fix=f"ask for at least {MIN_BLOCKS}"
        )
    for _, spec in (candidate, baseline):
        check_spec(spec)
        if spec.num_runs < NUM_BURSTS or spec.scenario != "single-stream":
            raise ResdeployError(
                "Two models are timed in turn in the scenario single-stream, with "
                f"{NUM_BURSTS} runs each or more.",
                fix="leave out --scenario, and ask for more --runs",
            )
    environment = read_environment()
    before = read_machine_state(gpus=True)
    blocks = []
    sides: list[BenchSide] = []
    for number in range(num_blocks):
        step = 1 if number % 2 == 0 else -1
        timed = time_in_turn((candidate, baseline)[::step], prove_placement=not sides)[::step]
        sides = sides or [one.side for one in timed]
        blocks.append(
            BenchBlock(
                candidate_ns=timed[0].bursts_ns,
                baseline_ns=timed[1].bursts_ns,
                candidate_first=step == 1,
            )
        )
        if on_block is not None:
            on_block(number + 1)
    after = read_machine_state(gpus=True)
    needed = runs_per_process(blocks, 99)
    enough = needed <= min(candidate[1].num_runs, baseline[1].num_runs)
    return BenchComparison(
        candidate=sides[0],
        baseline=sides[1],
        environment=environment,
        interleaved=True,
        blocks=tuple(blocks),
        confidence=CONFIDENCE,
        p50=speed_ratio(blocks, 50),
        p99=speed_ratio(blocks, 99) if enough else None,
        max_slowdown=max_slowdown,
        caveats=() if enough else (f"too few runs for p99: a process takes some {needed}",),
        before=before,
        after=after,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedSide:
    """Result of one of several processes timed in turn.

    Attributes:
        side: its model, settings and session.
        bursts_ns: latencies of its bursts, from host memory to host memory.
        ram_peak_bytes: the process's peak memory; None where it cannot be read.
        bound_bursts_ns: latencies with input and output in device memory, where asked for.
    """

    side: BenchSide
    bursts_ns: tuple[tuple[int, ...], ...]
    ram_peak_bytes: int | None
    bound_bursts_ns: tuple[tuple[int, ...], ...] = ()


def time_in_turn(
    sides: Sequence[Contender], *, prove_placement: bool, num_bursts: int = NUM_BURSTS
) -> list[TimedSide]:
    """Time each of `sides` in a fresh process, in interleaved bursts: A B C C B A, and again.

    All processes live to the end, so all must fit into memory together. They are started one after
    the other, in the order of `sides`. For the arguments see `time_those_that_run`.

    Raises:
        ResdeployError: a model cannot be timed.
        EnvironmentLacksError: a provider did not start or left kernels to another, or a process
            was killed.
    """

    def stop(error: Exception) -> None:
        raise error

    found = time_those_that_run(
        sides,
        num_bursts=num_bursts,
        prove_placement=prove_placement,
        limit_s=math.inf,
        all_started_s=math.inf,
        on_failure=stop,
    )
    return [one for one in found if isinstance(one, TimedSide)]


def time_those_that_run(
    sides: Sequence[Contender],
    *,
    num_bursts: int,
    golden: Path | None = None,
    prove_placement: bool = False,
    last_first: bool = False,
    limit_s: float = 240.0,
    all_started_s: float = 1200.0,
    on_stage: Callable[[int], None] = lambda place: None,
    on_failure: Callable[[Exception], None] = lambda error: None,
) -> list[TimedSide | Exception]:
    """Time `sides` as `time_in_turn` does, with the error in place of a side that fails.

    Args:
        sides: models and the specs of their timing.
        num_bursts: of each process; even, so that a drift cancels.
        golden: the golden file with the inputs to answer and to time.
        prove_placement: check the kernels of a profile.
        last_first: begin with the last one, as every other block should.
        limit_s: the longest wait for a start, or for one burst.
        all_started_s: the time for all starts; a side not begun by then is left out.
        on_stage: called with the place of the side that is started or timed.
        on_failure: called with each error.
    """
    order = range(len(sides))[:: -1 if last_first else 1]
    alive: dict[int, BenchProcess] = {}
    opened: dict[int, BenchSide] = {}
    failed: dict[int, Exception] = {}
    bursts: dict[tuple[int, str], list[tuple[int, ...]]] = defaultdict(list)
    peaks: dict[int, int | None] = {}

    def fail(place: int, error: Exception) -> None:
        alive.pop(place, None)
        failed[place] = error
        on_failure(error)

    def answer(place: int) -> dict[str, Any] | None:
        on_stage(place)
        try:
            return alive[place].receive()
        except (ReportedError, RuntimeError) as error:
            fail(place, error)
            return None

    end_s = time.monotonic() + all_started_s
    with ExitStack() as stack:
        # One after the other, so that none warms up during another's start.
        for place in order:
            model, spec = sides[place]
            left_s = min(limit_s, end_s - time.monotonic())
            if left_s <= 0:
                fail(place, EnvironmentLacksError("There was no time to start it."))
                continue
            job = BenchJob(
                model=None if model is None else str(model),
                spec=spec,
                in_bursts=True,
                prove_placement=prove_placement,
                golden=None if golden is None else str(golden),
            )
            alive[place] = stack.enter_context(BenchProcess(job, limit_s=left_s))
            if (found := answer(place)) is not None:
                opened[place] = from_json(BenchSide, found["side"], where="the benchmark process")
        for number in range(num_bursts):
            for place in order if number % 2 == 0 else order[::-1]:
                spec = sides[place][1]
                for word, num_runs in (("", spec.num_runs), ("bound ", spec.num_bound_runs)):
                    if place not in alive or not num_runs:
                        continue
                    done = number * num_runs // num_bursts
                    alive[place].send(f"{word}{(number + 1) * num_runs // num_bursts - done}")
                    if (found := answer(place)) is not None:
                        bursts[place, word].append(tuple(found["latencies_ns"]))
                        peaks[place] = found["ram_peak_bytes"]
    return [
        failed[place]
        if place in failed
        else TimedSide(
            side=opened[place],
            bursts_ns=tuple(bursts[place, ""]),
            ram_peak_bytes=peaks[place],
            bound_bursts_ns=tuple(bursts[place, "bound "]),
        )
        for place in range(len(sides))
    ]
