"""Rounding variances of all but layers: functions of single values, norms, moved values.

Near a kink (ReLU, clamp) the slope is the steepest within 4 sigma: an error may cross it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from resdeploy.export.rounding import rounding, share_of_repeats, sum_roundings
from resdeploy.export.trace_refusals import operator_name
from resdeploy.export.value_with_variance import (
    REACH,
    NoisyCall,
    Rule,
    ValueWithVariance,
    by_channel,
    unknown_variance,
    value_of,
    variance_of,
)
from resdeploy.verify.precision import FLOAT32_ROUNDOFF

__all__ = [
    "SMOOTH_ROUNDINGS",
    "add",
    "around_a_half",
    "around_one_below_0",
    "divide",
    "elementwise",
    "group_norm",
    "instance_norm",
    "interpolate",
    "join",
    "layer_norm",
    "log_softmax",
    "max_pool",
    "move",
    "multiply",
    "of_the_input",
    "pad",
    "relu",
    "softmax",
    "softmax_along",
]

# The variance of a float32 implementation of a smooth function: of 4 roundings, evenly spread.
SMOOTH_ROUNDINGS = 4 / 3

# The smallest number that an exp need make; below it may give 0.
_SMALLEST_EXP = 2.0**-126

# An error of a logarithm that leaves no digit of the number.
_FARTHEST = 40.0

_Size = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def of_the_input(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Return x: x times a probability near 0 that is itself computed as a difference."""
    return x


