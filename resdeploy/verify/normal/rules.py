"""The closed list: each operator of ONNX whose meaning is stated here, and how it is written.

A rule takes a node whose constants are known and returns the values it computes. What it says of
shapes, defaults and corners is the specification's, for every opset; what a rule does not know it
refuses by name, and the network is then not proved.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import Array
from resdeploy.verify.compare_structure import Affine, Numbers
from resdeploy.verify.normal.builder import Builder, Known, Tensor, Value, broadcast, order_of
from resdeploy.verify.normal.dims import (
    Size,
    Sizes,
    floor_div,
    is_above_one,
    product,
    quotient_of,
    text_of,
)

__all__ = ["RULES", "Reading", "Rule"]


class Reading(Protocol):
    """What a rule may ask of the model it reads."""

    build: Builder
    opset: int

    def affine(self, node: onnx.NodeProto, weight: Known, bias: Array, num_products: int) -> Affine:
        """Return the numbers of a layer."""

    def numbers(self, known: Known) -> Numbers:
        """Return constants to be compared within their roundings."""

    def is_read_once(self, name: str) -> bool:
        """True for a value with a single reader."""

    def exact_cast(self, dtype: str) -> bool:
        """True for a type of float to which the claimed arithmetic may round."""


Rule = Callable[[Reading, "Operator"], Sequence[Value]]


class Operator:
    """A node with its operands looked up.

    Attributes:
        node: of the model.
        attributes: with those of the specification where the node states none.
        operands: None for one left out.
    """

    def __init__(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any], operands: Sequence[Value | None]
    ) -> None:
        self.node, self.attributes, self.operands = node, dict(attributes), list(operands)

    def refuse(self, why: str) -> UnsupportedModelError:
        """Return the error of a corner that is not understood."""
        return UnsupportedModelError(
            f"{self.node.op_type} {why}", where=self.node.name or self.node.output[0]
        )

    def tensor(self, which: int = 0) -> Tensor:
        """Return an operand that must depend on the inputs."""
        value = self.at(which)
        if not isinstance(value, Tensor):
            raise self.refuse(f"has a constant as operand {which}")
        return value

    def at(self, which: int) -> Value | None:
        """Return an operand; None for one left out."""
        return self.operands[which] if which < len(self.operands) else None

    def known(self, which: int) -> Known | None:
        """Return an operand that must be constant or left out."""
        value = self.at(which)
        if isinstance(value, Tensor):
            raise self.refuse(f"has operand {which} computed from the values of the input")
        return value

    def ints(self, which: int, attribute: str | None = None) -> list[Size] | None:
        """Return integers that are an operand, or an attribute in older opsets."""
        if attribute is not None and attribute in self.attributes:
            found = self.attributes[attribute]
            return [found] if isinstance(found, int) else list(found)
        known = self.known(which)
        return None if known is None else [_size(v) for v in known.values.ravel().tolist()]

    def closed_ints(self, which: int, attribute: str | None = None) -> list[int] | None:
        """Return integers that must not depend on open sizes."""
        found = self.ints(which, attribute)
        closed = None if found is None else [v for v in found if isinstance(v, int)]
        if found is not None and len(closed or ()) != len(found):
            raise self.refuse("depends on an open size")
        return closed

    def flag(self, name: str, default: int = 0) -> int:
        """Return an attribute that is an integer."""
        return int(self.attributes.get(name, default))

    def string(self, name: str, default: str = "") -> str:
        """Return an attribute that is text."""
        value = self.attributes.get(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _size(value: Any) -> Size:
    return int(value) if isinstance(value, int | float | np.integer | bool) else value


# --- what only passes on -----------------------------------------------------------------------


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
    if trains or len([name for name in op.node.output if name]) > 1:
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
        stored = "float64" if _is_float(dtype) else dtype
        values = x.values if x.is_open else _cast_values(x.values, dtype).astype(stored)
        return [Known(values=values, dtype=dtype, roundings=x.roundings)]
    if x.dtype == dtype:
        return [x]
    if _is_float(x.dtype) and _is_float(dtype):
        if not r.exact_cast(dtype):
            raise op.refuse(f"rounds to {dtype}")
        return [Tensor(place=x.place, shape=x.shape, dtype=dtype)]
    kind = "float" if _is_float(dtype) else dtype
    attributes = {"from": "float" if _is_float(x.dtype) else x.dtype, "to": kind}
    return [r.build.add("Cast", [x], x.shape, dtype=dtype, attributes=attributes)]


def _cast_values(values: Array, dtype: str) -> Array:
    """Return constants as they are stored in another type."""
    if dtype in ("float64", "bfloat16"):
        return values
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _is_float(dtype: str) -> bool:
    return dtype in ("float16", "bfloat16", "float32", "float64")


# --- sizes -------------------------------------------------------------------------------------


def _shape(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.at(0)
    assert x is not None
    sizes: Sizes = x.shape if isinstance(x, Tensor) else x.values.shape
    start, end = op.flag("start"), op.attributes.get("end")
    return [_of_sizes(sizes[slice(start, end)])]


def _size_of(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.at(0)
    assert x is not None
    total = product(x.shape if isinstance(x, Tensor) else x.values.shape)
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


def known_of(array: Array, dtype: str | None = None) -> Known:
    """Return a constant, floats in float64."""
    kind = dtype or array.dtype.name
    values = array.astype(np.float64) if _is_float(kind) else np.asarray(array)
    return Known(values=values, dtype=kind)


# --- movements ---------------------------------------------------------------------------------


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
    x = op.tensor()
    wanted = op.ints(1)
    assert wanted is not None
    return [_expanded(r.build, x, broadcast([x.shape, tuple(wanted)]))]


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
    parts = [op.tensor(k) for k in range(len(op.operands))]
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
        shape = (*x.values.shape[:axis], *indices.shape, *x.values.shape[axis + 1 :])
        attributes = {"axis": axis, "table": text_of(x.values.shape)}
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
    shape = (*x.shape[:axis], *indices.values.shape, *x.shape[axis + 1 :])
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
    added = {axis: both for axis, both in added.items() if any(both)}
    if not added:
        return x
    shape = tuple(size + sum(added.get(axis, (0, 0))) for axis, size in enumerate(x.shape))
    attributes: dict[str, Any] = {f"axis {axis}": both for axis, both in added.items()}
    if mode != "constant":
        attributes["mode"] = mode
    numbers = (Numbers.of(fill),) if mode == "constant" and fill else ()
    return build.add("Pad", [x], shape, attributes=attributes, numbers=numbers)


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


# --- each element by itself --------------------------------------------------------------------


def _unary(*, names: Sequence[tuple[str, float]] = (), op_name: str | None = None) -> Rule:
    """Return the rule of a function of each element; `names` are its numbers, with defaults."""

    def rule(r: Reading, op: Operator) -> Sequence[Value]:
        numbers = [
            Numbers.of(op.attributes.get(name, default), roundings=1) for name, default in names
        ]
        return [r.build.unary(op_name or op.node.op_type, op.tensor(), *numbers)]

    return rule


def _relu(r: Reading, op: Operator) -> Sequence[Value]:
    return [r.build.clip(op.tensor(), Numbers.zero(), Numbers.of(np.inf))]


def _clip(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    bounds = []
    for which, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        known = op.known(which)
        if known is not None:
            bounds.append(r.numbers(known).map(lambda a: a.reshape(-1)))
        else:
            value = float(op.attributes.get(name, default))
            limit = float(np.finfo(np.float32).max)
            # Before opset 11 the defaults are the largest numbers of float32.
            bounds.append(Numbers.of(np.copysign(np.inf, value) if abs(value) >= limit else value))
    if not (_is_float(x.dtype)):
        attributes = {"low": bounds[0].values.item(), "high": bounds[1].values.item()}
        return [r.build.add("Clip", [x], x.shape, attributes=attributes)]
    if any(b.values.size != 1 for b in bounds) or bounds[0].values.item() > bounds[1].values.item():
        raise op.refuse("has bounds in the wrong order")
    return [r.build.clip(x, *bounds)]


def _hard_sigmoid(r: Reading, op: Operator) -> Sequence[Value]:
    """clip(alpha x + beta, 0, 1)."""
    alpha, beta = (
        Numbers.of(_exact_sixth(op.attributes[name]), roundings=1) for name in ("alpha", "beta")
    )
    x = op.tensor()
    return [
        r.build.clip(r.build.scale_shift(x, alpha, beta, x.shape), Numbers.zero(), Numbers.one())
    ]


def _exact_sixth(value: float) -> float:
    """Return 1/6 for its float32, which attributes hold and torch's own hardsigmoid does not."""
    return 1 / 6 if np.float32(value) == np.float32(1 / 6) else value


