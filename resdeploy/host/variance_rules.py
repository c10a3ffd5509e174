"""The rounding variance of one call, operator by operator.

Each rule is the first-order propagation of independent errors, Var(f) = sum_j (df/dx_j)^2 Var(x_j),
plus the operator's own roundings. Variances are in units of u^2, one rounding of y is y^2/3.

Errors of different positions of an image are not independent: neighbours share what they read. It
matters where positions are averaged, so the variance of each channel's mean error goes along.

Near a kink (ReLU, clamp) the slope is the steepest within 4 sigma: an error may cross it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from resdeploy.errors import UnsupportedModelError
from resdeploy.host.interpret import operator_name
from resdeploy.host.layers import Layer, as_layer, describe

__all__ = ["UNIT_ROUNDOFF", "Noisy", "propagate"]

UNIT_ROUNDOFF = 2.0**-24

# How far an error is thought to reach, in standard deviations.
_REACH = 4.0

# Roundings in a float32 implementation of a smooth function: within 4 ulp or so.
_SMOOTH_ROUNDINGS = 4.0


@dataclass(frozen=True, slots=True)
class Noisy:
    """A value and the variance of its rounding error, in units of u^2.

    `mean_variance_NC` is that of the error's mean over all positions, axes 2 and on; None where it
    is not known, and the errors may then all be the same.
    """

    value: torch.Tensor
    variance: torch.Tensor
    mean_variance_NC: torch.Tensor | None = None

    @property
    def num_positions(self) -> int:
        """How many positions a channel has."""
        return math.prod(self.value.shape[2:])

    @property
    def of_mean(self) -> torch.Tensor:
        """The variance of the mean error of each channel, at most (mean sigma)^2: (N, C)."""
        if self.mean_variance_NC is not None:
            return self.mean_variance_NC
        return _by_channel(self.variance.sqrt()).square()

    @property
    def if_independent(self) -> torch.Tensor:
        """The same if no two positions shared an error."""
        return _by_channel(self.variance) / self.num_positions


@dataclass(frozen=True, slots=True)
class _Call:
    """One call with the values it reads."""

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    unit_roundoff: float

    @property
    def x(self) -> Noisy:
        first = self.args[0]
        if not isinstance(first, Noisy):
            raise _unknown(self.node)
        return first

    def on(self, x: Any) -> Any:
        """Return what the call makes of another first argument."""
        target: Any = self.node.target
        return target(x, *self.args[1:], **self.kwargs)

    def argument(self, at: int, name: str, default: Any) -> Any:
        """Return an argument that may be given by place or by name."""
        return self.args[at] if len(self.args) > at else self.kwargs.get(name, default)


_Rule = Callable[[_Call], Any]


def propagate(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], *, unit_roundoff: float
) -> Any:
    """Return the result of a call whose arguments are `Noisy`, constant, or plain numbers.

    Raises:
        UnsupportedModelError: there is no rule for this call.
    """
    call = _Call(node, args, kwargs, unit_roundoff)
    name = operator_name(node)
    if name in _BLIND or not _any_noisy((args, kwargs)):
        target: Any = node.target
        args, kwargs = fx.node.map_aggregate((args, kwargs), _value)
        return target(*args, **kwargs)
    if as_layer(node) is not None and not isinstance(args[_weight_at(node)], Noisy):
        return _layer(call)
    rule = _RULES.get(name)
    if rule is None:
        raise _unknown(node)
    return rule(call)


# --- affine layers -------------------------------------------------------------------------------


def _layer(call: _Call) -> Noisy:
    """Return conv(Var + n/3 x^2, W^2) + n/3 b^2, which is one call of the layer, + n/9 y^2."""
    layer = as_layer(call.node)
    assert layer is not None
    x = call.args[layer.input_at]
    at = _weight_at(call.node)
    weight = call.args[at]
    bias_at = None if layer.bias is None else call.node.args.index(layer.bias)
    if not isinstance(x, Noisy) or (bias_at is not None and isinstance(call.args[bias_at], Noisy)):
        raise _unknown(call.node)
    num_products = _num_products(weight, transposed=layer.shape.transposed, linear=layer.is_linear)
    own = num_products / 3
    target: Any = call.node.target
    values, squares = list(call.args), list(call.args)
    values[layer.input_at] = x.value
    squares[layer.input_at] = x.variance + own * x.value.square()
    squares[at] = weight.square()
    if bias_at is not None:
        squares[bias_at] = own * call.args[bias_at].square()
    factors = {name: factor**2 for name, factor in call.kwargs.items()}
    y = _summed(target(*values, **call.kwargs), target(*squares, **factors), num_products)
    if layer.is_linear or layer.shape.transposed:
        return y
    return replace(y, mean_variance_NC=_mean_of_convolution(call, layer, x, y, num_products))


def _mean_of_convolution(
    call: _Call, layer: Layer, x: Noisy, y: Noisy, num_products: int
) -> torch.Tensor:
    """Return the variance of the mean error over positions: the layer of W summed over its taps.

    Var_mean <- (sum W)^2 Var_mean(x), the mean of a convolution being that of its input times the
    sum of the taps; plus the layer's own roundings, independent and so over the number of
    positions; plus the roundings of weights and bias, which are the same at every position. A
    stride that skips positions leaves fewer to average over. Borders are not told apart.
    """
    weight = call.args[_weight_at(call.node)]
    bias = None if layer.bias is None else call.args[call.node.args.index(layer.bias)]
    groups = layer.shape.groups

    def through(values_NC: torch.Tensor, weights_OI: torch.Tensor) -> torch.Tensor:
        return F.conv1d(values_NC[..., None], weights_OI[..., None], groups=groups)[..., 0]

    taps = weight.flatten(2)
    squares_OI = taps.square().sum(2)
    shared = through(_by_channel(x.value).square(), squares_OI)
    own = num_products * through(_by_channel(x.value.square()), squares_OI)
    if bias is not None:
        shared, own = shared + bias.square(), own + num_products * bias.square()
    own = own / 3 + num_products / 9 * _by_channel(y.value.square())
    before = x.of_mean
    if y.num_positions < x.num_positions:
        before = before + _by_channel(x.variance) / y.num_positions
    return through(before, taps.sum(2).square()) + own / y.num_positions + shared / 3


def _by_channel(values: torch.Tensor) -> torch.Tensor:
    """Return the mean over all positions: (N, C)."""
    return values.flatten(2).mean(2) if values.ndim > 2 else values


def _summed(value: torch.Tensor, variance: torch.Tensor, num_terms: Any) -> Noisy:
    """Return a sum of n terms with the roundings that n/3 (sum of squares) leaves out.

    The j-th partial sum is j/n y plus a part of random sign. The squares of the first part come to
    n y^2/3 over all j, and each is rounded once: where the terms agree in sign (the winning logit,
    an average after a ReLU) this is nearly all of the error.
    """
    return Noisy(value, variance + num_terms / 9 * value.square())


def _weight_at(node: fx.Node) -> int:
    layer = as_layer(node)
    assert layer is not None
    return node.args.index(layer.weight, layer.input_at + 1)


def _num_products(weight: torch.Tensor, *, transposed: bool, linear: bool) -> int:
    if linear:
        return int(weight.shape[0 if transposed else 1])
    if transposed:  # (in, out per group, kernel): each group has in / groups of them; no more
        return int(weight.shape[0] * math.prod(weight.shape[2:]))
    return weight[0].numel()


def _product(call: _Call) -> Noisy:
    """Return a @ b where either may be noisy: attention."""
    a, b = call.args[:2]
    (av, bv), (aa, bb) = (map(f, (a, b)) for f in (_value, _variance_of))
    target: Any = call.node.target
    own = av.shape[-1] / 3
    variance = target(aa + own * av.square(), bv.square()) + target(av.square(), bb)
    return _summed(target(av, bv), variance, av.shape[-1])


def _batch_norm(call: _Call) -> Any:
    """Return the affine map that a BatchNorm with stored statistics is, of three roundings."""
    x = call.x
    name = operator_name(call.node)
    gamma, beta, mean, var = call.args[1:5]
    uses_batch = bool(call.args[5]) if name in ("batch_norm", "instance_norm") else False
    if uses_batch or mean is None or var is None:
        raise _unknown(call.node)
    eps = call.args[6] if name == "_native_batch_norm_legit_no_training" else call.args[7]
    shape = (1, -1, *(1,) * (x.value.ndim - 2))
    scale = (var + eps).rsqrt() * (1 if gamma is None else gamma)
    beta = torch.zeros_like(mean) if beta is None else beta
    scale, beta, mean = (c.reshape(shape) for c in (scale, beta, mean))
    own = scale.square() * (x.value.square() + mean.square()) + beta.square()
    y = Noisy(
        (x.value - mean) * scale + beta,
        scale.square() * x.variance + own,
        _by_channel(scale.square()) * x.of_mean + _by_channel(own) / x.num_positions,
    )
    return (y, None, None) if name == "_native_batch_norm_legit_no_training" else y


def _average(call: _Call) -> Noisy:
    """Return the affine layer of n weights 1/n."""
    x, value = call.x, call.on(call.x.value)
    n = x.value.numel() / value.numel()
    variance = call.on(x.variance + n / 3 * x.value.square()) / n
    if x.value.ndim > 2 and value.numel() == math.prod(x.value.shape[:2]) and _keeps(call, value):
        more = x.of_mean - x.if_independent  # what positions that share errors add
        variance = variance + more.clamp_min(0).reshape(value.shape)
    return _summed(value, variance, n)


def _keeps(call: _Call, value: torch.Tensor) -> bool:
    """Whether samples and channels are what an average leaves apart."""
    kept = tuple(call.x.value.shape[:2])
    axes = call.args[1] if operator_name(call.node) == "mean" and len(call.args) > 1 else None
    rank = call.x.value.ndim
    right_axes = axes is None or {axis % rank for axis in axes} == set(range(2, rank))
    return right_axes and tuple(value.shape[:2]) == kept


def _average_pool(call: _Call) -> Noisy:
    """Return the same where windows overlap, and where padding does or does not count."""
    x, value = call.x, call.on(call.x.value)
    rank = x.value.ndim - 2
    kernel, padding = call.args[1], call.argument(3, "padding", 0)
    size = math.prod(kernel) if len(kernel) == rank else kernel[0] ** rank
    if call.argument(4, "ceil_mode", False) or call.argument(6, "divisor_override", None):
        raise _unknown(call.node)
    n: Any = size
    is_padded = any(padding) if isinstance(padding, list | tuple) else bool(padding)
    if is_padded and not call.argument(5, "count_include_pad", True):
        target: Any = call.node.target
        stride = call.argument(2, "stride", [])
        ones = torch.ones_like(x.value[:1, :1])
        n = (size * target(ones, kernel, stride, padding, False, True)).round()
    return _summed(value, call.on(x.variance + size / 3 * x.value.square()) / n, n)


def _sum(call: _Call) -> Noisy:
    x, value = call.x, call.on(call.x.value)
    n = x.value.numel() / value.numel()
    return _summed(value, call.on(x.variance + n / 3 * x.value.square()), n)


# --- element by element --------------------------------------------------------------------------


def _relu(call: _Call) -> Noisy:
    x = call.x
    reach = (_REACH * call.unit_roundoff) ** 2
    is_open = (x.value > 0) | (x.value.square() < reach * x.variance)
    # Of independent errors the open part is left; of one that all share, less: its square.
    return Noisy(call.on(x.value), x.variance * is_open, x.of_mean * _by_channel(is_open.float()))


def _elementwise(num_roundings: float, *, of_input: bool = False) -> _Rule:
    """Return the rule f'(x)^2 Var(x), the steepest within reach, and a few roundings of f's own.

    Args:
        num_roundings: how many.
        of_input: whether they are of the size of x rather than f(x): for x times a probability
            near 0 that is itself computed as a difference.
    """

    def rule(call: _Call) -> Noisy:
        x = call.x
        reach = _REACH * call.unit_roundoff * x.variance.sqrt()
        value = call.on(x.value)
        slope = torch.zeros_like(value)
        for shift in (-1, 0, 1):
            with torch.enable_grad():
                at = (x.value + shift * reach).requires_grad_()
                (gradient,) = torch.autograd.grad(call.on(at).sum(), at)
            slope = torch.maximum(slope, gradient.abs())
        rounded = x.value if of_input else value
        own = num_roundings / 3 * rounded.square()
        return Noisy(value, slope.square() * x.variance + own)

    return rule


def _add(sign: int) -> _Rule:
    def rule(call: _Call) -> Noisy:
        a, b = call.args[:2]
        alpha = call.kwargs.get("alpha", 1)
        target: Any = call.node.target
        value = target(_value(a), _value(b), **call.kwargs)
        if a is b:
            variance = (1 + sign * alpha) ** 2 * _variance_of(a)
        else:
            variance = _variance_of(a) + alpha**2 * _variance_of(b)
        mean = None
        both = isinstance(a, Noisy) and isinstance(b, Noisy) and a is not b
        if both and a.value.shape == b.value.shape:
            own = _by_channel(value.square()) / a.num_positions / 3
            mean = a.of_mean + alpha**2 * b.of_mean + own
        return Noisy(value, variance + value.square() / 3, mean)

    return rule


def _multiply(call: _Call) -> Noisy:
    a, b = call.args[:2]
    target: Any = call.node.target
    av, bv = _value(a), _value(b)
    value = target(av, bv)
    if a is b:
        variance = 4 * av**2 * _variance_of(a)
    else:
        variance = _variance_of(a) * bv**2 + _variance_of(b) * av**2
    return Noisy(value, variance + value.square() / 3)


def _divide(call: _Call) -> Noisy:
    a, b = call.args[:2]
    if call.kwargs or a is b:
        raise _unknown(call.node)
    target: Any = call.node.target
    bv = _value(b)
    value = target(_value(a), bv)
    variance = (_variance_of(a) + value.square() * _variance_of(b)) / bv**2
    return Noisy(value, variance + value.square() / 3)


# --- across an axis ------------------------------------------------------------------------------


def _softmax(call: _Call) -> Noisy:
    """Return y_i^2 ((1 - 2 y_i) Var_i + sum_j y_j^2 Var_j), as dy_i/dx_j = y_i (d_ij - y_j)."""
    x, axis = call.x, call.args[1]
    y = call.on(x.value)
    spread = (y.square() * x.variance).sum(axis, keepdim=True)
    variance = y.square() * ((1 - 2 * y) * x.variance + spread + _SMOOTH_ROUNDINGS / 3)
    return Noisy(y, variance)


def _log_softmax(call: _Call) -> Noisy:
    """Return (1 - 2 p_i) Var_i + sum_j p_j^2 Var_j, as dy_i/dx_j = d_ij - p_j."""
    x, axis = call.x, call.args[1]
    y = call.on(x.value)
    p = y.exp()
    variance = (1 - 2 * p) * x.variance + (p.square() * x.variance).sum(axis, keepdim=True)
    return Noisy(y, variance + _SMOOTH_ROUNDINGS / 3 * (y.square() + x.value.square()))


def _layer_norm(call: _Call) -> Noisy:
    x, rank = call.x, len(call.args[1])
    gamma, beta = (call.argument(at, name, None) for at, name in ((2, "weight"), (3, "bias")))
    flat = Noisy(x.value.flatten(-rank), x.variance.flatten(-rank))
    gamma, beta = (None if c is None else c.flatten() for c in (gamma, beta))
    normalised = _normalise(flat, gamma, beta, call.argument(4, "eps", 1e-5))
    return Noisy(call.on(x.value), normalised.reshape(x.value.shape))


def _group_norm(call: _Call) -> Noisy:
    x, groups = call.x, call.args[1]
    gamma, beta = (call.argument(at, name, None) for at, name in ((2, "weight"), (3, "bias")))
    shape = (x.value.shape[0], groups, -1)
    flat = Noisy(x.value.reshape(shape), x.variance.reshape(shape))

    def spread(c: Any) -> Any:
        like = x.value[0]
        shape = (-1, *(1,) * (like.ndim - 1))
        return None if c is None else c.reshape(shape).expand_as(like).reshape(groups, -1)

    normalised = _normalise(flat, spread(gamma), spread(beta), call.argument(4, "eps", 1e-5))
    return Noisy(call.on(x.value), normalised.reshape(x.value.shape))


def _normalise(x: Noisy, gamma: Any, beta: Any, eps: float) -> torch.Tensor:
    """Return the variance of (x - m)/s gamma + beta, m and s over the last axis of D values.

    With h = (x - m)/s: dh_i/dx_j = (d_ij - 1/D - h_i h_j/D)/s. Own roundings: of x and m in the
    difference, of their sum, and a few of the rest.
    """
    value, var = x.value, x.variance
    size = value.shape[-1]
    mean = value.mean(-1, keepdim=True)
    inverse = (value.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
    h = (value - mean) * inverse

    def total(weighted: torch.Tensor) -> torch.Tensor:
        return weighted.sum(-1, keepdim=True) / size**2

    # Together one rounding of x, since every x has its own; m is off by about one of its own.
    var = var + mean.square() / 3 + value.square() / 3
    own = _SMOOTH_ROUNDINGS / 3 * h.square()
    jacobian = var * (1 - 2 / size - 2 * h.square() / size)
    jacobian = jacobian + total(var) + 2 * h * total(var * h)
    jacobian = (jacobian + h.square() * total(var * h.square())).clamp_min(0) * inverse.square()
    variance = jacobian + own
    variance = variance if gamma is None else variance * gamma.square()
    return variance if beta is None else variance + beta.square() / 3


# --- values that move ----------------------------------------------------------------------------


def _move(call: _Call) -> Any:
    """Return variances moved as the values are."""
    values, variances = call.on(call.x.value), call.on(call.x.variance)
    if isinstance(values, torch.Tensor):
        if values.dtype not in (torch.float32, torch.float64):
            raise _unknown(call.node)  # another precision, another u
        moved = Noisy(values, variances)
        if (
            operator_name(call.node) in _SAME_CHANNELS
            and values.shape[:2] == call.x.value.shape[:2]
        ):
            mean = call.x.of_mean
            if values.shape != call.x.value.shape:  # fewer positions to average over
                mean = mean + moved.if_independent
            moved = replace(moved, mean_variance_NC=mean)
        return moved
    return [Noisy(*pair) for pair in zip(values, variances, strict=True)]


def _pad(call: _Call) -> Noisy:
    """Return a padded value; what a constant fills in is exact."""
    x, mode = call.x, "constant"
    if operator_name(call.node) == "pad":
        mode = call.argument(2, "mode", "constant")
    variance = F.pad(x.variance, call.args[1]) if mode == "constant" else call.on(x.variance)
    mean, rank = x.mean_variance_NC, x.value.ndim
    widths = tuple(call.args[1])
    before = 2 * (rank - 2)  # the positions come first; then the channels, which are padded with 0
    if mean is not None and mode == "constant" and len(widths) <= before + 2:
        mean = F.pad(mean, widths[before:] or (0, 0))
    return Noisy(call.on(x.value), variance, mean if mode == "constant" else None)


def _join(call: _Call) -> Noisy:
    parts = call.args[0]
    variances = [p.variance if isinstance(p, Noisy) else torch.zeros_like(_value(p)) for p in parts]
    return Noisy(call.on([_value(p) for p in parts]), call.on(variances))


def _max_pool(call: _Call) -> Noisy:
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
    y = Noisy(value, chosen.reshape(value.shape))
    return replace(y, mean_variance_NC=x.of_mean + y.if_independent)


_MOVES = (
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "expand"),
    *("unsqueeze", "contiguous", "clone", "alias", "detach", "dropout", "feature_dropout", "to"),
    *("slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unbind", "repeat"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest2d", "roll", "flip"),
    *("_unsafe_view", "_to_copy", "index_select", "movedim", "view_as", "expand_as", "identity"),
)

# Of these, what leaves channels where they are if it leaves their number.
_SAME_CHANNELS = frozenset(("slice", "clone", "contiguous", "dropout", "detach", "alias", "to"))

# Their result tells nothing of the values: shapes, and constants of that shape.
_BLIND = frozenset(("sym_size", "zeros_like", "ones_like", "full_like", "new_zeros", "new_full"))

_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(("relu", "relu_"), _relu),
    **dict.fromkeys(("hardtanh", "relu6", "clamp", "clamp_min", "abs", "neg"), _elementwise(0)),
    **dict.fromkeys(("leaky_relu", "prelu"), _elementwise(1)),
    **dict.fromkeys(
        ("sigmoid", "tanh", "elu", "exp", "sqrt", "rsqrt", "reciprocal", "softplus", "pow"),
        _elementwise(_SMOOTH_ROUNDINGS),
    ),
    **dict.fromkeys(
        ("gelu", "silu", "mish", "hardswish", "hardsigmoid", "selu", "celu", "erf"),
        _elementwise(_SMOOTH_ROUNDINGS, of_input=True),
    ),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(
        ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean"), _average
    ),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average_pool),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _max_pool),
    **dict.fromkeys(("matmul", "mm", "bmm"), _product),
    **dict.fromkeys(("cat", "concat", "stack"), _join),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "add": _add(1),
    "sub": _add(-1),
    "mul": _multiply,
    "div": _divide,
    "sum": _sum,
    "instance_norm": _batch_norm,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
}


def _value(operand: Any) -> Any:
    return operand.value if isinstance(operand, Noisy) else operand


def _variance_of(operand: Any) -> Any:
    if isinstance(operand, Noisy):
        return operand.variance
    return torch.zeros_like(operand) if isinstance(operand, torch.Tensor) else 0.0


def _any_noisy(arguments: Any) -> bool:
    found = []
    fx.node.map_aggregate(arguments, lambda leaf: found.append(isinstance(leaf, Noisy)))
    return any(found)


def _unknown(node: fx.Node) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The rounding variance of {operator_name(node)} is not known.",
        where=describe(node),
        fix="judge by the noise ratio R alone, which needs none",
    )
