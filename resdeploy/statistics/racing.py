"""Bonferroni race: the fastest of many candidates, timed in turn; a beaten one leaves the race.

It ends when one is left, or when no other can be faster than the leader by more than would matter:
to tell equals apart takes the longest and gains nothing.

The logarithm of a candidate's time in one block is taken to be the sum of the candidate's own, of
the machine's state in that block, and of noise. A slower machine slows all candidates of a block,
and drops out of every difference; the noise is estimated from all candidates
together, so that two blocks are enough to drop the hopeless (the two-way layout of Montgomery,
"Design and Analysis of Experiments", chapter 4; racing after Maron and Moore 1994 and F-Race,
Birattari et al. 2002).

Shapes: B blocks, C candidates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resdeploy.statistics.paired import CONFIDENCE, student_quantile

__all__ = ["Race", "race", "standing"]

# A candidate that could be faster than the leader by at most this fraction is not waited for.
_INDIFFERENCE = 0.02

# Blocks after which the race is looked at: each time as much evidence again as there was.
_RUNGS = (2, 4, 8, 16)

# Slower than the best by this factor after a single block is no chance: fresh processes on a busy
# machine differ by a few percent, now and then by tens.
_HOPELESS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Result of a race.

    Attributes:
        log_times: for each candidate the logarithms of its times, one for each block it was in.
        num_blocks: the number of blocks.
        in_race: the candidates that were never beaten, the fastest first.
    """

    log_times: tuple[tuple[float, ...], ...]
    num_blocks: int
    in_race: tuple[int, ...]

    @property
    def winner(self) -> int:
        """The fastest of those that were never beaten."""
        return self.in_race[0]


def standing(
    logs_BC: NDArray[np.float64], *, num_looks: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (C,) the distance of each candidate to the leader, and (C,) its limit for chance.

    A candidate beyond its limit is beaten. A difference of two means has the standard error
    s sqrt(2/B), s^2 the mean square of what the sums of candidate and block leave, with
    (B-1)(C-1) degrees of freedom; or, where that is more, the one of its own B differences: a
    candidate that varies more than the others is not beaten by its bad luck. The confidence is that
    of all C-1 comparisons in all looks together (Bonferroni), so that the fastest leaves in at most
    one race of twenty (`benchmarks/statistics`; of 16, one that varies three times as much as all
    others leaves in one of ten).

    Args:
        logs_BC: logarithms of times; every candidate in every block, at least two of each.
        num_looks: how often the race is looked at.
    """
    num_blocks, num_candidates = logs_BC.shape
    means_C = logs_BC.mean(axis=0)
    left_BC = logs_BC - means_C - logs_BC.mean(axis=1, keepdims=True) + logs_BC.mean()
    degrees = (num_blocks - 1) * (num_candidates - 1)
    variance = float((left_BC**2).sum()) / degrees
    own_C = (logs_BC - logs_BC[:, [means_C.argmin()]]).var(axis=0, ddof=1)
    # Bonferroni's share of a one-sided test, for a two-sided quantile.
    alpha = 2 * (1 - CONFIDENCE) / (num_candidates - 1) / num_looks
    quantile = student_quantile(1 - min(alpha, 0.5), degrees=degrees)
    limit_C = quantile * np.sqrt(np.maximum(2 * variance, own_C) / num_blocks)
    return means_C - means_C.min(), limit_C


def race(
    num_candidates: int,
    measure: Callable[[Sequence[int], int], Sequence[float]],
    *,
    max_blocks: int = _RUNGS[-2],
    indifference: float = _INDIFFERENCE,
) -> Race:
    """Time candidates block by block until one is left, all are as good, or no blocks are left.

    Args:
        num_candidates: at least one.
        measure: takes the candidates still in the race and the number of the block, and returns
            the time of each, measured in turn.
        max_blocks: the most blocks.
        indifference: end once no rival can be faster than the leader by more than this fraction,
            with the confidence of `standing`.

    Raises:
        ValueError: there is no candidate, or a time is not positive.
    """
    if num_candidates < 1:
        raise ValueError("a race needs a candidate")
    logs: list[list[float]] = [[] for _ in range(num_candidates)]
    alive = list(range(num_candidates))
    looks = {*(rung for rung in _RUNGS if rung < max_blocks), max_blocks}
    number = 0
    while number < max_blocks and (len(alive) > 1 or number == 0):
        for candidate, time in zip(alive, measure(tuple(alive), number), strict=True):
            if not time > 0:
                raise ValueError(f"the time of candidate {candidate} is {time}")
            logs[candidate].append(math.log(time))
        number += 1
        if number == 1:
            first = min(logs[candidate][0] for candidate in alive)
            alive = [c for c in alive if logs[c][0] - first < math.log(_HOPELESS)]
        elif number in looks and len(alive) > 1:
            logs_BC = np.array([logs[candidate] for candidate in alive]).T
            behind_C, limit_C = standing(logs_BC, num_looks=len(looks))
            ahead_C = limit_C - behind_C  # by as much each could be faster than the leader
            alive = [c for c, ahead in zip(alive, ahead_C, strict=True) if ahead >= 0]
            # The leader is not its own rival.
            if np.delete(ahead_C, behind_C.argmin()).max() <= math.log1p(indifference):
                break
    fastest_first = sorted(alive, key=lambda candidate: float(np.mean(logs[candidate])))
    return Race(log_times=tuple(map(tuple, logs)), num_blocks=number, in_race=tuple(fastest_first))