def _hard_swish(r: Reading, op: Operator) -> Sequence[Value]:
    """X clip(x / 6 + 1/2, 0, 1)."""
    x, build = op.tensor(), r.build
    inner = build.scale_shift(x, Numbers.of(1 / 6), Numbers.of(0.5), x.shape)
    return [build.times([x, build.clip(inner, Numbers.zero(), Numbers.one())], x.shape)]


def _leaky_relu(r: Reading, op: Operator) -> Sequence[Value]:
    return [r.build.leaky(op.tensor(), Numbers.of(op.attributes["alpha"], roundings=1))]


def _prelu(r: Reading, op: Operator) -> Sequence[Value]:
    slope = op.known(1)
    assert slope is not None
    return [r.build.leaky(op.tensor(), r.numbers(slope))]


def _gelu(r: Reading, op: Operator) -> Sequence[Value]:
    """X / 2 (1 + erf(x / sqrt 2)), or with tanh(sqrt(2 / pi) (x + 0.044715 x^3)) for the erf."""
    x = op.tensor()
    return [gelu(r.build, x, approximate=op.string("approximate", "none"))]


def gelu(build: Builder, x: Tensor, *, approximate: str) -> Tensor:
    """Return the Gelu of `x`, written out."""
    if approximate == "tanh":
        cube = build.times([x, x, x], x.shape)
        inner = build.total([x, build.scaled(cube, Numbers.of(0.044715))], x.shape)
        bend = build.unary("Tanh", build.scaled(inner, Numbers.of((2 / np.pi) ** 0.5)))
    else:
        bend = build.unary("Erf", build.scaled(x, Numbers.of(0.5**0.5)))
    half = Numbers.of(0.5)
    return build.times([x, build.scale_shift(bend, half, half, x.shape)], x.shape)