def around_a_half(_: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return 1/2 or more: a sigmoid computed as 1/2 + tanh(x/2)/2, or (x + 3)/6 cut off."""
    return y.abs().clamp_min(0.5)


def around_one_below_0(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return y, and 1 or more for x below 0: computed as exp(x) - 1."""
    return torch.where(x < 0, y.abs().clamp_min(1), y)


# --- element by element --------------------------------------------------------------------------


def relu(call: NoisyCall) -> ValueWithVariance:
    """Return the variance where the ReLU is open, or where an error within reach opens it."""
    x = call.x
    reach = (REACH * call.unit_roundoff) ** 2
    is_open = (x.value > 0) | (x.value.square() < reach * x.variance)
    # Of independent errors the open part is left; of one that all share, less: its square.
    return ValueWithVariance(
        call.on(x.value), x.variance * is_open, x.of_mean * by_channel(is_open.float())
    )


def elementwise(roundings: float, *, size: _Size = lambda _, y: y) -> Rule:
    """Return the rule f'(x)^2 Var(x), the steepest within reach, and a few roundings of f's own.

    Args:
        roundings: the variance of f's own, relative to their size squared, in units of u^2.
        size: of what is rounded, by x and f(x).
    """

    def rule(call: NoisyCall) -> ValueWithVariance:
        x = call.x
        reach = REACH * call.unit_roundoff * x.variance.sqrt()
        value = call.on(x.value)
        slope = torch.zeros_like(value)
        for shift in (-1, 0, 1):
            with torch.enable_grad():
                at = (x.value + shift * reach).requires_grad_()
                (gradient,) = torch.autograd.grad(call.on(at).sum(), at)
            slope = torch.maximum(slope, gradient.abs())
        own = rounding(size(x.value, value), roundings)
        return ValueWithVariance(value, slope.square() * x.variance + own)

    return rule


def add(sign: int) -> Rule:
    """Return the rule of a + sign alpha b: variances add, but for a value added to itself."""

    def rule(call: NoisyCall) -> ValueWithVariance:
        a, b = call.args[:2]
        alpha = call.kwargs.get("alpha", 1)
        value = call.target(value_of(a), value_of(b), **call.kwargs)
        if a is b:
            variance = (1 + sign * alpha) ** 2 * variance_of(a)
        else:
            variance = variance_of(a) + alpha**2 * variance_of(b)
        mean = None
        both = isinstance(a, ValueWithVariance) and isinstance(b, ValueWithVariance) and a is not b
        if both and a.value.shape == b.value.shape:
            own = by_channel(rounding(value)) * share_of_repeats(value)
            mean = a.of_mean + alpha**2 * b.of_mean + own
        return ValueWithVariance(value, variance + rounding(value), mean)

    return rule


def multiply(call: NoisyCall) -> ValueWithVariance:
    """Return b^2 Var(a) + a^2 Var(b)."""
    a, b = call.args[:2]
    av, bv = value_of(a), value_of(b)
    value = call.target(av, bv)
    if a is b:
        variance = 4 * av**2 * variance_of(a)
    else:
        variance = variance_of(a) * bv**2 + variance_of(b) * av**2
    return ValueWithVariance(value, variance + rounding(value))


def divide(call: NoisyCall) -> ValueWithVariance:
    """Return (Var(a) + (a/b)^2 Var(b)) / b^2."""
    a, b = call.args[:2]
    if call.kwargs or a is b:
        raise unknown_variance(call.node)
    bv = value_of(b)
    value = call.target(value_of(a), bv)
    variance = (variance_of(a) + value.square() * variance_of(b)) / bv**2
    return ValueWithVariance(value, variance + rounding(value))


# --- across an axis ------------------------------------------------------------------------------


def softmax(call: NoisyCall) -> ValueWithVariance:
    """Return the variance of `softmax_along` the axis."""
    return softmax_along(call.x, call.args[1])


def softmax_along(x: ValueWithVariance, axis: int) -> ValueWithVariance:
    """Return y = softmax(x) with y_i^2 times the variance of log y_i, and its own roundings.

    An error r of log(y_i / (1 - y_i)) changes the slope y_i (1 - y_i) by a factor of exp(|r|) at
    most, and what lies within 0 and 1 is at most 1 off. What exp makes of numbers below -87 may
    vanish.
    """
    log_y, variance, reach = _log_softmax(x, axis)
    y = log_y.exp()
    variance = y.square() * (variance * (2 * reach).exp() + SMOOTH_ROUNDINGS)
    variance = variance.clamp_max(FLOAT32_ROUNDOFF**-2)
    return ValueWithVariance(y, variance + (_SMALLEST_EXP / FLOAT32_ROUNDOFF) ** 2)


def log_softmax(call: NoisyCall) -> ValueWithVariance:
    """Return the variance of log y_i, and roundings of the size of y and of x."""
    x = call.x
    y, variance, reach = _log_softmax(x, call.args[1])
    own = rounding(y, SMOOTH_ROUNDINGS) + rounding(x.value, SMOOTH_ROUNDINGS)
    return ValueWithVariance(y, variance * (2 * reach).exp() + own)


def _log_softmax(
    x: ValueWithVariance, axis: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log y, its variance and the reach of the error of log(y_i / (1 - y_i)).

    Var(log y_i) = (1 - 2 y_i) Var_i + sum_j y_j^2 Var_j, as d log y_i / dx_j = d_ij - y_j. To
    Var_i comes the rounding of x_i - max x, and to the sum its own roundings, those of one for all.
    """
    log_y = x.value.log_softmax(axis)
    y = log_y.exp()
    below = x.value - x.value.amax(axis, keepdim=True)
    variance = x.variance + rounding(below)
    spread = (y.square() * (variance + SMOOTH_ROUNDINGS)).sum(axis, keepdim=True)
    of_log = ((1 - 2 * y) * variance + spread).clamp_min(0)
    of_log = of_log + sum_roundings(y.movedim(axis, -1)).unsqueeze(-1).movedim(-1, axis)
    farthest = variance.amax(axis, keepdim=True)
    reach = REACH * FLOAT32_ROUNDOFF * (variance + farthest).sqrt()
    return log_y, of_log, reach.clamp_max(_FARTHEST)


def layer_norm(call: NoisyCall) -> ValueWithVariance:
    """Return the variance of `_normalise` over the last axes."""
    x, rank = call.x, len(call.args[1])
    gamma, beta = (call.argument(at, name, None) for at, name in ((2, "weight"), (3, "bias")))
    flat = ValueWithVariance(x.value.flatten(-rank), x.variance.flatten(-rank))
    gamma, beta = (None if c is None else c.flatten() for c in (gamma, beta))
    normalised = _normalise(flat, gamma, beta, call.argument(4, "eps", 1e-5))
    return ValueWithVariance(call.on(x.value), normalised.reshape(x.value.shape))


def group_norm(call: NoisyCall) -> ValueWithVariance:
    """Return the variance of `_normalise` over each group of channels."""
    x, groups = call.x, call.args[1]
    gamma, beta = (call.argument(at, name, None) for at, name in ((2, "weight"), (3, "bias")))
    shape = (x.value.shape[0], groups, -1)
    flat = ValueWithVariance(x.value.reshape(shape), x.variance.reshape(shape))

    def spread(c: Any) -> Any:
        like = x.value[0]
        shape = (-1, *(1,) * (like.ndim - 1))
        return None if c is None else c.reshape(shape).expand_as(like).reshape(groups, -1)

    normalised = _normalise(flat, spread(gamma), spread(beta), call.argument(4, "eps", 1e-5))
    return ValueWithVariance(call.on(x.value), normalised.reshape(x.value.shape))


def instance_norm(call: NoisyCall) -> ValueWithVariance:
    """Return the variance of `_normalise` over each channel's positions."""
    x = call.x
    gamma, beta = (None if c is None else c[:, None] for c in call.args[1:3])
    flat = ValueWithVariance(x.value.flatten(2), x.variance.flatten(2))
    normalised = _normalise(flat, gamma, beta, call.args[7])
    return ValueWithVariance(call.on(x.value), normalised.reshape(x.value.shape))


def _normalise(x: ValueWithVariance, gamma: Any, beta: Any, eps: float) -> torch.Tensor:
    """Return the variance of (x - m)/s gamma + beta, m and s over the last axis of D values.

    With h = (x - m)/s: dh_i/dx_j = (d_ij - 1/D - h_i h_j/D)/s. Own roundings: of x and m in the
    difference, of the two sums over D, and a few of the rest.
    """
    value, var = x.value, x.variance
    size = value.shape[-1]
    mean = value.mean(-1, keepdim=True)
    inverse = (value.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
    h = (value - mean) * inverse

    def total(weighted: torch.Tensor) -> torch.Tensor:
        return weighted.sum(-1, keepdim=True) / size**2

    # Together one rounding of x, since every x has its own; m is off by its sum's and one more.
    of_mean = sum_roundings(value)[..., None] / size**2 + mean.square() / 3
    # The relative error of s is half that of the mean square.
    of_scale = sum_roundings(h.square())[..., None] / (2 * size) ** 2
    own = (SMOOTH_ROUNDINGS + of_scale) * h.square()
    var = var + value.square() / 3
    jacobian = var * (1 - 2 / size - 2 * h.square() / size)
    jacobian = jacobian + total(var) + 2 * h * total(var * h)
    jacobian = (jacobian + h.square() * total(var * h.square())).clamp_min(0) + of_mean
    variance = jacobian * inverse.square() + own
    variance = variance if gamma is None else variance * gamma.square()
    return variance if beta is None else variance + beta.square() / 3


# --- values that move ----------------------------------------------------------------------------


def move(call: NoisyCall) -> Any:
    """Return variances moved as the values are."""
    values, variances = call.on(call.x.value), call.on(call.x.variance)
    if isinstance(values, torch.Tensor):
        if values.dtype not in (torch.float32, torch.float64):
            raise unknown_variance(call.node)  # another precision, another u
        moved = ValueWithVariance(values, variances)
        is_whole = values.shape[:2] == call.x.value.shape[:2]
        if is_whole and operator_name(call.node) in _SAME_CHANNELS:
            mean = call.x.of_mean
            if values.shape != call.x.value.shape:  # fewer positions to average over
                mean = mean + moved.if_independent
            moved = replace(moved, mean_variance_NC=mean)
        return moved
    return [ValueWithVariance(*pair) for pair in zip(values, variances, strict=True)]


def pad(call: NoisyCall) -> ValueWithVariance:
    """Return a padded value; constant padding is exact."""
    x, mode = call.x, "constant"
    if operator_name(call.node) == "pad":
        mode = call.argument(2, "mode", "constant")
    variance = F.pad(x.variance, call.args[1]) if mode == "constant" else call.on(x.variance)
    mean, rank = x.mean_variance_NC, x.value.ndim
    widths = tuple(call.args[1])
    before = 2 * (rank - 2)  # the positions come first; then the channels, which are padded with 0
    if mean is not None and mode == "constant" and len(widths) <= before + 2:
        mean = F.pad(mean, widths[before:] or (0, 0))
    return ValueWithVariance(call.on(x.value), variance, mean if mode == "constant" else None)


def interpolate(call: NoisyCall) -> ValueWithVariance:
    """Return the interpolated variance: the weights are not negative, and their sum is 1.

    For errors of whatever kin, Var(sum w e) is then at most sum w Var(e). Own roundings: those of
    a sum of 2^d products, and of the weights, which are differences of places: of an error of
    a few u L along a side of length L, times what two neighbours differ by. Where the ratio of the
    sides is a power of two, places are exact.
    """
    x, value = call.x, call.on(call.x.value)
    rank = x.value.ndim - 2
    variance = call.on(x.variance) + rounding(call.on(x.value.abs()), 2**rank + SMOOTH_ROUNDINGS)
    for axis in range(2, rank + 2):
        before, after = x.value.shape[axis], value.shape[axis]
        is_aligned = bool(call.args[2])
        if is_aligned or math.frexp(before / after)[0] != 0.5:
            steps = x.value.diff(dim=axis, append=x.value.narrow(axis, -1, 1))
            largest = steps.abs().flatten(2).amax(2)
            off = SMOOTH_ROUNDINGS * (before * largest).square()
            variance = variance + off.reshape(*off.shape, *(1,) * rank)
    return ValueWithVariance(value, variance)


def join(call: NoisyCall) -> ValueWithVariance:
    """Return variances joined as the values are."""
    values, variances = (list(map(f, call.args[0])) for f in (value_of, variance_of))
    return ValueWithVariance(call.on(values), call.on(variances))


def max_pool(call: NoisyCall) -> ValueWithVariance:
    """Return the variance of the value that was the largest."""
    x = call.x
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.value.ndim - 3]
    stride, padding, dilation, ceil = (
        call.argument(at, name, default)
        for at, (name, default) in enumerate(
            (("stride", []), ("padding", 0), ("dilation", 1), ("ceil_mode", False)), start=2
        )
    )
    value, index = pool(
        x.value, call.args[1], stride or None, padding, dilation, ceil, return_indices=True
    )
    chosen = x.variance.flatten(2).gather(2, index.flatten(2))
    y = ValueWithVariance(value, chosen.reshape(value.shape))
    return replace(y, mean_variance_NC=x.of_mean + y.if_independent)


# The moves that leave channels in place if they leave their number.
_SAME_CHANNELS = frozenset(("slice", "clone", "contiguous", "dropout", "detach", "alias", "to"))
