"""Quantiles of measured times, and distribution-free intervals of them.

Times are in the order they were measured; n of them, of which x(r) is the r-th least.
"""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from resdeploy.statistics.proportions import binomial_chances

__all__ = [
    "CONFIDENCE",
    "effective_runs",
    "least_runs",
    "log_quantile",
    "percentile",
    "percentile_interval",
    "runs_needed",
]

CONFIDENCE = 0.95
_TAIL = (1 - CONFIDENCE) / 2


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
    rank = _rank(q, values_n.size)
    return float(np.partition(values_n, rank - 1)[rank - 1])


def _rank(q: float, size: int) -> int:
    # Exact arithmetic on the decimal that was written: 55 / 100 * 100 is above 55 in float64, and
    # its ceiling would be the wrong rank.
    return max(1, math.ceil(Fraction(str(q)) * size / 100))


def log_quantile(times: ArrayLike, q: float) -> float:
    """Return the logarithm of the q-th percentile, as nearly unbiased as few times allow.

    At the position p (n + 1/3) + 1/3, between two times in proportion (Hyndman and Fan, The
    American Statistician 50, 1996, definition 8). For means over many short samples: x(99) of 100
    lies at the 98th percentile in the mean, and no number of samples averages that away.

    Args:
        times: (n,) positive numbers, n >= 1.
        q: in percent, 0 < q < 100.
    """
    times_n = np.sort(np.asarray(times, dtype=np.float64))
    position = q / 100 * (times_n.size + 1 / 3) + 1 / 3
    return float(np.interp(position, np.arange(1, times_n.size + 1), np.log(times_n)))


def percentile_interval(times: ArrayLike, q: float) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of the q-th percentile of positive times.

    Of n independent times, K ~ Bin(n, q / 100) lie below the percentile, whatever their
    distribution, so that x(l) and x(u) surround it but for

        P(K < l) <= 2.5 %        P(K >= u) <= 2.5 %

    with the largest such l and the least such u (David and Nagaraja, Order Statistics, 7.1). Where
    there is no such l, low is 0; where there is no such u, high is infinite: 0.99^n is above 2.5 %
    up to n = 367, and the longest of them may lie below p99.

    Neighbours are alike: n times say what `effective_runs` independent ones would, each counted
    n / m times (Woodruff, JASA 47, 1952, with the effective size of Korn and Graubard, Survey
    Methodology 24, 1998). Of independent times the order tells nothing of the values, so that this
    widens the interval a little, and leaves its confidence as it is. Coverage:
    `benchmarks/statistics`.

    Raises:
        ValueError: there are no times.
    """
    times_n = np.sort(np.asarray(times, dtype=np.float64))
    size = times_n.size
    effective = effective_runs(times, q)
    lower, upper = _ranks(effective, q / 100)
    low = 0.0 if lower == 0 else times_n[(lower - 1) * size // effective]
    high = math.inf if upper > effective else times_n[upper * size // effective - 1]
    return float(low), float(high)


def _ranks(size: int, p: float) -> tuple[int, int]:
    """Return the ranks l and u of the interval; 0 and size + 1 where there is none."""
    reach = 10 * math.sqrt(size * p * (1 - p)) + 20  # what lies beyond is below 1e-20
    first = max(0, math.floor(size * p - reach))
    last = min(size, math.ceil(size * p + reach))
    chances = binomial_chances(size, first, last)(p)
    lower = first + np.count_nonzero(np.cumsum(chances) <= _TAIL)
    upper = last + 1 - np.count_nonzero(np.cumsum(chances[::-1]) <= _TAIL)
    return int(lower), int(upper)


def effective_runs(times: ArrayLike, q: float) -> int:
    """Return the number of independent times that tell as much of the q-th percentile.

    n / tau, where tau = 1 + 2 sum r(k) over the autocorrelations of being above the percentile: it
    is their number that an interval counts. The sum ends where a pair r(2k) + r(2k + 1) is not
    positive (Geyer, Statistical Science 7, 1992). What it has above 1 is enlarged by what the mean
    of the same times takes from each r, some tau / n, and by (t / z)^2 = 1 + 2.4 tau / m, Student's
    for the normal quantile, as no more than m / tau times beyond the percentile tell of it.

    Raises:
        ValueError: there are no times.
    """
    times_n = np.asarray(times, dtype=np.float64)
    size = times_n.size
    if size == 0:
        raise ValueError("an interval needs at least one value")
    above_n = (times_n > percentile(times_n, q)).astype(np.float64)
    num_beyond = int(min(above_n.sum(), size - above_n.sum()))
    if num_beyond == 0:  # p99 of fewer than 100, or times that are all equal
        return size
    power = np.abs(np.fft.rfft(above_n - above_n.mean(), 2 * size)) ** 2
    covariances = np.fft.irfft(power, 2 * size)[: size // 2 * 2]
    pairs = (covariances / covariances[0]).reshape(-1, 2).sum(axis=1)
    num_pairs = int(np.argmin(np.append(pairs, 0.0) > 0))
    tau = 2 * float(pairs[:num_pairs].sum()) - 1
    tau = 1 + (tau - 1) * (1 + (4 * num_pairs - 2) / size + 2.4 * tau / num_beyond)
    return max(1, math.floor(size / max(1.0, tau)))


def least_runs(q: float) -> int:
    """Return the least number of independent runs whose q-th percentile has both ends."""
    p = q / 100
    return math.ceil(math.log(_TAIL) / math.log(max(p, 1 - p)))


def runs_needed(times: ArrayLike, q: float) -> int:
    """Return the number of runs like these whose q-th percentile would have both ends."""
    return math.ceil(least_runs(q) * len(np.asarray(times)) / effective_runs(times, q))