def _elu(r: Reading, op: Operator) -> Sequence[Value]:
    """max(x, 0) + alpha (exp(min(x, 0)) - 1); Selu is gamma times it, Celu bends by x / alpha."""
    x, build = op.tensor(), r.build
    alpha = Numbers.of(op.attributes["alpha"], roundings=1)
    zero, infinite = Numbers.zero(), Numbers.of(np.inf)
    low = build.clip(x, Numbers.of(-np.inf), zero)
    if op.node.op_type == "Celu":
        low = build.scaled(low, alpha.inverse())
    bent = build.unary("Exp", low)
    scaled = build.scale_shift(bent, alpha, alpha.times(Numbers.of(-1.0)), x.shape)
    found = build.total([build.clip(x, zero, infinite), scaled], x.shape)
    if op.node.op_type == "Selu":
        found = build.scaled(found, Numbers.of(op.attributes["gamma"], roundings=1))
    return [found]


def _mish(r: Reading, op: Operator) -> Sequence[Value]:
    """X tanh(softplus(x))."""
    x = op.tensor()
    return [r.build.times([x, r.build.unary("Tanh", r.build.unary("Softplus", x))], x.shape)]


def _swish(r: Reading, op: Operator) -> Sequence[Value]:
    """X sigmoid(alpha x)."""
    x, alpha = op.tensor(), Numbers.of(op.attributes.get("alpha", 1.0), roundings=1)
    return [r.build.times([x, r.build.unary("Sigmoid", r.build.scaled(x, alpha))], x.shape)]


