"""Intervals of a counted proportion, and of the difference of two counted on the same samples.

All but the bounds are two-sided, and binomial tails are summed: nothing is approximated but what
says so.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    *("binomial_chances", "clopper_pearson", "fewest_samples", "mcnemar_exact"),
    *("num_trials_to_show", "paired_difference_interval", "upper_bound"),
]

# More trials than these nobody makes, and a sum over them takes a second.
_MOST_TRIALS = 10**6


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
        at_least = binomial_chances(num_trials, num_hits, num_trials)
        low = _bisect(lambda p: at_least(p).sum() < tail, 0.0, 1.0)
    high = 1.0
    if num_hits < num_trials:
        at_most = binomial_chances(num_trials, 0, num_hits)
        high = _bisect(lambda p: at_most(p).sum() > tail, 0.0, 1.0)
    return low, high


def upper_bound(
    hits: float, num_trials: int, *, is_counted: bool = True, confidence: float = 0.95
) -> float:
    """Return the one-sided upper bound of a proportion, or of a mean of values in [0, 1].

    Of a proportion with k hits in n trials it is Clopper and Pearson's, exact: where

        P(X <= k | bound) = 1 - confidence        X ~ Bin(n, p)

    Without a hit that is 1 - (1 - confidence)^(1 / n), of values in [0, 1] too. Unless
    `is_counted`, `hits` is the sum of n independent values in [0, 1], and the bound that of their
    mean by Bentkus (Annals of Probability 32, 2004; as Bates et al. use it, Journal of the ACM 68,
    2021):

        e P(X <= ceil(hits) | bound) = 1 - confidence

    Raises:
        ValueError: there are no trials, more hits than trials, or no such confidence.
    """
    if not 0 <= hits <= num_trials or num_trials < 1:
        raise ValueError(f"{hits} hits in {num_trials} trials are no proportion")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    if hits == 0:
        return -math.expm1(math.log1p(-confidence) / num_trials)
    tail = (1 - confidence) / (1 if is_counted else math.e)
    whole = math.ceil(hits)
    if whole == num_trials:
        return 1.0
    at_most = binomial_chances(num_trials, 0, whole)
    return _bisect(lambda p: at_most(p).sum() > tail, 0.0, 1.0)


def num_trials_to_show(
    limit: float, *, rate: float = 0.0, is_counted: bool = True, confidence: float = 0.95
) -> int | None:
    """Return the number of trials whose `upper_bound` is at most `limit`, if hits come at `rate`.

    The least one for a rate of 0, otherwise to within a hundredth; None where no number shows it,
    or more than a million. For `is_counted` see `upper_bound`.
    """
    if not rate < limit or limit <= 0:
        return None
    if limit >= 1:
        return 1
    if rate == 0:
        least = math.ceil(math.log1p(-confidence) / math.log1p(-limit))
        return least if least <= _MOST_TRIALS else None

    def shows(num: int) -> bool:
        hits = math.ceil(rate * num)
        return upper_bound(hits, num, is_counted=is_counted, confidence=confidence) <= limit

    low, high = 0, 1
    while not shows(high):
        low, high = high, 2 * high
        if high > _MOST_TRIALS:
            return None
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


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

    Of n samples, b are hits of the first alone and c of the second alone, with the exact intervals
    (l1, u1) of b / n and (l2, u2) of c / n, of which p1 - p2 is the difference. Their distances add
    up as standard errors do (Zou and Donner, Statistics in Medicine 27, 2008): with x = b / n - l1
    and y = u2 - c / n,

        low = (b - c) / n - sqrt(x^2 + y^2 - 2 r x y)

    and high likewise from u1 and l2, where r <= 0 is the correlation of two counts that share n
    samples, -sqrt(b c / ((n - b) (n - c))).

    An approximation, of exact parts: summed over all outcomes it covers in 95 % or more, from 25
    samples on and however few disagree (`benchmarks/statistics`), where Tango's score interval goes
    down to 92.8 %. Where none disagree it has a width: no difference in n samples leaves 3.7 / n.

    Raises:
        ValueError: there are no samples, fewer than counted, or no such confidence.
    """
    b, c, n = num_first_only, num_second_only, num_samples
    if min(b, c) < 0 or n < max(1, b + c):
        raise ValueError(f"{b} and {c} of {n} samples are no paired proportions")
    low_1, high_1 = clopper_pearson(b, n, confidence=confidence)
    low_2, high_2 = clopper_pearson(c, n, confidence=confidence)
    r = -math.sqrt(b * c / ((n - b) * (n - c))) if max(b, c) < n else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(x * x + y * y - 2 * r * x * y)

    found = (b - c) / n
    low = found - reach(b / n - low_1, high_2 - c / n)
    high = found + reach(high_1 - b / n, c / n - low_2)
    return max(-1.0, low), min(1.0, high)


def fewest_samples(difference: float, *, confidence: float = 0.95) -> int:
    """Return the fewest samples whose `paired_difference_interval` can be within `difference`.

    That is if not one of them disagrees. The interval then ends where Clopper and Pearson's of no
    hit does, at 1 - (alpha / 2)^(1 / n), alpha = 1 - confidence.

    Raises:
        ValueError: no number of samples shows that difference, or no such confidence.
    """
    if not 0 < difference <= 1:
        raise ValueError(f"a difference of {difference} cannot be shown")
    if difference == 1:
        return 1
    return math.ceil(math.log(_tail_of(confidence)) / math.log1p(-difference))


def binomial_chances(
    num_trials: int, first: int, last: int
) -> Callable[[float], NDArray[np.float64]]:
    """Return P(X = first) to P(X = last) for X ~ Bin(num_trials, p), as a function of 0 < p < 1."""
    counts = np.arange(first, last + 1)
    lgamma = math.lgamma
    whole = lgamma(num_trials + 1)
    # Logarithms, as the numbers themselves leave float64 beyond some thousand trials.
    log_ways = np.array(
        [whole - lgamma(k + 1) - lgamma(num_trials - k + 1) for k in range(first, last + 1)]
    )

    def chances(p: float) -> NDArray[np.float64]:
        with np.errstate(under="ignore"):
            logs = log_ways + counts * math.log(p) + (num_trials - counts) * math.log1p(-p)
            return np.asarray(np.exp(logs))

    return chances


def _tail_of(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    return (1 - confidence) / 2


def _bisect(is_below: Callable[[float], bool], low: float, high: float) -> float:
    """Return the point between two numbers from which on `is_below` is false."""
    while low < (middle := (low + high) / 2) < high:
        if is_below(middle):
            low = middle
        else:
            high = middle
    return high
