"""Operators over windows and axes: pooling, reductions, softmax, resizing."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from resdeploy.errors import UnsupportedModelError
from resdeploy.verify.normal.builder import Builder, Tensor, Value, order_of
from resdeploy.verify.normal.dims import Size, Sizes, floor_div, is_above_one, product, quotient_of
from resdeploy.verify.normal.movements import with_padding
from resdeploy.verify.normal.reading import Operator, Reading, Rule

__all__ = ["WINDOWS", "explicit_pads", "reduced"]


def _pool(r: Reading, op: Operator) -> Sequence[Value]:
    """A window that is the whole map is a reduction; a ceil_mode that changes no size is none.

    A maximum's padding, below all values, may be what ceil_mode reads or what no window does.

    Zeros padded before an average without padding are its counted padding: each window is divided
    by all its taps.
    """
    x, kind = op.tensor(), op.node.op_type
    if op.num_outputs > 1:
        raise op.refuse("tells where its maxima are")
    kernel = list(op.attributes["kernel_shape"])
    dims = len(kernel)
    strides = list(op.attributes.get("strides") or [1] * dims)
    dilations = list(op.attributes.get("dilations") or [1] * dims)
    spans = [gap * (taps - 1) + 1 for gap, taps in zip(dilations, kernel, strict=True)]
    sizes = x.shape[2:]
    pads = explicit_pads(op, sizes, spans, strides)
    counts = bool(op.flag("count_include_pad"))
    if kind == "AveragePool" and not op.flag("ceil_mode") and (counts or not any(pads)):
        x, pads = with_padding(r, x, pads)
        sizes, counts = x.shape[2:], True
    padded = [size + pads[k] + pads[k + dims] for k, size in enumerate(sizes)]
    floors = [
        floor_div(size - span, step) + 1
        for size, span, step in zip(padded, spans, strides, strict=True)
    ]
    found = floors
    if op.flag("ceil_mode"):
        found = [
            _ceiled(op, size, pads[k], padded[k], spans[k], strides[k])
            for k, size in enumerate(sizes)
        ]
    if kind == "MaxPool" and all(isinstance(size, int) for size in sizes):
        # What no window reads is no padding, and a last window beyond the end reads padding.
        for k, (size, count) in enumerate(zip(sizes, found, strict=True)):
            pads[k + dims] = max(0, (count - 1) * strides[k] + spans[k] - pads[k] - size)
        floors = found
    attributes: dict[str, Any] = {"kernel": kernel, "strides": strides, "pads": pads}
    if any(gap != 1 for gap in dilations):
        attributes["dilations"] = dilations
    if found != floors:
        attributes["ceil"] = 1
    if kind == "LpPool":
        attributes["p"] = op.flag("p", 2)
    if kind == "AveragePool" and (any(pads) or found != floors):
        attributes["counts padding"] = counts
    whole = not any(pads) and found == [1] * dims and list(sizes) == kernel
    if whole and kind in ("AveragePool", "MaxPool"):
        name = "ReduceMean" if kind == "AveragePool" else "ReduceMax"
        return [reduced(r.build, name, x, range(2, x.rank))]
    return [r.build.add(kind, [x], (*x.shape[:2], *found), attributes=attributes)]


def _ceiled(op: Operator, size: Size, before: int, padded: Size, span: int, step: int) -> Size:
    """Return the number of windows, the last one of which begins inside the input."""
    if not isinstance(padded, int) or not isinstance(size, int):
        raise op.refuse("rounds an open size up")
    count = -((span - padded) // step) + 1
    return count - 1 if (count - 1) * step >= size + before else count


def explicit_pads(
    op: Operator, sizes: Sequence[Size], spans: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Return the pads, those of auto_pad computed."""
    auto = op.string("auto_pad", "NOTSET") or "NOTSET"
    if auto == "NOTSET":
        return list(op.attributes.get("pads") or [0] * 2 * len(spans))
    if auto == "VALID":
        return [0] * 2 * len(spans)
    begins, ends = [], []
    for size, span, step in zip(sizes, spans, strides, strict=True):
        if not isinstance(size, int):
            if step != 1:
                raise op.refuse("pads an open size by auto_pad")
            total = span - 1
        else:
            total = max(0, (-(-size // step) - 1) * step + span - size)
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return begins + ends


def _global(name: str) -> Rule:
    def rule(r: Reading, op: Operator) -> Sequence[Value]:
        x = op.tensor()
        return [reduced(r.build, name, x, range(2, x.rank))]

    return rule


def _reduce(r: Reading, op: Operator) -> Sequence[Value]:
    x, axes = op.tensor(), op.closed_ints(1, "axes")
    if not axes:
        if op.flag("noop_with_empty_axes"):
            raise op.refuse("reduces nothing")
        axes = list(range(x.rank))
    found = reduced(r.build, op.node.op_type, x, [axis % x.rank for axis in axes])
    if op.flag("keepdims", 1):
        return [found]
    gone = {axis % x.rank for axis in axes}
    return [r.build.reshape(found, tuple(s for k, s in enumerate(x.shape) if k not in gone))]


_NESTING = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"})


def reduced(build: Builder, op: str, x: Tensor, axes: Sequence[int]) -> Tensor:
    """Return a reduction that keeps its axes at size one.

    Of means, sums, products and extremes, one after the other is one over all axes: each group has
    as many elements as the next.
    """
    axes = sorted(axis for axis in axes if x.shape[axis] != 1 or op not in _NESTING)
    if not axes:
        return x
    if (node := build.made_by(x, "Transpose")) is not None:
        order = order_of(node)
        inner = reduced(build, op, build.source(x), [order[axis] for axis in axes])
        return build.transpose(inner, order)
    is_real = x.is_float  # a mean of integers is rounded
    if is_real and op in _NESTING and (node := build.made_by(x, op)) is not None:
        before = [int(axis) for axis in dict(node.attributes)["axes"].strip("[]").split(", ")]
        return reduced(build, op, build.source(x), {*before, *axes})  # type: ignore[arg-type]
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    return build.add(op, [x], shape, attributes={"axes": list(axes)})


def _arg(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    axis = op.flag("axis") % x.rank
    shape = tuple(1 if k == axis else size for k, size in enumerate(x.shape))
    attributes = {"axis": axis, "last": op.flag("select_last_index")}
    found = r.build.add(op.node.op_type, [x], shape, dtype="int64", attributes=attributes)
    if op.flag("keepdims", 1):
        return [found]
    return [r.build.reshape(found, (*x.shape[:axis], *x.shape[axis + 1 :]))]


def _cumsum(r: Reading, op: Operator) -> Sequence[Value]:
    x, axes = op.tensor(), op.closed_ints(1)
    assert axes is not None
    attributes = {name: op.flag(name) for name in ("exclusive", "reverse")}
    attributes["axis"] = axes[0] % x.rank
    return [r.build.add("CumSum", [x], x.shape, attributes=attributes)]


def _softmax(r: Reading, op: Operator) -> Sequence[Value]:
    """Before opset 13, over all axes from `axis` on together."""
    x, kind = op.tensor(), op.node.op_type
    axis = op.flag("axis", -1 if r.opset >= 13 else 1) % x.rank
    if r.opset < 13 and axis != x.rank - 1:
        flat = (product(x.shape[:axis]), product(x.shape[axis:]))
        inner = r.build.add(kind, [r.build.reshape(x, flat)], flat, attributes={"axis": 1})
        return [r.build.reshape(inner, x.shape)]
    if (node := r.build.made_by(x, "Transpose")) is not None:
        order, source = order_of(node), r.build.source(x)
        inner = r.build.add(kind, [source], source.shape, attributes={"axis": order[axis]})
        return [r.build.transpose(inner, order)]
    return [r.build.add(kind, [x], x.shape, attributes={"axis": axis})]


def _top_k(r: Reading, op: Operator) -> Sequence[Value]:
    x, k = op.tensor(), op.closed_ints(1, "k")
    assert k is not None
    axis = op.flag("axis", -1) % x.rank
    shape = (*x.shape[:axis], k[0], *x.shape[axis + 1 :])
    attributes = {"axis": axis, "largest": op.flag("largest", 1), "sorted": op.flag("sorted", 1)}
    values = r.build.add("TopK", [x], shape, attributes={**attributes, "gives": "values"})
    places = r.build.add(
        "TopK", [x], shape, dtype="int64", attributes={**attributes, "gives": "places"}
    )
    return [values, places]


def _resize(r: Reading, op: Operator) -> Sequence[Value]:
    """Nearest by a whole factor is one function, whichever of three conventions is stated.

    Output i of a factor s reads floor(i / s): what `asymmetric` with `floor` says, and what
    `half_pixel` with rounding to the nearest says, as (i + 1/2) / s - 1/2 lies within one half of
    it, for s > 1 without a tie.
    """
    x = op.tensor()
    mode = op.string("mode", "nearest")
    place = op.string(
        "coordinate_transformation_mode", "half_pixel" if r.opset > 10 else "asymmetric"
    )
    if (
        op.string("keep_aspect_ratio_policy", "stretch") != "stretch"
        or place == "tf_crop_and_resize"
    ):
        raise op.refuse("crops, or keeps an aspect ratio")
    if op.attributes.get("axes"):
        raise op.refuse("names its axes")
    factors, shape = _resized(r, op, x)
    if shape == x.shape and all(f in (None, 1.0) for f in factors):
        return [x]
    if r.opset == 10 and mode == "nearest" and any(f is None or f < 1 for f in factors):
        raise op.refuse("shrinks by nearest in opset 10, where the runtime rounds up")
    rounding = op.string("nearest_mode", "round_prefer_floor" if r.opset > 10 else "floor")
    attributes: dict[str, Any] = {"mode": mode}
    if op.node.op_type == "Upsample":
        place, rounding = "asymmetric", "floor"
    whole = all(f is not None and f == int(f) and f >= 1 for f in factors)
    same = (place, rounding) == ("asymmetric", "floor") or (
        place in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round_prefer")
    )
    if mode == "nearest" and whole and same:
        attributes["factors"] = [int(f) for f in factors if f is not None]
    else:
        if place == "pytorch_half_pixel" and all(map(is_above_one, shape[2:])):
            place = "half_pixel"  # they differ for outputs of size one
        attributes["coordinates"] = place
        if mode == "nearest":
            attributes["rounding"] = rounding
        if mode == "cubic":
            attributes["cubic"] = [
                f"{op.attributes.get('cubic_coeff_a', -0.75):.6g}",
                op.flag("exclude_outside"),
            ]
        if op.flag("antialias"):
            attributes["antialias"] = 1
        # In exact arithmetic a size stated has the factor that it makes.
        stated = [
            None if f is None or _is_ratio(f, size, new) else f"{f:.9g}"
            for f, size, new in zip(factors, x.shape, shape, strict=True)
        ]
        if any(stated):
            attributes["factors"] = stated
    return [r.build.add("Resize", [x], shape, attributes=attributes)]


def _is_ratio(factor: float, size: Size, new: Size) -> bool:
    return isinstance(size, int) and isinstance(new, int) and abs(factor * size - new) < 1e-6 * new


def _resized(r: Reading, op: Operator, x: Tensor) -> tuple[list[float | None], Sizes]:
    """Return the factor of each axis, where it is known, and the shape."""
    stated, sizes = op.attributes.get("scales"), None
    if stated is None:
        where = 1 if op.node.op_type == "Upsample" or r.opset < 11 else 2
        known = op.known(where)
        stated = None if known is None or not known.values.size else known.values.ravel().tolist()
        sizes = op.ints(3)
    if stated is not None:
        factors = [float(f) for f in stated]
        shape: list[Size] = []
        for size, factor in zip(x.shape, factors, strict=True):
            top, bottom = factor.as_integer_ratio()
            if isinstance(size, int):
                shape.append(int(np.floor(np.float32(size) * np.float32(factor))))
            elif bottom <= 64:
                shape.append(floor_div(size * top, bottom))
            else:
                raise op.refuse("scales an open size by a fraction")
        return [*factors], tuple(shape)
    if not sizes:
        raise op.refuse("states neither scales nor sizes")
    found: list[float | None] = []
    for size, new in zip(x.shape, sizes, strict=True):
        try:
            whole = quotient_of([new], [size])
            found.append(float(whole) if isinstance(whole, int) else None)
        except UnsupportedModelError:
            found.append(None)
    return found, tuple(sizes)


WINDOWS: dict[str, Rule] = {
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    "GlobalAveragePool": _global("ReduceMean"),
    "GlobalMaxPool": _global("ReduceMax"),
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
            *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
        ),
        _reduce,
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    "CumSum": _cumsum,
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "TopK": _top_k,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
}