def _negative(r: Reading, op: Operator) -> Sequence[Value]:
    return [r.build.scaled(op.tensor(), Numbers.of(-1.0))]


def _reciprocal(r: Reading, op: Operator) -> Sequence[Value]:
    return [r.build.reciprocal(op.tensor())]


def _pow(r: Reading, op: Operator) -> Sequence[Value]:
    """Whole powers are products, half a root, -1 a reciprocal."""
    x, power = op.tensor(), op.known(1)
    assert power is not None
    if power.values.size != 1:
        raise op.refuse("has several powers")
    exponent = float(power.values.item())
    if exponent in (2.0, 3.0, 4.0):
        return [r.build.times([x] * int(exponent), x.shape)]
    if exponent == 1.0:
        return [x]
    if exponent == -1.0:
        return [r.build.reciprocal(x)]
    if exponent == 0.5:
        return [r.build.unary("Sqrt", x)]
    if exponent == -0.5:
        return [r.build.reciprocal(r.build.unary("Sqrt", x))]
    return [r.build.unary("Pow", x, r.numbers(power))]


# --- of two operands ---------------------------------------------------------------------------


def _shapes(values: Sequence[Value]) -> list[Sizes]:
    return [v.shape if isinstance(v, Tensor) else v.values.shape for v in values]


def _operands(op: Operator) -> list[Value]:
    if any(value is None for value in op.operands):
        raise op.refuse("lacks an operand")
    return [value for value in op.operands if value is not None]


def _add(r: Reading, op: Operator) -> Sequence[Value]:
    return [_sum(r, op, _operands(op), [1.0] * len(op.operands))]


def _sub(r: Reading, op: Operator) -> Sequence[Value]:
    return [_sum(r, op, _operands(op), [1.0, -1.0])]


def _sum(r: Reading, op: Operator, values: Sequence[Value], signs: Sequence[float]) -> Value:
    """Return a sum: its tensors, then its constants as a shift."""
    shape = broadcast(_shapes(values))
    build = r.build
    tensors, merge, shift = [], [], Numbers.zero()
    for value, sign, name in zip(values, signs, op.node.input, strict=True):
        if isinstance(value, Known):
            shift = shift.plus(_numbers(r, op, value, len(shape)).times(Numbers.of(sign)))
        else:
            tensors.append(value if sign > 0 else build.scaled(value, Numbers.of(-1.0)))
            merge.append(r.is_read_once(name))
    if not all(_is_float(tensor.dtype) for tensor in tensors):
        return _plain(r, op)[0]
    if len(tensors) == 1:
        return build.scale_shift(tensors[0], Numbers.one(), shift, shape)
    found = build.total(tensors, shape, merge=merge)
    return build.scale_shift(found, Numbers.one(), shift, shape)


def _numbers(r: Reading, op: Operator, known: Known, rank: int) -> Numbers:
    if known.is_open:
        raise op.refuse("computes with an open size")
    found = r.numbers(known)
    return found.map(
        lambda a: a.reshape((1,) * (rank - a.ndim) + a.shape) if a.size > 1 else a.reshape(-1)
    )


def _mean_of(r: Reading, op: Operator) -> Sequence[Value]:
    (found,) = _add(r, op)
    assert isinstance(found, Tensor)
    return [r.build.scaled(found, Numbers.of(1 / len(op.operands)))]


def _mul(r: Reading, op: Operator) -> Sequence[Value]:
    return [_product(r, op, _operands(op), list(op.node.input))]


