"""The rounding variance of one call, operator by operator.

Each rule is the first-order propagation of independent errors, Var(f) = sum_j (df/dx_j)^2 Var(x_j),
plus the operator's own roundings. Variances are in units of u^2; all is in float64, as squares of
small and of large float32 numbers are beyond float32.

Errors of different positions of an image are not independent: neighbours share inputs. It matters
where positions are averaged, so the variance of each channel's mean error goes along.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from resdeploy.export import pointwise_variance as pointwise
from resdeploy.export.aten_layers import Layer, as_layer
from resdeploy.export.rounding import (
    MORE_ROUNDINGS,
    SMALLEST,
    drift,
    rounding,
    share_of_repeats,
    sum_roundings,
)
from resdeploy.export.trace_refusals import operator_name
from resdeploy.export.value_with_variance import (
    NoisyCall,
    Rule,
    ValueWithVariance,
    any_noisy,
    by_channel,
    unknown_variance,
    value_of,
    variance_of,
)

__all__ = ["propagate", "with_drift"]


def propagate(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], *, unit_roundoff: float
) -> Any:
    """Return the result of a call on `ValueWithVariance`s, constants and plain numbers.

    Raises:
        UnsupportedModelError: there is no rule for this call.
    """
    args, kwargs = fx.node.map_aggregate((args, kwargs), _widened)
    call = NoisyCall(node, args, kwargs, unit_roundoff)
    name = operator_name(node)
    if name in _BLIND or not any_noisy((args, kwargs)):
        args, kwargs = fx.node.map_aggregate((args, kwargs), value_of)
        return call.target(*args, **kwargs)
    layer = as_layer(node)
    if layer is not None and not isinstance(args[layer.weight_at], ValueWithVariance):
        return _layer(call, layer)
    rule = _RULES.get(name)
    if rule is None:
        raise unknown_variance(node)
    return rule(call)


def _widened(operand: Any) -> Any:
    """Return a float32 operand in float64, and any other as it is."""
    if isinstance(operand, ValueWithVariance) and operand.value.dtype != torch.float64:
        parts = (operand.value, operand.variance, operand.mean_variance_NC)
        return ValueWithVariance(*map(_widened, parts))
    is_float32 = isinstance(operand, torch.Tensor) and operand.dtype == torch.float32
    return operand.double() if is_float32 else operand


# --- affine layers -------------------------------------------------------------------------------


def _layer(call: NoisyCall, layer: Layer) -> ValueWithVariance:
    """Return conv(Var + n/3 x^2, W^2) + n/3 b^2, which is one call of the layer, + n/9 y^2."""
    x, weight, bias_at = call.args[layer.input_at], call.args[layer.weight_at], layer.bias_at
    if not isinstance(x, ValueWithVariance) or (
        bias_at is not None and isinstance(call.args[bias_at], ValueWithVariance)
    ):
        raise unknown_variance(call.node)
    num_products = _num_products(weight, transposed=layer.is_transposed, linear=layer.is_linear)
    own = (num_products + MORE_ROUNDINGS) / 3
    values, squares = list(call.args), list(call.args)
    values[layer.input_at] = x.value
    squares[layer.input_at] = x.variance + own * x.value.square()
    squares[layer.weight_at] = weight.square()
    if bias_at is not None:
        squares[bias_at] = own * call.args[bias_at].square()
    factors = {name: factor**2 for name, factor in call.kwargs.items()}
    value, variance = call.target(*values, **call.kwargs), call.target(*squares, **factors)
    y = _summed(value, variance, num_products)
    if layer.is_linear or layer.is_transposed:
        return y
    return replace(y, mean_variance_NC=_mean_of_convolution(call, layer, x, y, num_products))


def _mean_of_convolution(
    call: NoisyCall, layer: Layer, x: ValueWithVariance, y: ValueWithVariance, num_products: int
) -> torch.Tensor:
    """Return the variance of the mean error over positions: the layer of W summed over its taps.

    Var_mean <- (sum W)^2 Var_mean(x), the mean of a convolution being that of its input times the
    sum of the taps; plus the layer's own roundings, independent and so over the number of
    positions; plus the roundings of weights and bias, which are the same at every position. A
    stride that skips positions leaves fewer to average over. Borders are not told apart.
    """
    weight = call.args[layer.weight_at]
    bias = None if layer.bias_at is None else call.args[layer.bias_at]
    groups = layer.groups

    def through(values_NC: torch.Tensor, weights_OI: torch.Tensor) -> torch.Tensor:
        return F.conv1d(values_NC[..., None], weights_OI[..., None], groups=groups)[..., 0]

    taps = weight.flatten(2)
    squares_OI = taps.square().sum(2)
    shared = through(by_channel(x.value).square(), squares_OI)
    num_roundings = num_products + MORE_ROUNDINGS
    own = num_roundings * through(by_channel(x.value.square()), squares_OI)
    if bias is not None:
        shared, own = shared + bias.square(), own + num_roundings * bias.square()
    own = own / 3 + num_roundings / 9 * by_channel(y.value.square())
    before = x.of_mean
    if y.num_positions < x.num_positions:
        before = before + by_channel(x.variance) / y.num_positions
    own = own * share_of_repeats(y.value)
    return through(before, taps.sum(2).square()) + own + shared / 3


def _summed(value: torch.Tensor, variance: torch.Tensor, num_terms: Any) -> ValueWithVariance:
    """Return a sum of n products with the roundings that n/3 (sum of squares) leaves out.

    The j-th partial sum is j/n y plus a part of random sign. The squares of the first part come to
    (n + 1)(2n + 1)/(6n) y^2 over all j, at most (n + 3)/3, and each is rounded once: where the
    terms agree in sign (the winning logit) this is nearly all of the error.
    """
    num_roundings = num_terms + MORE_ROUNDINGS
    own = num_roundings * (value.square() / 9 + SMALLEST)
    return ValueWithVariance(value, variance + own)


def _num_products(weight: torch.Tensor, *, transposed: bool, linear: bool) -> int:
    if linear:
        return int(weight.shape[0 if transposed else 1])
    if transposed:  # (in, out per group, kernel): each group has in / groups of them; no more
        return int(weight.shape[0] * math.prod(weight.shape[2:]))
    return weight[0].numel()


def _product(call: NoisyCall) -> ValueWithVariance:
    """Return a @ b where either may be noisy: attention."""
    a, b = call.args[:2]
    return _matrix_product(call.target, a, b)


def _attention(call: NoisyCall) -> ValueWithVariance:
    """Return softmax(scale q k^T) v, the scale as good as two more products."""
    query, key, value = call.args[:3]
    mask, is_causal = call.argument(3, "attn_mask", None), call.argument(5, "is_causal", False)
    if mask is not None or is_causal or call.kwargs.get("enable_gqa", False):
        raise unknown_variance(call.node)
    scale = call.kwargs.get("scale") or value_of(query).shape[-1] ** -0.5
    key = ValueWithVariance(
        *(f(key).transpose(-2, -1) * s for f, s in ((value_of, scale), (variance_of, scale**2)))
    )
    scores = _matrix_product(torch.matmul, query, key)
    return _matrix_product(torch.matmul, pointwise.softmax_along(scores, -1), value)


def _matrix_product(product: Any, a: Any, b: Any) -> ValueWithVariance:
    (av, bv), (aa, bb) = (tuple(map(f, (a, b))) for f in (value_of, variance_of))
    own = (av.shape[-1] + MORE_ROUNDINGS) / 3
    variance = product(aa + own * av.square(), bv.square())
    if isinstance(b, ValueWithVariance):
        variance = variance + product(av.square(), bb)
    return _summed(product(av, bv), variance, av.shape[-1])


def _batch_norm(call: NoisyCall) -> Any:
    """Return the affine map that a BatchNorm with stored statistics is, of three roundings."""
    x = call.x
    name = operator_name(call.node)
    gamma, beta, mean, var = call.args[1:5]
    uses_batch = bool(call.args[5]) if name in ("batch_norm", "instance_norm") else False
    if name == "instance_norm" and uses_batch:
        return pointwise.instance_norm(call)
    if uses_batch or mean is None or var is None:
        raise unknown_variance(call.node)
    eps = call.args[6] if name == "_native_batch_norm_legit_no_training" else call.args[7]
    shape = (1, -1, *(1,) * (x.value.ndim - 2))
    scale = (var + eps).rsqrt() * (1 if gamma is None else gamma)
    beta = torch.zeros_like(mean) if beta is None else beta
    scale, beta, mean = (c.reshape(shape) for c in (scale, beta, mean))
    own = scale.square() * (x.value.square() + mean.square()) + beta.square()
    y = ValueWithVariance(
        (x.value - mean) * scale + beta,
        scale.square() * x.variance + own,
        by_channel(scale.square()) * x.of_mean + by_channel(own) * share_of_repeats(x.value),
    )
    return (y, None, None) if name == "_native_batch_norm_legit_no_training" else y


def _average(call: NoisyCall) -> ValueWithVariance:
    """Return a sum over n of variance Var(x)/n, divided by n."""
    x, value = call.x, call.on(call.x.value)
    rank = x.value.ndim
    axes = _summed_axes(call)
    if axes is None:  # several windows: those of torch may overlap
        n = math.ceil(x.value.numel() / value.numel())
        return _summed(value, call.on(x.variance + n / 3 * x.value.square()) / n, n)
    n = math.prod(x.value.shape[axis] for axis in axes)
    own = sum_roundings(_last(x.value, axes)).reshape(value.shape) / n**2
    variance = call.on(x.variance) / n + own + rounding(value)
    if rank > 2 and axes == tuple(range(2, rank)):
        more = x.of_mean - x.if_independent  # of positions that share errors
        variance = variance + more.clamp_min(0).reshape(value.shape)
    return ValueWithVariance(value, variance)


def _sum(call: NoisyCall) -> ValueWithVariance:
    """Return the sum of the variances, and its roundings."""
    x, value = call.x, call.on(call.x.value)
    own = sum_roundings(_last(x.value, _summed_axes(call) or ())).reshape(value.shape)
    return ValueWithVariance(value, call.on(x.variance) + own)


def with_drift(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], *, halvings: int
) -> Any:
    """Return the result of a call on plain tensors; of a sum or an average, off by its drift."""
    args, kwargs = fx.node.map_aggregate((args, kwargs), _widened)
    value = node.target(*args, **kwargs)  # type: ignore[operator]
    if _RULES.get(operator_name(node)) not in (_average, _sum):
        return value
    call = NoisyCall(node, (ValueWithVariance(args[0], args[0]), *args[1:]), kwargs, 1.0)
    axes = _summed_axes(call)
    if axes is None:
        return value
    count = 1 if _RULES[operator_name(node)] is _sum else args[0].numel() / value.numel()
    return value + drift(_last(args[0], axes), halvings).reshape(value.shape) / count


def _summed_axes(call: NoisyCall) -> tuple[int, ...] | None:
    """Return the axes that a mean or a sum is over, or None for pooling to several positions."""
    rank = call.x.value.ndim
    if operator_name(call.node) in ("mean", "sum"):
        axes = call.argument(1, "dim", None)
        axes = [axes] if isinstance(axes, int) else axes
        return tuple(sorted(axis % rank for axis in axes or range(rank)))
    spatial = rank - (2 if rank == int(operator_name(call.node)[-2]) + 2 else 1)
    size = call.args[1]
    is_global = all(side == 1 for side in ([size] if isinstance(size, int) else size))
    return tuple(range(rank - spatial, rank)) if is_global else None


def _last(terms: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Return `terms` with these axes as one, the last."""
    kept = [axis for axis in range(terms.ndim) if axis not in axes]
    return terms.permute(*kept, *axes).flatten(len(kept))


