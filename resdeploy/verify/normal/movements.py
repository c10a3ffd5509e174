"""Operators that compute nothing: they pass values on, move their elements or ask their sizes."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from resdeploy.graph.affine_layer import Array
from resdeploy.verify.compare_structure import Numbers
from resdeploy.verify.normal.builder import (
    FLOATS,
    Builder,
    Known,
    Tensor,
    Value,
    broadcast,
    order_of,
)
from resdeploy.verify.normal.dims import Size, Sizes, floor_div, product, quotient_of, text_of
from resdeploy.verify.normal.reading import Operator, Reading, Rule, known_of

__all__ = ["MOVEMENTS", "padded", "sliced", "with_padding"]


def _identity(r: Reading, op: Operator) -> Sequence[Value]:
    value = op.at(0)
    assert value is not None
    return [value]


def _dropout(r: Reading, op: Operator) -> Sequence[Value]:
    """The identity, at inference: never with training_mode, an old is_test = 0, or a mask."""
    mode = op.known(2)
    trains = mode is not None and bool(mode.values.any())
    if r.opset < 7:
        trains = not op.flag("is_test")
    if trains or op.num_outputs > 1:
        raise op.refuse("drops values at random, or tells which")
    return _identity(r, op)


def _cast(r: Reading, op: Operator) -> Sequence[Value]:
    """The identity between floats, to none narrower than the arithmetic that is claimed."""
    x = op.at(0)
    if op.node.op_type == "CastLike":
        like = op.at(1)
        assert like is not None
        dtype = like.dtype
    else:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(op.flag("to")).name
    assert x is not None
    if isinstance(x, Known):
        if x.is_open and not dtype.startswith("int"):
            raise op.refuse(f"makes {dtype} of an open size")
        stored = "float64" if dtype in FLOATS else dtype
        values = x.values if x.is_open else _cast_values(x.values, dtype).astype(stored)
        return [Known(values=values, dtype=dtype, roundings=x.roundings)]
    if x.dtype == dtype:
        return [x]
    if x.is_float and dtype in FLOATS:
        if not r.exact_cast(dtype):
            raise op.refuse(f"rounds to {dtype}")
        return [Tensor(place=x.place, shape=x.shape, dtype=dtype)]
    kind = "float" if dtype in FLOATS else dtype
    attributes = {"from": "float" if x.is_float else x.dtype, "to": kind}
    return [r.build.add("Cast", [x], x.shape, dtype=dtype, attributes=attributes)]


def _cast_values(values: Array, dtype: str) -> Array:
    """Return constants as they are stored in another type."""
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _shape(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.at(0)
    assert x is not None
    sizes: Sizes = x.shape
    start, end = op.flag("start"), op.attributes.get("end")
    return [_of_sizes(sizes[slice(start, end)])]


def _size_of(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.at(0)
    assert x is not None
    total = product(x.shape)
    return [_of_sizes([total], rank=0)]


def _of_sizes(sizes: Sequence[Size], rank: int = 1) -> Known:
    closed = all(isinstance(size, int) for size in sizes)
    values = np.array(sizes, np.int64) if closed else np.array([*sizes, None], object)[:-1]
    return Known(values=values.reshape(-1) if rank else values.reshape(()), dtype="int64")


def _constant_of_shape(r: Reading, op: Operator) -> Sequence[Value]:
    sizes = op.ints(0)
    value = op.attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else onnx.numpy_helper.to_array(value)
    if sizes is None or not all(isinstance(size, int) for size in sizes):
        raise op.refuse("makes a constant of an open size")
    return [known_of(np.full([int(s) for s in sizes], fill.reshape(-1)[0]))]  # type: ignore[arg-type]


def _reshape(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    wanted = op.ints(1, "shape")
    assert wanted is not None
    zero_is_zero = op.flag("allowzero")
    if zero_is_zero and 0 in wanted:
        raise op.refuse("makes an empty value")
    sizes = [x.shape[k] if size == 0 else size for k, size in enumerate(wanted)]
    if -1 in sizes:
        rest = [size for size in sizes if size != -1]
        sizes[sizes.index(-1)] = quotient_of(x.shape, rest)
    return [r.build.reshape(x, tuple(sizes))]


def _flatten(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    axis = op.flag("axis", 1)
    axis += x.rank if axis < 0 else 0
    return [r.build.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))]


def _squeeze(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    axes = op.closed_ints(1, "axes")
    gone = {axis % x.rank for axis in axes or ()}
    if axes is None:
        if not all(isinstance(size, int) for size in x.shape):
            raise op.refuse("drops whatever axis has size one, and a size is open")
        gone = {axis for axis, size in enumerate(x.shape) if size == 1}
    return [r.build.reshape(x, tuple(s for axis, s in enumerate(x.shape) if axis not in gone))]


def _unsqueeze(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    axes = op.closed_ints(1, "axes") or []
    rank = x.rank + len(axes)
    new = {axis % rank for axis in axes}
    rest = iter(x.shape)
    return [r.build.reshape(x, tuple(1 if k in new else next(rest) for k in range(rank)))]


def _transpose(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    order = op.attributes.get("perm") or range(x.rank)[::-1]
    return [r.build.transpose(x, list(order))]


def _expand(r: Reading, op: Operator) -> Sequence[Value]:
    x = _placed(r, op, 0)
    wanted = op.ints(1)
    assert wanted is not None
    return [_expanded(r.build, x, broadcast([x.shape, tuple(wanted)]))]


def _placed(r: Reading, op: Operator, which: int) -> Tensor:
    """Return an operand; one of constant floats as a node of its own, without sources."""
    value = op.at(which)
    if not isinstance(value, Known) or not value.is_float:
        return op.tensor(which)
    return r.build.add("Constant", [], value.shape, dtype=value.dtype, numbers=[r.numbers(value)])


def _expanded(build: Builder, x: Tensor, shape: Sizes) -> Tensor:
    if shape == x.shape:
        return x
    return build.add("Expand", [x], shape)


def _tile(r: Reading, op: Operator) -> Sequence[Value]:
    x, repeats = op.tensor(), op.closed_ints(1)
    assert repeats is not None
    if all(n == 1 for n in repeats):
        return [x]
    shape = tuple(size * n for size, n in zip(x.shape, repeats, strict=True))
    return [r.build.add("Tile", [x], shape, attributes={"repeats": repeats})]


def _concat(r: Reading, op: Operator) -> Sequence[Value]:
    """Nested concatenations along one axis are one."""
    build = r.build
    parts = [_placed(r, op, k) for k in range(len(op.operands))]
    axis = op.flag("axis") % parts[0].rank
    flat: list[Tensor] = []
    for part, name in zip(parts, op.node.input, strict=True):
        node = build.made_by(part, "Concat")
        if node is not None and dict(node.attributes)["axis"] == str(axis) and r.is_read_once(name):
            flat += build.sources(part)
        else:
            flat.append(part)
    rest = {part.shape[:axis] + part.shape[axis + 1 :] for part in parts}
    if len(rest) > 1:
        raise op.refuse("joins values of other sizes")
    size: Size = sum((part.shape[axis] for part in parts), start=0)
    shape = (*parts[0].shape[:axis], size, *parts[0].shape[axis + 1 :])
    if len(flat) == 1:
        return flat
    orders = [build.made_by(part, "Transpose") for part in flat]
    if orders[0] is not None and all(
        n is not None and n.attributes == orders[0].attributes for n in orders
    ):
        order = order_of(orders[0])
        inner = [build.source(part) for part in flat]
        within = order[axis]
        moved = list(inner[0].shape)
        moved[within] = size
        joined = build.add("Concat", inner, tuple(moved), attributes={"axis": within})
        return [build.transpose(joined, order)]
    return [build.add("Concat", flat, shape, attributes={"axis": axis})]


def _split(r: Reading, op: Operator) -> Sequence[Value]:
    """A slice for each part."""
    x = op.tensor()
    axis = op.flag("axis") % x.rank
    size, count = x.shape[axis], len(op.node.output)
    parts = op.closed_ints(1, "split")
    if parts is None:
        if not isinstance(size, int):
            raise op.refuse("splits an open size")
        each = -(-size // count)
        parts = [min(each, size - k * each) for k in range(count)]
    ends = np.cumsum(parts).tolist()
    return [
        sliced(r.build, x, axis, end - part, end, 1) for part, end in zip(parts, ends, strict=True)
    ]


def _split_to_sequence(r: Reading, op: Operator) -> Sequence[Value]:
    """Noted as an operator, from which `SequenceAt` takes a slice."""
    x, parts = op.tensor(), op.known(1)
    axis = op.flag("axis") % x.rank
    size = x.shape[axis]
    if parts is None or not isinstance(size, int):
        raise op.refuse("splits an open size, or into single values")
    if parts.values.ndim:
        sizes = [int(n) for n in parts.values]
    else:
        each = int(parts.values)
        sizes = [min(each, size - start) for start in range(0, size, each)]
    attributes = {"axis": axis, "ends": np.cumsum([0, *sizes]).tolist()}
    return [r.build.add("SplitToSequence", [x], x.shape, attributes=attributes)]


def _sequence_at(r: Reading, op: Operator) -> Sequence[Value]:
    whole, at = op.tensor(), op.closed_ints(1)
    node = r.build.made_by(whole, "SplitToSequence")
    if node is None or at is None:
        raise op.refuse("picks from a sequence that is no split")
    attributes = dict(node.attributes)
    ends = [int(n) for n in attributes["ends"].strip("[]").split(", ")]
    which = range(len(ends) - 1)[at[0]]
    x = r.build.source(whole)
    return [sliced(r.build, x, int(attributes["axis"]), ends[which], ends[which + 1], 1)]


def _slice(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    starts, ends = op.closed_ints(1, "starts"), op.ints(2, "ends")
    assert starts is not None
    assert ends is not None
    axes = op.closed_ints(3, "axes") or list(range(len(starts)))
    steps = op.closed_ints(4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _cut(r.build, op, x, axis % x.rank, start, end, step)
    return [x]


def _cut(
    build: Builder, op: Operator, x: Tensor, axis: int, start: int, end: Size, step: int
) -> Tensor:
    size = x.shape[axis]
    if isinstance(size, int) and isinstance(end, int):
        first, last, step = slice(start, end, step).indices(size)
        if step < 0:
            return sliced(build, x, axis, first, last, step)
        return sliced(build, x, axis, first, max(first, last), step)
    whole = (isinstance(end, int) and end >= np.iinfo(np.int32).max) or end == size
    if whole and start == 0 and step == 1:
        return x
    if whole and step > 0 and start >= 0:
        return sliced(build, x, axis, start, size, step)
    raise op.refuse("cuts an open size")


def sliced(build: Builder, x: Tensor, axis: int, start: int, end: Size, step: int) -> Tensor:
    """Return `start:end:step` along one axis, all three within it."""
    size = -floor_div(start - end, step) if step > 0 else len(range(start, int(end), step))  # type: ignore[arg-type]
    if (start, step) == (0, 1) and end == x.shape[axis]:
        return x
    if (moved := build.made_by(x, "Transpose")) is not None:
        order = order_of(moved)
        return build.transpose(sliced(build, build.source(x), order[axis], start, end, step), order)
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    cut = f"{start}:{'end' if end == x.shape[axis] else end}:{step}"
    node = build.made_by(x, "Slice")
    if node is not None and f"axis {axis}" not in dict(node.attributes):
        # Cuts of several axes are one.
        return build.add(
            "Slice",
            [build.source(x)],
            shape,
            attributes={**dict(node.attributes), f"axis {axis}": cut},
        )
    return build.add("Slice", [x], shape, attributes={f"axis {axis}": cut})


def _gather(r: Reading, op: Operator) -> Sequence[Value]:
    """One index is a slice of one; several constant ones in a row, too."""
    x, axis = op.at(0), op.flag("axis")
    indices = op.at(1)
    if isinstance(x, Known):
        assert isinstance(indices, Tensor)
        axis %= x.values.ndim
        if x.is_open:
            raise op.refuse("picks sizes by the values of the input")
        table = r.numbers(x) if x.is_float else None
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        attributes = {"axis": axis, "table": text_of(x.shape)}
        if table is None:
            attributes["values"] = str(x.values.tolist())
        return [
            r.build.add(
                "Gather",
                [indices],
                shape,
                dtype=x.dtype,
                attributes=attributes,
                numbers=() if table is None else (table,),
            )
        ]
    assert isinstance(x, Tensor)
    axis %= x.rank
    if isinstance(indices, Tensor):
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        return [r.build.add("Gather", [x, indices], shape, attributes={"axis": axis})]
    assert indices is not None
    at = [int(k) for k in indices.values.ravel()]
    size = x.shape[axis]
    if isinstance(size, int):
        if not all(-size <= k < size for k in at):
            raise op.refuse("reads beyond the end")
        at = [k % size for k in at]
    elif any(k < 0 for k in at):
        raise op.refuse("counts from the end of an open size")
    steps = {b - a for a, b in itertools.pairwise(at)} or {1}
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    if len(steps) == 1 and (step := steps.pop()) > 0:
        cut = sliced(r.build, x, axis, at[0], at[-1] + 1, step)
        return [r.build.reshape(cut, shape)]
    attributes = {"axis": axis, "indices": at}
    flat = (*x.shape[:axis], len(at), *x.shape[axis + 1 :])
    return [r.build.reshape(r.build.add("Gather", [x], flat, attributes=attributes), shape)]


def _pad(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    pads = op.closed_ints(1, "pads")
    assert pads is not None
    value = op.known(2)
    fill = float(op.attributes.get("value", 0.0)) if value is None else float(value.values.item())
    axes = op.closed_ints(3)
    names = [axis % x.rank for axis in axes] if axes is not None else list(range(x.rank))
    befores, afters = pads[: len(names)], pads[len(names) :]
    mode = op.string("mode", "constant")
    return [
        padded(
            r.build, x, dict(zip(names, zip(befores, afters, strict=True), strict=True)), mode, fill
        )
    ]


def padded(
    build: Builder, x: Tensor, added: Mapping[int, tuple[int, int]], mode: str, fill: float
) -> Tensor:
    """Return `x` with values before and after each axis; negative numbers cut."""
    added = {axis: both for axis, both in added.items() if any(both)}
    if not added:
        return x
    shape = tuple(size + sum(added.get(axis, (0, 0))) for axis, size in enumerate(x.shape))
    attributes: dict[str, Any] = {f"axis {axis}": both for axis, both in added.items()}
    if mode != "constant":
        attributes["mode"] = mode
    numbers = (Numbers.of(fill),) if mode == "constant" and fill else ()
    return build.add("Pad", [x], shape, attributes=attributes, numbers=numbers)


def with_padding(r: Reading, x: Tensor, pads: list[int]) -> tuple[Tensor, list[int]]:
    """Return (x, pads) with a Pad of zeros around the image taken in."""
    node = r.build.made_by(x, "Pad")
    if node is None or node.numbers:
        return x, pads
    added: dict[int, list[int]] = {}
    for name, value in node.attributes:
        kind, _, axis = name.partition(" ")
        if kind != "axis" or int(axis) < 2:
            return x, pads
        added[int(axis) - 2] = [int(n) for n in value.strip("[]").split(", ")]
    if any(n < 0 for both in added.values() for n in both):
        return x, pads
    dims = len(pads) // 2
    more = [added.get(k, [0, 0])[0] for k in range(dims)] + [
        added.get(k, [0, 0])[1] for k in range(dims)
    ]
    return r.build.source(x), [a + b for a, b in zip(pads, more, strict=True)]


def _depth_to_space(r: Reading, op: Operator) -> Sequence[Value]:
    """Two reshapes and a transposition, as the specification writes them."""
    x, block, mode = op.tensor(), op.flag("blocksize"), op.string("mode", "DCR")
    n, c, h, w = x.shape
    depth = floor_div(c, block * block)
    if mode == "DCR":
        x = r.build.reshape(x, (n, block, block, depth, h, w))
        x = r.build.transpose(x, [0, 3, 4, 1, 5, 2])
    else:
        x = r.build.reshape(x, (n, depth, block, block, h, w))
        x = r.build.transpose(x, [0, 1, 4, 2, 5, 3])
    return [r.build.reshape(x, (n, depth, h * block, w * block))]


def _space_to_depth(r: Reading, op: Operator) -> Sequence[Value]:
    x, block = op.tensor(), op.flag("blocksize")
    n, c, h, w = x.shape
    rows, columns = floor_div(h, block), floor_div(w, block)
    x = r.build.reshape(x, (n, c, rows, block, columns, block))
    x = r.build.transpose(x, [0, 3, 5, 1, 2, 4])
    return [r.build.reshape(x, (n, c * block * block, rows, columns))]


MOVEMENTS: dict[str, Rule] = {
    "Identity": _identity,
    "Dropout": _dropout,
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    "Shape": _shape,
    "Size": _size_of,
    "ConstantOfShape": _constant_of_shape,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "SplitToSequence": _split_to_sequence,
    "SequenceAt": _sequence_at,
    "Gather": _gather,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
