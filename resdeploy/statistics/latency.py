"""Statistics of raw latencies: summaries, stability, queues.

Latencies are integers in nanoseconds, in the order they were measured.
"""

import math
from collections.abc import Sequence

import numpy as np

from resdeploy.schema.benchmarks import LatencySummary
from resdeploy.statistics.quantiles import percentile, percentile_interval

__all__ = [
    "STABLE_SHIFT_LIMIT",
    "STABLE_TAIL_LIMIT",
    "is_settled",
    "is_stable",
    "is_sustained",
    "poisson_arrivals",
    "service_times",
    "summarise",
]

# Differences between two configurations that are worth acting on start at a few percent; a run
# that moves by more than this within itself cannot show them.
STABLE_SHIFT_LIMIT = 0.05

# With one run in ten beyond this many medians, p90 and p99 are those of its interruptions.
STABLE_TAIL_LIMIT = 2.0

# Five runs in each quarter: fewer, and one interrupted run moves a quarter's median.
_MIN_RUNS_TO_JUDGE = 20

# Runs in each of the two windows whose medians say whether a warm-up has ended.
_SETTLED_WINDOW = 10
_SETTLED_LIMIT = STABLE_SHIFT_LIMIT / 5


def summarise(
    latencies_ns: Sequence[int], *, batch_size: int, arrivals_ns: Sequence[int] = ()
) -> LatencySummary:
    """Return the summary of `latencies_ns`, each the time of one run of `batch_size` samples.

    The throughput is that of runs one after the other; with `arrivals_ns`, the moments from which
    the latencies count, it is that of the time from the first of them to the last answer.

    Raises:
        ValueError: there are no latencies.
    """
    if not latencies_ns:
        raise ValueError("a summary needs at least one latency")
    total_ns = sum(latencies_ns)
    span_ns = total_ns
    if arrivals_ns:
        answers_ns = (a + x for a, x in zip(arrivals_ns, latencies_ns, strict=True))
        span_ns = max(answers_ns) - min(arrivals_ns)
    return LatencySummary(
        num_runs=len(latencies_ns),
        mean_ns=total_ns / len(latencies_ns),
        min_ns=min(latencies_ns),
        p50_ns=int(percentile(latencies_ns, 50)),
        p90_ns=int(percentile(latencies_ns, 90)),
        p99_ns=int(percentile(latencies_ns, 99)),
        p999_ns=int(percentile(latencies_ns, 99.9)),
        max_ns=max(latencies_ns),
        throughput_per_s=batch_size * len(latencies_ns) * 1e9 / span_ns,
        p50_interval_ns=percentile_interval(latencies_ns, 50),
        p90_interval_ns=percentile_interval(latencies_ns, 90),
        p99_interval_ns=percentile_interval(latencies_ns, 99),
        p999_interval_ns=percentile_interval(latencies_ns, 99.9),
    )


def is_stable(latencies_ns: Sequence[int]) -> tuple[bool, str]:
    """Verdict on a run: the same from beginning to end, or the reason why not.

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


def is_settled(durations_ns: Sequence[int]) -> bool:
    """Verdict on a warm-up: ended, once its last two windows of ten runs have the same median.

    "The same" is within the larger of a fifth of `STABLE_SHIFT_LIMIT` and two standard errors of
    the difference, 2 * 1.2533 * s * sqrt(2 / 10), where s = 1.4826 times the median absolute
    deviation of both windows from their own medians (1.2533 = sqrt(pi / 2) is the standard error of
    a normal sample's median over that of its mean).

    Where the times approach their end as exp(-t / T), the medians of two adjacent windows differ by
    about 10 / T of what is left above the end, so that it stops when less than T / 10 fifths of the
    limit are left: less than `STABLE_SHIFT_LIMIT` for T up to 40 runs, which leaves room for the
    noise of the medians. What is slower than that is a drift, and `is_stable` sees it.
    """
    if len(durations_ns) < 2 * _SETTLED_WINDOW:
        return False
    windows = np.asarray(durations_ns[-2 * _SETTLED_WINDOW :], dtype=np.float64).reshape(2, -1)
    medians = np.median(windows, axis=1)
    sigma = 1.4826 * float(np.median(np.abs(windows - medians[:, None])))
    error = math.sqrt(math.pi / 2) * sigma * math.sqrt(2 / _SETTLED_WINDOW)
    return bool(abs(medians[0] - medians[1]) <= max(_SETTLED_LIMIT * medians[1], 2 * error))


def poisson_arrivals(count: int, *, per_second: float, seed: int) -> tuple[int, ...]:
    """Return `count` arrivals of independent users, in nanoseconds: a Poisson process.

    The gaps are exponential with mean 1 / per_second; the same seed gives the same moments.
    """
    gaps = np.random.default_rng(seed).exponential(1e9 / per_second, size=count)
    return tuple(int(moment) for moment in np.cumsum(gaps))


def service_times(arrivals_ns: Sequence[int], latencies_ns: Sequence[int]) -> tuple[int, ...]:
    """Return the duration of each run itself, without its wait in the one queue.

    A run starts at its arrival or at the end of the run before, whichever is later.
    """
    times = []
    free_ns = 0
    for arrival_ns, latency_ns in zip(arrivals_ns, latencies_ns, strict=True):
        answer_ns = arrival_ns + latency_ns
        times.append(answer_ns - max(arrival_ns, free_ns))
        free_ns = answer_ns
    return tuple(times)


def is_sustained(arrivals_ns: Sequence[int], latencies_ns: Sequence[int]) -> tuple[bool, str]:
    """Verdict on a queue: waiting times that it would keep, or the reason why not.

    With a load rho, the part of the time in which the server is busy, a queue forgets its past
    after about 1 / (1 - rho)^2 runs (the relaxation time of M/M/1 is of that order), and never does
    from rho = 1 on. Its waiting times mean something when ten such times fit into what was
    measured: n * (1 - rho)^2 >= 10.
    """
    busy_ns = sum(service_times(arrivals_ns, latencies_ns))
    rho = busy_ns / max(1, max(arrivals_ns))
    if rho < 1 and len(arrivals_ns) * (1 - rho) ** 2 >= 10:
        return True, ""
    if rho >= 1:
        return False, "more is asked for than can be answered: the queue grows without end"
    needed = math.ceil(10 / (1 - rho) ** 2)
    return False, f"at a load of {rho:.0%} the queue needs {needed} runs to show its waiting times"


def _faster_or_slower(change: float) -> str:
    return f"{abs(change):.1%} {'slower' if change > 0 else 'faster'}"
