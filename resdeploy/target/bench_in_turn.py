"""Time two runners in turn, and say which is faster; or several, for benchmarks and `tune`.

A block is a pair of fresh processes, both loaded and warm, that are told in turn to run in bursts:
A B B A, A B B A. What the machine does to the one it does to the other a moment later, and a drift
cancels within each four. The next block is another pair, begun by the other one (B A A B), since
processes differ by where their memory happens to lie.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdeploy.errors import EnvironmentLacksError, ReportedError, ResdeployError
from resdeploy.paired import CONFIDENCE, min_runs_for, speed_ratio
from resdeploy.schema.benchmarks import BenchBlock, BenchComparison, BenchJob, BenchSide, BenchSpec
from resdeploy.schema.codec import from_json
from resdeploy.target.bench_process import BenchProcess
from resdeploy.target.environment import read_environment
from resdeploy.target.machine import read_machine_state
from resdeploy.target.measure import check_spec

__all__ = [
    "MIN_BLOCKS",
    "NUM_BURSTS",
    "Contender",
    "TimedSide",
    "bench_in_turn",
    "time_in_turn",
    "time_those_that_run",
]

# A model, None where a factory makes it, and what to time of it.
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
        num_blocks: how many pairs of processes.
        max_slowdown: the fraction by which the candidate may be slower.
        on_block: called with the number of blocks done after each.

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
        block, pair = _block(candidate, baseline, candidate_first=number % 2 == 0, prove=not sides)
        blocks.append(block)
        sides = sides or pair
        if on_block is not None:
            on_block(number + 1)
    after = read_machine_state(gpus=True)
    return BenchComparison(
        candidate=sides[0],
        baseline=sides[1],
        environment=environment,
        interleaved=True,
        blocks=tuple(blocks),
        confidence=CONFIDENCE,
        p50=speed_ratio(blocks, 50),
        p99=speed_ratio(blocks, 99) if _enough(blocks, 99) else None,
        max_slowdown=max_slowdown,
        before=before,
        after=after,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedSide:
    """What one of several processes timed in turn ran on, and came to.

    Attributes:
        side: what it ran on.
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
    """Time each of `sides` in a fresh process, in bursts that take turns: A B C C B A, and again.

    All processes live to the end, so all must fit into memory together. They are started one after
    the other, in the order of `sides`.

    Args:
        sides: models and what to time of them.
        prove_placement: ask a profile where the kernels were.
        num_bursts: of each process; even, so that a drift cancels.

    Raises:
        ResdeployError: a model cannot be timed.
        EnvironmentLacksError: a provider did not start or left kernels to another, or a process
            was killed.
    """

    def stop(_place: int, error: Exception) -> None:
        raise error

    with ExitStack() as stack:
        turns = _Turns(stack, sides, stop)
        turns.start(range(len(sides)), prove_placement=prove_placement)
        return list(turns.time(range(len(sides)), num_bursts).values())


def time_those_that_run(
    sides: Sequence[Contender],
    *,
    golden: Path,
    num_bursts: int,
    last_first: bool = False,
    limit_s: float = 240.0,
    all_started_s: float = 1200.0,
    on_stage: Callable[[int], None] = lambda _: None,
) -> list[TimedSide | Exception]:
    """Time `sides` as `time_in_turn` does, but for those that fail: of each its error comes back.

    Args:
        sides: models and what to time of them.
        golden: the golden file whose inputs they answer and are timed with.
        num_bursts: of each process; even, so that a drift cancels.
        last_first: begin with the last one, as every other block should.
        limit_s: how long one may take to be ready, or for one burst.
        all_started_s: how long all may take to be ready; one not begun by then is left out.
        on_stage: called with the place of the one that is being started or timed.
    """
    failed: dict[int, Exception] = {}
    order = range(len(sides))[:: -1 if last_first else 1]
    with ExitStack() as stack:
        turns = _Turns(stack, sides, failed.__setitem__, limit_s=limit_s, on_stage=on_stage)
        turns.start(order, golden=golden, all_started_s=all_started_s)
        timed = turns.time(order, num_bursts)
    return [failed[place] if place in failed else timed[place] for place in range(len(sides))]


