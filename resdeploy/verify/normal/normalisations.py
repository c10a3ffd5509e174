"""Normalisations of each sample, written out: mean, variance, root, scale and bias."""

from collections.abc import Sequence

from resdeploy.verify.compare_structure import Numbers
from resdeploy.verify.normal.builder import Tensor, Value
from resdeploy.verify.normal.dims import floor_div, product
from resdeploy.verify.normal.reading import Operator, Reading, Rule
from resdeploy.verify.normal.windows import reduced

__all__ = ["NORMALISATIONS", "epsilon", "scale_and_bias", "standardized"]


def standardized(r: Reading, x: Tensor, axes: Sequence[int], eps: Numbers) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) over these axes."""
    build = r.build
    mean = reduced(build, "ReduceMean", x, axes)
    centred = build.total([x, build.scaled(mean, Numbers.of(-1.0))], x.shape)
    variance = reduced(build, "ReduceMean", build.times([centred, centred], x.shape), axes)
    root = build.unary("Sqrt", build.scale_shift(variance, Numbers.one(), eps, variance.shape))
    return build.times([centred, build.reciprocal(root)], x.shape)


def scale_and_bias(r: Reading, op: Operator, x: Tensor, axis: int, first: int = 1) -> Tensor:
    """Return scale * x + bias, both constants that begin at `axis`."""
    found = []
    for which in (first, first + 1):
        known = op.known(which)
        numbers = Numbers.one() if which == first else Numbers.zero()
        if known is not None:
            tail = x.rank - axis - known.values.ndim
            numbers = r.numbers(known).map(lambda a, tail=tail: a.reshape(a.shape + (1,) * tail))  # type: ignore[misc]
        found.append(numbers)
    scale, bias = found
    return r.build.scale_shift(x, scale, bias, x.shape)


def epsilon(op: Operator, default: float = 1e-5) -> Numbers:
    """Return the term that keeps the root from zero."""
    return Numbers.of(op.attributes.get("epsilon", default), roundings=1)


def _layer_norm(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    if op.num_outputs > 1:
        raise op.refuse("tells its mean")
    axis = op.flag("axis", -1) % x.rank
    flat = standardized(r, x, range(axis, x.rank), epsilon(op))
    return [scale_and_bias(r, op, flat, axis)]


def _instance_norm(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    flat = standardized(r, x, range(2, x.rank), epsilon(op))
    return [scale_and_bias(r, op, flat, 1)]


def _group_norm(r: Reading, op: Operator) -> Sequence[Value]:
    """Of opset 21, with a scale for each channel; that of 18 has one for each group."""
    x, groups = op.tensor(), op.flag("num_groups")
    if r.opset < 21:
        raise op.refuse("of opset 18 is deprecated")
    rest = floor_div(product(x.shape[1:]), groups)
    grouped = r.build.reshape(x, (x.shape[0], groups, rest))
    flat = standardized(r, grouped, [2], epsilon(op))
    return [scale_and_bias(r, op, r.build.reshape(flat, x.shape), 1)]


def _lrn(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    numbers = [
        Numbers.of(op.attributes.get(name, default), roundings=1)
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    ]
    return [r.build.add("LRN", [x], x.shape, numbers=numbers, attributes={"size": op.flag("size")})]


NORMALISATIONS: dict[str, Rule] = {
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LRN": _lrn,
}
