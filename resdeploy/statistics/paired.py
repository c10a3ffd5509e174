"""Paired comparison: ratios of latencies measured in turn, with their paired t intervals.

The unit is the block: a pair of fresh processes. Runs in one process share its memory layout and
the minute it ran in, so that a thousand of them say little more about the next process than ten do;
an interval over runs is far too narrow, and calls a model slower than itself.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from resdeploy.schema.benchmarks import BenchBlock, SpeedRatio
from resdeploy.statistics.quantiles import (
    CONFIDENCE,
    log_quantile,
    percentile,
    percentile_interval,
    runs_needed,
)

__all__ = [
    "CONFIDENCE",
    "block_log_ratios",
    "mean_ratio",
    "pooled_percentile",
    "ratio_of_single_runs",
    "runs_per_process",
    "speed_ratio",
    "student_interval",
    "student_quantile",
]


def speed_ratio(
    blocks: Sequence[BenchBlock], q: float, *, confidence: float = CONFIDENCE
) -> SpeedRatio:
    """Return the ratio of the q-th percentiles, candidate over baseline, with its interval.

    The logarithms of the blocks' ratios are averaged, and Student's interval of their mean is taken
    back: blocks are independent, and the logarithm makes "faster" and "slower" mirror images. Not a
    bootstrap over blocks: of eight blocks the percentile bootstrap's 95 % interval covers the truth
    in 90 % (`tests/statistics/test_paired.py`), and would call one model in ten slower than itself.

    Raises:
        ValueError: there are fewer than two blocks, which have no interval.
    """
    return mean_ratio(block_log_ratios(blocks, q), confidence=confidence)


def mean_ratio(logs: Sequence[float], *, confidence: float = CONFIDENCE) -> SpeedRatio:
    """Return the ratio that independent logarithms average to, with Student's interval.

    Raises:
        ValueError: there are fewer than two of them.
    """
    low, high = student_interval(logs, confidence=confidence)
    ratio = math.exp(float(np.mean(logs)))
    return SpeedRatio(ratio=ratio, low=math.exp(low), high=math.exp(high))


def block_log_ratios(blocks: Sequence[BenchBlock], q: float) -> tuple[float, ...]:
    """Return for each block the logarithm of the ratio of its two q-th percentiles."""
    return tuple(
        math.log(pooled_percentile(block.candidate_ns, q))
        - math.log(pooled_percentile(block.baseline_ns, q))
        for block in blocks
    )


def runs_per_process(blocks: Sequence[BenchBlock], q: float) -> int:
    """Return the number of runs that a process takes for its q-th percentile to be known.

    That of `runs_needed`, and the median of it over the processes. With fewer, the percentile of a
    process is off by more than chance: of 100 runs, and of models whose tails are not alike, the
    interval of the ratio of p99 covered in 70 %.
    """
    sides = [np.concatenate(x) for block in blocks for x in (block.candidate_ns, block.baseline_ns)]
    return int(np.median([runs_needed(runs_ns, q) for runs_ns in sides]))


def pooled_percentile(bursts_ns: Sequence[Sequence[int]], q: float) -> float:
    """Return the q-th percentile of all runs of one process, by `log_quantile`, in nanoseconds."""
    return math.exp(log_quantile(np.concatenate(bursts_ns), q))


def ratio_of_single_runs(
    candidate_ns: Sequence[int], baseline_ns: Sequence[int], q: float, *, unknown: float
) -> SpeedRatio:
    """Return the ratio of the q-th percentiles of two processes that were not paired.

    The distances of the two independent intervals add up as standard errors do, as logarithms (Zou
    and Donner, Statistics in Medicine 27, 2008). `unknown` is the fraction by which the minutes of
    the two may differ, which widens the interval on both sides.
    """
    new, old = percentile(candidate_ns, q), percentile(baseline_ns, q)
    new_low, new_high = percentile_interval(candidate_ns, q)
    old_low, old_high = percentile_interval(baseline_ns, q)
    down = math.hypot(_apart(new_low, new), _apart(old, old_high)) + math.log1p(unknown)
    up = math.hypot(_apart(new, new_high), _apart(old_low, old)) + math.log1p(unknown)
    ratio = new / old
    return SpeedRatio(ratio=ratio, low=ratio * math.exp(-down), high=ratio * math.exp(up))


def _apart(low: float, high: float) -> float:
    """Return the distance of two times as a logarithm; infinite to an end that is not known."""
    return math.log(high / low) if low else math.inf


def student_interval(
    values: Sequence[float], *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return Student's interval of the mean of independent values: mean -+ t * s / sqrt(n).

    Raises:
        ValueError: there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("an interval needs at least two values")
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = student_quantile(confidence, degrees=len(values) - 1) * error
    return mean - half, mean + half


@functools.cache
def student_quantile(confidence: float, *, degrees: int) -> float:
    """Return the two-sided quantile t of Student's distribution: P(-t to t) is the confidence.

    By bisection on the distribution function for whole degrees of freedom (Abramowitz and Stegun,
    26.7.3 and 26.7.4).

    Raises:
        ValueError: the confidence is not between 0 and 1, or there are no degrees of freedom.
    """
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError("needs a confidence between 0 and 1, and at least 1 degree of freedom")
    low, high = 0.0, 1.0
    while _student_within(high, degrees) < confidence:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _student_within(middle, degrees) < confidence else (low, middle)
        )
    return high


def _student_within(t: float, degrees: int) -> float:
    """Return the probability of -t to t."""
    theta = math.atan2(t, math.sqrt(degrees))
    cos2 = math.cos(theta) ** 2
    odd = degrees % 2
    # The sum of c_k cos^k: even powers from 1 for even degrees, odd ones from cos for odd.
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for k in range(odd, degrees - 1, 2):
        total += term
        term *= cos2 * (k + 1) / (k + 2)
    if not odd:
        return math.sin(theta) * total
    return 2 / math.pi * (theta + math.sin(theta) * total)
