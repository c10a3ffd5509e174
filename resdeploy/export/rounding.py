"""Roundings of float32: of one result, of a sum in whatever order, of positions that repeat.

All are variances in units of u^2, u = 2^-24, for results given in float64.
"""

import functools

import torch

from resdeploy.verify.precision import FLOAT32_ROUNDOFF

__all__ = [
    "MORE_ROUNDINGS",
    "MOST_HALVINGS",
    "SMALLEST",
    "drift",
    "rounding",
    "share_of_repeats",
    "sum_roundings",
]

# Of a layer, beside its n products and sums: those of bias and weights (Higham 2002, ch. 3).
MORE_ROUNDINGS = 3

# Below the normal numbers a rounding is absolute: half of 2^-149, which is u 2^-126.
_SMALLEST_NORMAL = 2.0**-126
SMALLEST = _SMALLEST_NORMAL**2

# A sum may be added up in 2^5 parts: two registers of sixteen float32.
MOST_HALVINGS = 5

# Two positions of one value took the same roundings; float64 may differ in its own last bits.
_SAME = 2.0**-40
_MOST_COMPARED = 200


def rounding(value: torch.Tensor, variance: float = 1.0) -> torch.Tensor:
    """Return the variance of the rounding of results of this size.

    One rounding is within u max(|y|, 2^-126): its variance is at most the square of that, and only
    if evenly spread a third. The outputs of one operator may take but one rounding each, and where
    they are constant the same one for every input; so a third is for sums and for functions of
    several roundings.

    Args:
        value: y.
        variance: of the relative rounding.
    """
    return variance * (value.square() + SMALLEST)


def sum_roundings(terms: torch.Tensor) -> torch.Tensor:
    """Return the variance of the roundings of a plain sum over the last axis, in whatever order.

    Rounding j is within u |s_j|, s_j the partial sum, and within the term |x_j|. Where roundings do
    not depend on each other, the error of the sum is within lambda times the root of the sum of
    their squares, but with probability 2 exp(-lambda^2 / 2) (Azuma-Hoeffding; Higham & Mary 2019,
    theorem 2.4): sum_j min(u |s_j|, |x_j|)^2 stands for the variance. The order is taken for the
    worse of the given one, s_j the cumulative sums, and a random one: of s_j^2 there are n/3 y^2 +
    n/6 S on average, S the sum of the squares (see `variance`). Sums of blocks and of pairs of the
    given order are fewer and smaller.

    They do depend on each other where terms are equal, as in a channel that is constant: each
    addition to a sum in [2^e, 2^(e+1)), a multiple of its last place t, rounds x off by the same
    t round(x/t) - x. This drift is the sum of these over all terms, for the t of the largest
    partial sum, or of a smaller one: where the sum is still small, or one of several accumulators.
    """
    num_terms = terms.shape[-1]
    partial = terms.cumsum(-1)
    in_order = torch.minimum(partial.abs(), terms.abs() / FLOAT32_ROUNDOFF).square().sum(-1)
    at_random = num_terms * (partial[..., -1].square() / 3 + terms.square().sum(-1) / 6)
    drifts = (drift(terms, halvings) / FLOAT32_ROUNDOFF for halvings in range(MOST_HALVINGS + 1))
    return functools.reduce(torch.maximum, map(torch.square, drifts), in_order.maximum(at_random))


def drift(terms: torch.Tensor, halvings: int) -> torch.Tensor:
    """Return the drift of `sum_roundings`, t that of the largest partial sum / 2^`halvings`."""
    # A number in [2^(e-1), 2^e) has its last place at 2^(e-24).
    _, exponent = torch.frexp(terms.cumsum(-1).abs().amax(-1, keepdim=True))
    last_place = torch.ldexp(torch.ones_like(terms[..., :1]), exponent - 24 - halvings)
    last_place = last_place.clamp_min(_SMALLEST_NORMAL * 2 * FLOAT32_ROUNDOFF)
    return ((terms / last_place).round() * last_place - terms).sum(-1)


def share_of_repeats(value: torch.Tensor) -> torch.Tensor:
    """Return the part of a channel's squares that its mean does not average out: (N, C).

    Roundings of positions are independent where the values differ, which leaves 1/P of P positions.
    Equal values took equal roundings: of an image that is constant all of it is left. Some 200
    positions are compared with those half and a third of the map away.
    """
    if value.ndim == 2:
        return torch.ones_like(value)
    flat = value.flatten(2)
    num_positions = flat.shape[2]
    flat = flat[..., :: 1 + num_positions // _MOST_COMPARED]
    squares = flat.square()
    total = squares.sum(2)
    largest = torch.full_like(total, 1 / num_positions)
    for shift in {flat.shape[2] // 2, flat.shape[2] // 3} - {0}:
        same = (flat - flat.roll(shift, 2)).abs() <= _SAME * flat.abs()
        of_same = (squares * same).sum(2) / torch.where(total > 0, total, 1)
        largest = torch.maximum(largest, of_same)
    return largest