def _product(r: Reading, op: Operator, values: Sequence[Value], names: Sequence[str]) -> Value:
    """Return a product: its tensors, then its constants as a scale."""
    shape = broadcast(_shapes(values))
    build = r.build
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not all(_is_float(tensor.dtype) for tensor in tensors):
        return _plain(r, op)[0]
    scale = Numbers.one()
    for value in values:
        if isinstance(value, Known):
            scale = scale.times(_numbers(r, op, value, len(shape)))
    merge = [r.is_read_once(n) for n, v in zip(names, values, strict=True) if isinstance(v, Tensor)]
    found = tensors[0] if len(tensors) == 1 else build.times(tensors, shape, merge=merge)
    return build.scale_shift(found, scale, Numbers.zero(), shape)


def _div(r: Reading, op: Operator) -> Sequence[Value]:
    """A / b = a (1 / b)."""
    a, b = _operands(op)
    if not _is_float(a.dtype):
        return _plain(r, op)
    if isinstance(b, Known):
        if b.is_open or not b.values.all():
            raise op.refuse("divides by zero or by an open size")
        inverse = Known(values=1 / b.values, dtype=b.dtype, roundings=b.roundings)
        return [_product(r, op, [a, inverse], list(op.node.input))]
    return [_product(r, op, [a, r.build.reciprocal(b)], [op.node.input[0], ""])]


def _maximum(r: Reading, op: Operator) -> Sequence[Value]:
    """With one number, a bound of Clip."""
    values = _operands(op)
    tensors = [value for value in values if isinstance(value, Tensor)]
    known = [value for value in values if isinstance(value, Known)]
    is_max = op.node.op_type == "Max"
    if len(tensors) == 1 and len(known) == 1 and known[0].values.size == 1:
        x = tensors[0]
        if _is_float(x.dtype) and broadcast(_shapes(values)) == x.shape:
            bound = _numbers(r, op, known[0], 1)
            infinite = Numbers.of(np.inf if is_max else -np.inf)
            return [r.build.clip(x, *((bound, infinite) if is_max else (infinite, bound)))]
    return _plain(r, op)


def _plain(r: Reading, op: Operator, dtype: str | None = None) -> Sequence[Value]:
    """Return an operator of each element under its own name, with its constants as numbers."""
    values = _operands(op)
    shape = broadcast(_shapes(values))
    tensors, numbers, attributes = [], [], {}
    for which, value in enumerate(values):
        if isinstance(value, Tensor):
            tensors.append(value)
            attributes[f"operand {which}"] = "value"
        elif value.is_float:
            numbers.append(_numbers(r, op, value, len(shape)))
        elif value.is_open:
            raise op.refuse("computes with an open size")
        else:
            attributes[f"operand {which}"] = f"{value.values.shape} {value.values.tolist()}"
    if len(tensors) == len(values):
        attributes = {}
    if op.node.op_type == "Where":
        dtype = values[1].dtype
    return [
        r.build.add(op.node.op_type, tensors, shape, dtype=dtype or tensors[-1].dtype,
                    attributes=attributes, numbers=numbers)
    ]  # fmt: skip


def _where(r: Reading, op: Operator) -> Sequence[Value]:
    """Softplus that is x itself beyond a threshold of at least 20 is Softplus.

    log(1 + exp(x)) - x = log(1 + exp(-x)) < exp(-20) < 2.1e-9 there: less than a thousandth of the
    ulp that x has in float32, which is 1.9e-6.
    """
    build, (condition, then, other) = r.build, _operands(op)
    if isinstance(condition, Tensor) and isinstance(then, Tensor) and isinstance(other, Tensor):
        test = build.made_by(condition, "Greater")
        is_soft = test is not None and build.made_by(other, "Softplus") is not None
        if test is not None and is_soft and condition.shape == then.shape == other.shape:
            compared = dict(test.attributes) == {"operand 0": "value"} and test.numbers
            same = {build.source(condition).place, build.source(other).place, then.place}
            if compared and len(same) == 1 and (test.numbers[0].values >= 20).all():
                return [other]
    return _plain(r, op)


def _compare(r: Reading, op: Operator) -> Sequence[Value]:
    return _plain(r, op, "bool")


# --- windows and reductions --------------------------------------------------------------------


