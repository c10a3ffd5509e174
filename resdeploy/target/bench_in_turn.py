"""Time two sessions in turn, and say which is faster.

A block is a pair of fresh processes, both loaded and warm, that are told in turn to run in bursts:
A B B A, A B B A. What the machine does to the one it does to the other a moment later, and a drift
cancels within each four. The next block is another pair, begun by the other one (B A A B), since
processes differ by where their memory happens to lie.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from resdeploy.errors import ResdeployError
from resdeploy.paired import CONFIDENCE, min_runs_for, speed_ratio
from resdeploy.schema.benchmarks import BenchBlock, BenchComparison, BenchJob, BenchSide, BenchSpec
from resdeploy.schema.codec import from_json
from resdeploy.target.bench_process import BenchProcess
from resdeploy.target.environment import read_environment
from resdeploy.target.machine import read_machine_state
from resdeploy.target.measure import check_spec

__all__ = ["MIN_BLOCKS", "NUM_BURSTS", "TimedSide", "bench_in_turn", "time_in_turn"]

# Bursts of each process in a block; a multiple of two, for A B B A.
NUM_BURSTS = 10

# With fewer, Student's t is so large that only enormous differences show.
MIN_BLOCKS = 3


def bench_in_turn(
    candidate: tuple[Path, BenchSpec],
    baseline: tuple[Path, BenchSpec],
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

    `bursts_ns` are the latencies of its bursts, `ram_peak_bytes` the process's peak memory, None
    where it cannot be read.
    """

    side: BenchSide
    bursts_ns: tuple[tuple[int, ...], ...]
    ram_peak_bytes: int | None


def time_in_turn(
    sides: Sequence[tuple[Path, BenchSpec]], *, prove_placement: bool, num_bursts: int = NUM_BURSTS
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
    with ExitStack() as stack:
        processes, opened = [], []
        for model, spec in sides:
            job = BenchJob(
                model=str(model), spec=spec, in_bursts=True, prove_placement=prove_placement
            )
            # One after the other, so that neither warms up beside the other's start.
            processes.append(stack.enter_context(BenchProcess(job)))
            answer = processes[-1].receive()
            opened.append(from_json(BenchSide, answer["side"], where="the benchmark process"))
        bursts: list[list[tuple[int, ...]]] = [[] for _ in sides]
        peaks: list[int | None] = [None for _ in sides]
        for number in range(num_bursts):
            places = range(len(sides))
            for place in places if number % 2 == 0 else reversed(places):
                num_runs = sides[place][1].num_runs
                processes[place].send(str(_share(num_runs, number, num_bursts)))
                answer = processes[place].receive()
                bursts[place].append(tuple(answer["latencies_ns"]))
                peaks[place] = answer["ram_peak_bytes"]
    return [
        TimedSide(side=side, bursts_ns=tuple(times), ram_peak_bytes=peak)
        for side, times, peak in zip(opened, bursts, peaks, strict=True)
    ]


def _block(
    candidate: tuple[Path, BenchSpec],
    baseline: tuple[Path, BenchSpec],
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
