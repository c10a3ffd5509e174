"""Intervals of a counted proportion, and of the difference of two counted on the same samples.

All are two-sided. Nothing is approximated but what says so: binomial tails are summed.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

__all__ = ["clopper_pearson", "mcnemar_exact", "paired_difference_interval"]


def clopper_pearson(
    num_hits: int, num_trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the exact interval (low, high) of a proportion of which `num_hits` were counted.

    With k hits in n trials and alpha = 1 - confidence, low and high are where

        P(X >= k | low) = alpha / 2        P(X <= k | high) = alpha / 2        X ~ Bin(n, p)

    (Clopper and Pearson, Biometrika 26, 1934). It covers the true proportion with at least that
    confidence, whatever the proportion is.

    Raises:
        ValueError: there are no trials, more hits than trials, or no such confidence.
    """
    if not 0 <= num_hits <= num_trials or num_trials < 1:
        raise ValueError(f"{num_hits} hits in {num_trials} trials are no proportion")
    tail = _tail_of(confidence)
    low = 0.0
    if num_hits > 0:
        at_least = _tail_probability(num_trials, num_hits, num_trials)
        low = _bisect(lambda p: at_least(p) < tail, 0.0, 1.0)
    high = 1.0
    if num_hits < num_trials:
        at_most = _tail_probability(num_trials, 0, num_hits)
        high = _bisect(lambda p: at_most(p) > tail, 0.0, 1.0)
    return low, high


def mcnemar_exact(num_first_only: int, num_second_only: int) -> float:
    """Return the p-value of McNemar's test, exact, that two classifiers are right equally often.

    Only the b + c samples that one of the two alone gets right say anything (McNemar, Psychometrika
    12, 1947). If both were equally good, each would fall to either with probability 1/2:

        p = min(1, 2 * P(X <= min(b, c)))        X ~ Bin(b + c, 1/2)

    The full probability of the outcome is counted, not half of it as the mid-p variant does, which
    can reject a true hypothesis more often than it says (Fagerland, Lydersen and Laake, BMC Medical
    Research Methodology 13:91, 2013). In whole numbers, divided once.
    """
    num = num_first_only + num_second_only
    term, total = 1, 0
    for k in range(min(num_first_only, num_second_only) + 1):
        total += term
        term = term * (num - k) // (k + 1)
    return min(1.0, 2 * total / (1 << num))


def paired_difference_interval(
    num_first_only: int, num_second_only: int, num_samples: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of p1 - p2, two proportions counted on the same samples.

    Of n samples, b are hits of the first alone and c of the second alone. Tango's score interval
    (Statistics in Medicine 17, 1998): every difference d that the score test does not reject,

        (b - c - n d)^2 <= z^2 n (2 q + d (1 - d))

    where q is the likeliest chance of c given d: with B = (2 n - b + c) d - b - c,

        q = (sqrt(B^2 + 8 n c d (1 - d)) - B) / (4 n)

    An approximation, but one that holds its confidence closely from some 25 samples on, and one of
    those that Fagerland, Lydersen and Laake (Statistics in Medicine 33, 2014) recommend. Unlike an
    interval from the discordant samples alone, it has a width where there are none: no difference
    in n samples leaves z^2 / (n + z^2) either way.

    Raises:
        ValueError: there are no samples, fewer than counted, or no such confidence.
    """
    b, c, n = num_first_only, num_second_only, num_samples
    if min(b, c) < 0 or n < max(1, b + c):
        raise ValueError(f"{b} and {c} of {n} samples are no paired proportions")
    z_squared = NormalDist().inv_cdf(1 - _tail_of(confidence)) ** 2

    def is_rejected(d: float) -> bool:
        linear = (2 * n - b + c) * d - b - c
        root = math.sqrt(max(0.0, linear * linear + 8 * n * c * d * (1 - d)))
        q = (root - linear) / (4 * n)
        return (b - c - n * d) ** 2 > z_squared * n * (2 * q + d * (1 - d))

    found = (b - c) / n
    low = -1.0 if c == n else _bisect(is_rejected, -1.0, found)
    high = 1.0 if b == n else _bisect(lambda d: not is_rejected(d), found, 1.0)
    return low, high


def _tail_of(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    return (1 - confidence) / 2


def _tail_probability(num_trials: int, first: int, last: int) -> Callable[[float], float]:
    """Return P(first <= X <= last) for X ~ Bin(num_trials, p), as a function of 0 < p < 1."""
    counts = np.arange(first, last + 1)
    lgamma = math.lgamma
    whole = lgamma(num_trials + 1)
    # Logarithms, as the numbers themselves leave float64 beyond some thousand trials.
    log_ways = np.array(
        [whole - lgamma(k + 1) - lgamma(num_trials - k + 1) for k in range(first, last + 1)]
    )

    def probability(p: float) -> float:
        terms = log_ways + counts * math.log(p) + (num_trials - counts) * math.log1p(-p)
        with np.errstate(under="ignore"):
            return float(np.exp(terms).sum())

    return probability


def _bisect(is_below: Callable[[float], bool], low: float, high: float) -> float:
    """Return the point between two numbers from which on `is_below` is false."""
    while low < (middle := (low + high) / 2) < high:
        if is_below(middle):
            low = middle
        else:
            high = middle
    return high
