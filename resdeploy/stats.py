"""Statistics of raw latencies: percentiles, intervals, and "is this run stable?".

Latencies are integers in nanoseconds, in the order they were measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "STABLE_SHIFT_LIMIT",
    "STABLE_TAIL_LIMIT",
    "LatencySummary",
    "bootstrap_interval",
    "is_stable",
    "percentile",
    "summarise",
]

# Differences between two configurations that are worth acting on start at a few percent; a run
# that moves by more than this within itself cannot show them.
STABLE_SHIFT_LIMIT = 0.05

# With one run in ten beyond this many medians, p90 and p99 are those of whatever interrupted it.
STABLE_TAIL_LIMIT = 2.0

# Five runs in each quarter: fewer, and one interrupted run moves a quarter's median.
_MIN_RUNS_TO_JUDGE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """What a list of latencies comes to.

    Attributes:
        num_runs: how many latencies there were.
        mean_ns: their arithmetic mean.
        min_ns: the shortest.
        p50_ns: 50 % of the runs took no longer than this; likewise `p90_ns` and `p99_ns`. With
            fewer than 100 runs `p99_ns` is the longest.
        max_ns: the longest.
        throughput_per_s: samples per second of one stream, batch after batch.
    """

    num_runs: int
    mean_ns: float
    min_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int
    throughput_per_s: float


def percentile(values: ArrayLike, q: float) -> float:
    """Return the q-th percentile by nearest rank: the least value v with q % of values <= v.

    Nearest rank rather than interpolation: the result is a latency that was measured, and "p99 is
    below 5 ms" means what a deadline means, that at least 99 % of the runs met it.

    Args:
        values: (n,) numbers, n >= 1.
        q: in percent, 0 <= q <= 100; 0 gives the least value.

    Raises:
        ValueError: there are no values, or q is out of range.
    """
    values_n = np.asarray(values).ravel()
    if values_n.size == 0:
        raise ValueError("a percentile needs at least one value")
    if not 0 <= q <= 100:
        raise ValueError(f"q must be in [0, 100] percent, not {q}")
    # Exact arithmetic on the decimal that was written: 55 / 100 * 100 is above 55 in float64, and
    # its ceiling would be the wrong rank.
    rank = max(1, math.ceil(Fraction(str(q)) * values_n.size / 100))
    return float(np.partition(values_n, rank - 1)[rank - 1])


def summarise(latencies_ns: Sequence[int], *, batch_size: int) -> LatencySummary:
    """Return the summary of `latencies_ns`, each the time of one run of `batch_size` samples.

    Raises:
        ValueError: there are no latencies.
    """
    if not latencies_ns:
        raise ValueError("a summary needs at least one latency")
    total_ns = sum(latencies_ns)
    return LatencySummary(
        num_runs=len(latencies_ns),
        mean_ns=total_ns / len(latencies_ns),
        min_ns=min(latencies_ns),
        p50_ns=int(percentile(latencies_ns, 50)),
        p90_ns=int(percentile(latencies_ns, 90)),
        p99_ns=int(percentile(latencies_ns, 99)),
        max_ns=max(latencies_ns),
        throughput_per_s=batch_size * len(latencies_ns) * 1e9 / total_ns,
    )


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float],
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return Efron's percentile bootstrap interval (low, high) of a statistic.

    `values` are drawn with replacement, n at a time; the interval lies between the
    (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of the statistic over the draws. It
    takes the values for independent: runs that follow one another are not quite, so it is a little
    too narrow for latencies. For p99 and the like it needs many more than 100 values.

    Args:
        values: (n,) numbers, n >= 1.
        statistic: from (n,) values to one number, for example `numpy.median`.
        confidence: the coverage aimed at, 0 < confidence < 1.
        num_resamples: how many draws.
        seed: of the random generator; the same seed gives the same interval.

    Raises:
        ValueError: there are no values, or `confidence` or `num_resamples` is out of range.
    """
    values_n = np.asarray(values, dtype=np.float64).ravel()
    if values_n.size == 0:
        raise ValueError("an interval needs at least one value")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, not {num_resamples}")
    rng = np.random.default_rng(seed)
    # One draw at a time: all at once would take num_resamples * n numbers of memory.
    draws = [
        float(statistic(values_n[rng.integers(values_n.size, size=values_n.size)]))
        for _ in range(num_resamples)
    ]
    tail_percent = 50 * (1 - confidence)
    return percentile(draws, tail_percent), percentile(draws, 100 - tail_percent)


def is_stable(latencies_ns: Sequence[int]) -> tuple[bool, str]:
    """Say whether a run stayed the same from beginning to end; if not, the reason.

    The run is not stable when

    1. there are fewer than 20 latencies, too few to judge;
    2. the median of the second half differs from that of the first by more than
       `STABLE_SHIFT_LIMIT` (a clock that changed, another program that started);
    3. the medians of the four quarters rise, or fall, all the way, and the last differs from the
       first by more than that limit (a chip that warms up, a warm-up that was too short);
    4. p90 is more than `STABLE_TAIL_LIMIT` times the median (something else runs on the machine).

    Medians and p90, so that a few interrupted runs do not count. What it cannot see: a machine that
    is slowed evenly throughout, or changes faster than a quarter of the run.
    """
    if len(latencies_ns) < _MIN_RUNS_TO_JUDGE:
        return False, f"{len(latencies_ns)} runs are too few to judge ({_MIN_RUNS_TO_JUDGE} needed)"
    first, second = (float(np.median(half)) for half in np.array_split(latencies_ns, 2))
    shift = second / first - 1
    if abs(shift) > STABLE_SHIFT_LIMIT:
        return False, f"the second half is {_faster_or_slower(shift)} than the first"
    quarters = [float(np.median(quarter)) for quarter in np.array_split(latencies_ns, 4)]
    steps = np.diff(quarters)
    drift = quarters[-1] / quarters[0] - 1
    if abs(drift) > STABLE_SHIFT_LIMIT and (np.all(steps > 0) or np.all(steps < 0)):
        return False, f"the latency drifts: it ends {_faster_or_slower(drift)} than it began"
    tail = percentile(latencies_ns, 90) / percentile(latencies_ns, 50)
    if tail > STABLE_TAIL_LIMIT:
        return False, f"one run in ten takes {tail:.1f} times the median or more"
    return True, ""


def _faster_or_slower(change: float) -> str:
    return f"{abs(change):.1%} {'slower' if change > 0 else 'faster'}"