def _pool(r: Reading, op: Operator) -> Sequence[Value]:
    """A window that is the whole map is a reduction; a ceil_mode that changes no size is none.

    A maximum's padding, below all values, may be what ceil_mode reads or what no window does.

    Zeros padded before an average without padding are its counted padding: each window is divided
    by all its taps.
    """
    x, kind = op.tensor(), op.node.op_type
    if len([name for name in op.node.output if name]) > 1:
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
    is_real = _is_float(x.dtype)  # a mean of integers is rounded
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


# --- normalisations, written out ---------------------------------------------------------------


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
    return Numbers.of(op.attributes.get("epsilon", default), roundings=1)


def _layer_norm(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    if len([name for name in op.node.output if name]) > 1:
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


def _resize(r: Reading, op: Operator) -> Sequence[Value]:
    """Nearest by a whole factor is one function, whichever of three conventions is stated.

    Output i of a factor s reads floor(i / s): what `asymmetric` with `floor` says, and what
    `half_pixel` with rounding to the nearest says, as (i + 1/2) / s - 1/2 lies within one half of
    it, for s > 1 without a tie.
    """
    x = op.tensor()
    mode = op.string("mode", "nearest")
    factors, shape = _resized(r, op, x)
    if shape == x.shape and all(f in (None, 1.0) for f in factors):
        return [x]
    place = op.string(
        "coordinate_transformation_mode", "half_pixel" if r.opset > 10 else "asymmetric"
    )
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
    if (
        op.string("keep_aspect_ratio_policy", "stretch") != "stretch"
        or place == "tf_crop_and_resize"
    ):
        raise op.refuse("crops, or keeps an aspect ratio")
    if op.attributes.get("axes"):
        raise op.refuse("names its axes")
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


def _einsum(r: Reading, op: Operator) -> Sequence[Value]:
    equation = op.string("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    values = _operands(op)
    if not arrow or "." in equation:
        raise op.refuse("does not name its axes")
    names: dict[str, Size] = {}
    for letters, sizes in zip(left.split(","), _shapes(values), strict=True):
        for letter, size in zip(letters, sizes, strict=True):
            if names.setdefault(letter, size) != size:
                raise op.refuse("has an axis of two sizes")
    order = {
        letter: chr(97 + k) for k, letter in enumerate(dict.fromkeys(left.replace(",", "") + right))
    }
    plain = "".join(order.get(c, c) for c in equation)
    shape = tuple(names[letter] for letter in right)
    tensors = [value for value in values if isinstance(value, Tensor)]
    numbers = [r.numbers(value) for value in values if isinstance(value, Known)]
    attributes: dict[str, Any] = {"equation": plain}
    attributes["constants"] = [k for k, v in enumerate(values) if isinstance(v, Known)]
    return [r.build.add("Einsum", tensors, shape, attributes=attributes, numbers=numbers)]


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


RULES: dict[str, Rule] = {
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
    "Relu": _relu,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Gelu": _gelu,
    "Mish": _mish,
    "Swish": _swish,
    "Neg": _negative,
    "Reciprocal": _reciprocal,
    "Pow": _pow,
    **dict.fromkeys(
        (
            *(
                "Abs",
                "Ceil",
                "Cos",
                "Erf",
                "Exp",
                "Floor",
                "Log",
                "Not",
                "Round",
                "Sigmoid",
                "Sign",
            ),
            *("Sin", "Softplus", "Softsign", "Sqrt", "Tanh"),
        ),
        _unary(),
    ),
    **dict.fromkeys(("Elu", "Celu", "Selu"), _elu),
    "ThresholdedRelu": _unary(names=[("alpha", 1.0)]),
    **dict.fromkeys(("Add", "Sum"), _add),
    "Sub": _sub,
    "Mean": _mean_of,
    "Mul": _mul,
    "Div": _div,
    **dict.fromkeys(("Max", "Min"), _maximum),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _compare),
    **dict.fromkeys(("And", "Or"), _plain),
    "Where": _where,
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
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LRN": _lrn,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Einsum": _einsum,
    "TopK": _top_k,
}