def _average_pool(call: NoisyCall) -> ValueWithVariance:
    """Return the same where windows overlap, and where padding does or does not count."""
    x, value = call.x, call.on(call.x.value)
    rank = x.value.ndim - 2
    kernel, padding = call.args[1], call.argument(3, "padding", 0)
    size = math.prod(kernel) if len(kernel) == rank else kernel[0] ** rank
    if call.argument(6, "divisor_override", None):
        raise unknown_variance(call.node)
    if call.argument(4, "ceil_mode", False):
        whole = call.target(x.value, kernel, call.argument(2, "stride", []), padding)
        if whole.shape != value.shape:  # some windows reach beyond the value
            raise unknown_variance(call.node)
    n: Any = size
    is_padded = any(padding) if isinstance(padding, list | tuple) else bool(padding)
    if is_padded and not call.argument(5, "count_include_pad", True):
        stride = call.argument(2, "stride", [])
        ones = torch.ones_like(x.value[:1, :1])
        n = (size * call.target(ones, kernel, stride, padding, False, True)).round()
    return _summed(value, call.on(x.variance + size / 3 * x.value.square()) / n, n)


_MOVES = (
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "expand"),
    *("unsqueeze", "contiguous", "clone", "alias", "detach", "dropout", "feature_dropout", "to"),
    *("slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unbind", "repeat"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "roll", "flip"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("_unsafe_view", "_to_copy", "index_select", "movedim", "view_as", "expand_as", "identity"),
)