class _Turns:
    """Processes that are started one after the other, and then told in turn to run."""

    def __init__(
        self,
        stack: ExitStack,
        sides: Sequence[Contender],
        on_failure: Callable[[int, Exception], None],
        *,
        limit_s: float | None = None,
        on_stage: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._stack, self._sides, self._on_failure = stack, sides, on_failure
        self._limit_s, self._on_stage = limit_s, on_stage
        self._alive: dict[int, BenchProcess] = {}
        self._opened: dict[int, BenchSide] = {}

    def start(
        self,
        order: Sequence[int],
        *,
        prove_placement: bool = False,
        golden: Path | None = None,
        all_started_s: float | None = None,
    ) -> None:
        """Start each and wait until it is warm, so that none warms up beside another's start."""
        end_s = None if all_started_s is None else time.monotonic() + all_started_s
        for place in order:
            model, spec = self._sides[place]
            limit_s = self._limit_s
            if end_s is not None and limit_s is not None:
                limit_s = min(limit_s, end_s - time.monotonic())
                if limit_s <= 0:
                    self._on_failure(place, EnvironmentLacksError("There was no time to start it."))
                    continue
            job = BenchJob(
                model=None if model is None else str(model),
                spec=spec,
                in_bursts=True,
                prove_placement=prove_placement,
                golden=None if golden is None else str(golden),
            )
            self._alive[place] = self._stack.enter_context(BenchProcess(job, limit_s=limit_s))
            if (answer := self._answer(place)) is not None:
                side = from_json(BenchSide, answer["side"], where="the benchmark process")
                self._opened[place] = side

    def time(self, order: Sequence[int], num_bursts: int) -> dict[int, TimedSide]:
        """Return what each that does not fail came to, by its place."""
        bursts: dict[tuple[int, str], list[tuple[int, ...]]] = {}
        peaks: dict[int, int | None] = {}
        for number in range(num_bursts):
            for place in order if number % 2 == 0 else order[::-1]:
                spec = self._sides[place][1]
                for words, num_runs in (("", spec.num_runs), ("bound ", spec.num_bound_runs)):
                    if place not in self._alive or not num_runs:
                        continue
                    share = _share(num_runs, number, num_bursts)
                    self._alive[place].send(f"{words}{share}")
                    if (answer := self._answer(place)) is not None:
                        bursts.setdefault((place, words), []).append(tuple(answer["latencies_ns"]))
                        peaks[place] = answer["ram_peak_bytes"]
        return {
            place: TimedSide(
                side=self._opened[place],
                bursts_ns=tuple(bursts[place, ""]),
                ram_peak_bytes=peaks[place],
                bound_bursts_ns=tuple(bursts.get((place, "bound "), ())),
            )
            for place in sorted(self._alive)
        }

    def _answer(self, place: int) -> dict[str, Any] | None:
        """Return the next answer of a process; None where it failed, and is out."""
        self._on_stage(place)
        try:
            return self._alive[place].receive()
        except (ReportedError, RuntimeError) as error:
            del self._alive[place]
            self._on_failure(place, error)
            return None


def _block(
    candidate: Contender,
    baseline: Contender,
    *,
    candidate_first: bool,
    prove: bool,
) -> tuple[BenchBlock, list[BenchSide]]:
    """Return the bursts of one pair of processes, and what each ran on."""
    pair = (candidate, baseline) if candidate_first else (baseline, candidate)
    timed = time_in_turn(pair, prove_placement=prove)
    first, second = timed if candidate_first else reversed(timed)
    block = BenchBlock(
        candidate_ns=first.bursts_ns,
        baseline_ns=second.bursts_ns,
        candidate_first=candidate_first,
    )
    return block, [first.side, second.side]


def _share(num_runs: int, number: int, num_bursts: int) -> int:
    """Return how many of the runs the burst with this number does."""
    return (number + 1) * num_runs // num_bursts - number * num_runs // num_bursts


def _enough(blocks: list[BenchBlock], q: float) -> bool:
    return all(
        sum(map(len, bursts)) >= min_runs_for(q)
        for block in blocks
        for bursts in (block.candidate_ns, block.baseline_ns)
    )