# Their results do not depend on the values: shapes, and constants of that shape.
_BLIND = frozenset(("sym_size", "zeros_like", "ones_like", "full_like", "new_zeros", "new_full"))

_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_MOVES, pointwise.move),
    **dict.fromkeys(("relu", "relu_"), pointwise.relu),
    **dict.fromkeys(
        ("hardtanh", "relu6", "clamp", "clamp_min", "abs", "neg"), pointwise.elementwise(0)
    ),
    **dict.fromkeys(("leaky_relu", "prelu"), pointwise.elementwise(1)),
    **dict.fromkeys(
        ("tanh", "exp", "sqrt", "rsqrt", "reciprocal", "softplus", "pow"),
        pointwise.elementwise(pointwise.SMOOTH_ROUNDINGS),
    ),
    **dict.fromkeys(
        ("sigmoid", "hardsigmoid"),
        pointwise.elementwise(pointwise.SMOOTH_ROUNDINGS, size=pointwise.around_a_half),
    ),
    **dict.fromkeys(
        ("elu", "selu", "celu"),
        pointwise.elementwise(pointwise.SMOOTH_ROUNDINGS, size=pointwise.around_one_below_0),
    ),
    **dict.fromkeys(
        ("gelu", "silu", "mish", "hardswish", "erf"),
        pointwise.elementwise(pointwise.SMOOTH_ROUNDINGS, size=pointwise.of_the_input),
    ),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(
        ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean"), _average
    ),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average_pool),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), pointwise.max_pool),
    **dict.fromkeys(("matmul", "mm", "bmm"), _product),
    **dict.fromkeys(("cat", "concat", "stack"), pointwise.join),
    **dict.fromkeys(("pad", "constant_pad_nd"), pointwise.pad),
    "add": pointwise.add(1),
    "sub": pointwise.add(-1),
    "mul": pointwise.multiply,
    "div": pointwise.divide,
    "sum": _sum,
    "instance_norm": _batch_norm,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(
        ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), pointwise.interpolate
    ),
    "softmax": pointwise.softmax,
    "log_softmax": pointwise.log_softmax,
    "layer_norm": pointwise.layer_norm,
    "group_norm": pointwise.group_norm,
}
