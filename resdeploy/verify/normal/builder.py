"""Skeletons built operator by operator, each new node in its one normal way to be written.

The constructors here are the rewritings on which several operators rest; each is an identity of
real arithmetic, for every input and every size:

- `scale_shift`: s2 (s1 x + t1) + t2 = (s2 s1) x + (s2 t1 + t2);
- `clip`: clip(clip(x, a, b), c, d) = clip(x, clip(a, c, d), clip(b, c, d)), and clip(s x + t, a, b)
  = s clip(x + t/s, a/s, b/s) for s > 0, with the bounds exchanged for s < 0;
- `total` and `times`: sums and products are associative and commutative; a constant term or factor
  is taken out of them, and a product takes the factors of its operands out;
- `reshape`: only the last of several counts, and one to the same shape is none;
- `transpose`: p2 after p1 is one permutation; where only axes of size one move it is a reshape;
  of a reshape, within blocks of axes that it keeps together, it is put before the reshape: in
  row-major order, a reshape whose first axes have as many elements before as after is two;
- movements (`reshape`, `transpose`) come after what works on each element by itself.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import Array
from resdeploy.verify.compare_structure import Affine, Numbers, SkeletonNode, kind_of
from resdeploy.verify.normal.dims import Size, Sizes, product, quotient_of, text_of

__all__ = ["FLOATS", "Builder", "Known", "Tensor", "Value", "broadcast", "order_of"]

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """A constant, or integers computed from sizes.

    Attributes:
        values: floats in float64; sizes as an array of objects.
        dtype: the type the values are stored in.
        roundings: roundings to `dtype` behind each value.
    """

    values: Array
    dtype: str
    roundings: int = 1

    @property
    def is_open(self) -> bool:
        """True if the values depend on an open size."""
        return self.values.dtype == object

    @property
    def is_float(self) -> bool:
        """True if the values are real numbers."""
        return self.dtype in FLOATS

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.values.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A value that depends on the inputs: the place that computes it, its shape and its type."""

    place: int
    shape: Sizes
    dtype: str

    @property
    def is_float(self) -> bool:
        """True if the values are real numbers."""
        return self.dtype in FLOATS

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


Value = Known | Tensor
_Apply = Callable[[Sequence[Tensor], Sizes], Tensor]


class Builder:
    """Collects the nodes of a skeleton.

    Attributes:
        nodes: so far.
        tensors: the value of each.
        inputs: of the model.
        title: the name of the operator that is being taken, for the nodes it makes.
    """

    def __init__(self) -> None:
        self.nodes: list[SkeletonNode] = []
        self.tensors: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.title = ""

    def add(
        self,
        op: str,
        sources: Sequence[Tensor],
        shape: Sizes,
        *,
        dtype: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        numbers: Sequence[Numbers] = (),
        affine: Affine | None = None,
    ) -> Tensor:
        """Append a node, and return its value."""
        kind = dtype or sources[0].dtype
        node = SkeletonNode(
            name=self.title,
            op=op,
            attributes=tuple(sorted((key, text(v)) for key, v in (attributes or {}).items())),
            sources=tuple(tensor.place for tensor in sources),
            affine=affine,
            numbers=tuple(numbers),
            value=(text_of(shape), kind_of(kind)),
        )
        self.nodes.append(node)
        self.tensors.append(Tensor(place=len(self.nodes) - 1, shape=tuple(shape), dtype=kind))
        return self.tensors[-1]

    def node(self, x: Tensor) -> SkeletonNode | None:
        """Return the node that computes `x`; None for an input."""
        return self.nodes[x.place] if x.place >= 0 else None

    def made_by(self, x: Tensor, *operators: str) -> SkeletonNode | None:
        """Return the node that computes `x` if it is one of these operators."""
        node = self.node(x)
        return node if node is not None and node.op in operators else None

    def source(self, x: Tensor, which: int = 0) -> Tensor:
        """Return an operand of the node that computes `x`."""
        place = self.nodes[x.place].sources[which]
        return self.tensors[place] if place >= 0 else self.inputs[-place - 1]

    def sources(self, x: Tensor) -> list[Tensor]:
        """Return the operands of the node that computes `x`."""
        return [self.source(x, k) for k in range(len(self.nodes[x.place].sources))]

    # --- movements ---

    def reshape(self, x: Tensor, shape: Sizes) -> Tensor:
        """Return `x` in another shape of as many elements."""
        if self.made_by(x, "Reshape"):
            x = self.source(x)
        if tuple(shape) == x.shape:
            return x
        if quotient_of(x.shape, shape) != 1:
            raise UnsupportedModelError(f"{text_of(x.shape)} is no {text_of(shape)} reshaped.")
        return self.add("Reshape", [x], shape)

    def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Return `x` with axis `order[k]` as its axis k."""
        if (inner := self.made_by(x, "Transpose")) is not None:
            before = order_of(inner)
            x, order = self.source(x), [before[axis] for axis in order]
        shape = tuple(x.shape[axis] for axis in order)
        wide = [axis for axis in order if x.shape[axis] != 1]
        if wide == sorted(wide):
            return self.reshape(x, shape)
        if self.made_by(x, "Reshape"):
            inner_order = _within_blocks(self.source(x).shape, x.shape, order)
            if inner_order is not None:
                return self.reshape(self.transpose(self.source(x), inner_order), shape)
        return self.add("Transpose", [x], shape, attributes={"order": list(order)})

    def each(self, x: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        """Return apply(x) for a function of each element by itself, movements put after it."""
        if self.made_by(x, "Reshape"):
            return self.reshape(self.each(self.source(x), apply), x.shape)
        if (node := self.made_by(x, "Transpose")) is not None:
            return self.transpose(self.each(self.source(x), apply), order_of(node))
        return apply(x)

    # --- constants times and plus ---

    def scale_shift(self, x: Tensor, scale: Numbers, shift: Numbers, shape: Sizes) -> Tensor:
        """Return scale * x + shift, of `shape`."""
        scale, shift = _simple(scale, len(shape)), _simple(shift, len(shape))
        if shape == x.shape:
            if is_one(scale) and is_zero(shift):
                return x
            if scale.values.size == shift.values.size == 1 and self.made_by(
                x, "Reshape", "Transpose"
            ):
                return self.each(x, lambda y: self.scale_shift(y, scale, shift, y.shape))
            if (order := self._moved(x, scale, shift)) is not None:
                back = np.argsort(order).tolist()
                scale, shift = (_permuted(n, back) for n in (scale, shift))
                y = self.source(x)
                return self.transpose(self.scale_shift(y, scale, shift, y.shape), order)
            if is_one(scale) and (biased := self._with_bias(x, shift)) is not None:
                return biased
        inner = self.made_by(x, "ScaleShift")
        if inner is not None and len(x.shape) == len(shape):
            first, offset = inner.numbers
            scale, shift = scale.times(first), scale.times(offset).plus(shift)
            return self.scale_shift(self.source(x), scale, shift, shape)
        numbers = (scale, shift)
        return self.add("ScaleShift", [x], shape, numbers=numbers)

    def _with_bias(self, x: Tensor, shift: Numbers) -> Tensor | None:
        """Return a layer with a constant per output added to its bias; None for other values."""
        node = self.made_by(x, "Linear", "Conv", "ConvTranspose", "Reshape")
        if node is None:
            return None
        axis = 1 if node.op.startswith("Conv") else x.rank - 1
        along = [k for k, size in enumerate(shift.values.shape) if size != 1]
        if shift.values.size > 1 and along != [axis]:
            return None
        if node.op == "Reshape":
            inner = self.source(x)
            if shift.values.size == 1 or inner.shape[-1] != x.shape[-1]:
                return None
            row = shift.map(lambda a: a.reshape((1,) * (inner.rank - 1) + (-1,)))
            biased = self._with_bias(inner, row)
            return None if biased is None else self.reshape(biased, x.shape)
        assert node.affine is not None
        bias = node.affine.bias + shift.values.reshape(-1)
        magnitude = np.maximum(np.abs(bias), node.affine.bias_magnitude)
        affine = replace(
            node.affine,
            bias=bias,
            bias_magnitude=np.maximum(magnitude, shift.magnitude.reshape(-1)),
        )
        self.nodes.append(replace(node, affine=affine))
        self.tensors.append(Tensor(place=len(self.nodes) - 1, shape=x.shape, dtype=x.dtype))
        return self.tensors[-1]

    def _moved(self, x: Tensor, *numbers: Numbers) -> list[int] | None:
        """Return the order of the transposition that `x` is, if constants can go before it."""
        node = self.made_by(x, "Transpose")
        fits = all(n.values.size == 1 or n.values.ndim == x.rank for n in numbers)
        return order_of(node) if node is not None and fits else None

    def split_scale(self, x: Tensor) -> tuple[Tensor, Numbers]:
        """Return (y, s) of x = s y, with s one number, looking through movements."""
        node = self.made_by(x, "ScaleShift", "Reshape", "Transpose")
        if node is None:
            return x, Numbers.one()
        if node.op == "ScaleShift":
            scale, shift = node.numbers
            if scale.values.size == 1 and scale.values.item() and is_zero(shift):
                return self.source(x), scale
            return x, Numbers.one()
        y, scale = self.split_scale(self.source(x))
        if is_one(scale):
            return x, scale
        if node.op == "Reshape":
            return self.reshape(y, x.shape), scale
        return self.transpose(y, order_of(node)), scale

    def scaled(self, x: Tensor, scale: Numbers) -> Tensor:
        """Return scale * x."""
        return self.scale_shift(x, scale, Numbers.zero(), x.shape)

    # --- functions of each element ---

    def clip(self, x: Tensor, low: Numbers, high: Numbers) -> Tensor:
        """Return min(max(x, low), high), each bound one number."""
        if self.made_by(x, "Reshape", "Transpose"):
            return self.each(x, lambda y: self.clip(y, low, high))
        node = self.made_by(x, "ScaleShift", "Clip", "Relu")
        if node is None:
            pass
        elif node.op != "ScaleShift":
            a, b = node.numbers or (Numbers.zero(), Numbers.of(np.inf))
            return self.clip(self.source(x), _bounded(a, low, high), _bounded(b, low, high))
        else:
            scale, shift = node.numbers
            if scale.values.size == 1 and scale.values.item() not in (0.0, 1.0):
                inverse = scale.inverse()
                bounds = (low.times(inverse), high.times(inverse))
                low, high = bounds if scale.values.item() > 0 else bounds[::-1]
                inner = self.scale_shift(
                    self.source(x), Numbers.one(), shift.times(inverse), x.shape
                )
                return self.scaled(self.clip(inner, low, high), scale)
        if is_zero(low) and high.values.item() == np.inf:
            return self.add("Relu", [x], x.shape)
        return self.add("Clip", [x], x.shape, numbers=(low, high))

    def leaky(self, x: Tensor, slope: Numbers) -> Tensor:
        """Return x where it is positive, slope * x elsewhere."""
        slope = _simple(slope, x.rank)
        if slope.values.size == 1:
            if self.made_by(x, "Reshape", "Transpose"):
                return self.each(x, lambda y: self.leaky(y, slope))
            if is_zero(slope):
                return self.clip(x, Numbers.zero(), Numbers.of(np.inf))
        return self.add("PRelu", [x], x.shape, numbers=(slope,))

    def unary(self, op: str, x: Tensor, *numbers: Numbers, dtype: str | None = None) -> Tensor:
        """Return a function of each element by itself."""
        return self.each(x, lambda y: self.add(op, [y], y.shape, numbers=numbers, dtype=dtype))

    def reciprocal(self, x: Tensor) -> Tensor:
        """Return 1 / x."""
        y, scale = self.split_scale(x)
        if self.made_by(y, "Reciprocal"):
            return self.scaled(self.source(y), scale.inverse())
        return self.scaled(self.unary("Reciprocal", y), scale.inverse())

    # --- sums and products ---

    def total(self, terms: Sequence[Tensor], shape: Sizes, *, merge: Sequence[bool] = ()) -> Tensor:
        """Return the sum of tensors; `merge` says of which the terms are taken if it is a sum."""
        if (moved := self._together(terms, shape)) is not None:
            return moved(lambda inner, s: self.total(inner, s, merge=merge))
        flat: list[Tensor] = []
        shift = Numbers.zero()
        for k, term in enumerate(terms):
            if (node := self.made_by(term, "ScaleShift")) and not is_zero(node.numbers[1]):
                shift = shift.plus(_simple(node.numbers[1], len(shape)))
                source = self.source(term)
                term = self.scale_shift(source, node.numbers[0], Numbers.zero(), term.shape)
            if any(merge[k : k + 1]) and self.made_by(term, "Add") and term.shape == shape:
                flat += self.sources(term)
            else:
                flat.append(self._without_expand(term, terms, shape))
        found = self.add("Add", _ordered(flat), shape)
        return self.scale_shift(found, Numbers.one(), shift, shape)

    def times(
        self, factors: Sequence[Tensor], shape: Sizes, *, merge: Sequence[bool] = ()
    ) -> Tensor:
        """Return the product of tensors, with what is one number in each factor taken out."""
        if (moved := self._together(factors, shape)) is not None:
            return moved(lambda inner, s: self.times(inner, s, merge=merge))
        flat: list[Tensor] = []
        scale = Numbers.one()
        for k, factor in enumerate(factors):
            factor, own = self.split_scale(factor)
            scale = scale.times(own)
            node = self.made_by(factor, "ScaleShift")
            if node is not None and node.numbers[0].values.size == 1:
                # s x + t = s (x + t / s)
                own, shift = node.numbers
                if own.values.item() not in (0.0, 1.0):
                    scale = scale.times(own)
                    shift = shift.times(own.inverse())
                    factor = self.scale_shift(
                        self.source(factor), Numbers.one(), shift, factor.shape
                    )
            if any(merge[k : k + 1]) and self.made_by(factor, "Mul") and factor.shape == shape:
                flat += self.sources(factor)
            else:
                flat.append(self._without_expand(factor, factors, shape))
        return self.scaled(self.add("Mul", _ordered(flat), shape), scale)

    def _without_expand(self, one: Tensor, all_of: Sequence[Tensor], shape: Sizes) -> Tensor:
        """Return an operand without an Expand that the others make needless."""
        if self.made_by(one, "Expand"):
            others = [other.shape for other in all_of if other is not one]
            inner = self.source(one)
            if broadcast([inner.shape, *others]) == shape:
                return inner
        return one

    def _together(
        self, operands: Sequence[Tensor], shape: Sizes
    ) -> Callable[[_Apply], Tensor] | None:
        """Return a function that puts the movement that all operands share after them."""
        nodes = [self.made_by(x, "Reshape", "Transpose") for x in operands]
        first = nodes[0]
        if first is None or any(
            n is None or (n.op, n.attributes, n.value) != (first.op, first.attributes, first.value)
            for n in nodes
        ):
            return None
        inner = [self.source(x) for x in operands]
        if any(x.shape != inner[0].shape for x in inner) or any(x.shape != shape for x in operands):
            return None
        if first.op == "Reshape":
            return lambda apply: self.reshape(apply(inner, inner[0].shape), shape)
        return lambda apply: self.transpose(apply(inner, inner[0].shape), order_of(first))


def broadcast(shapes: Sequence[Sizes]) -> Sizes:
    """Return the shape that these are broadcast to.

    Raises:
        UnsupportedModelError: two sizes are neither equal nor one, as far as is known.
    """
    rank = max(map(len, shapes))
    found: list[Size] = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, start=rank - len(shape)):
            if found[axis] == 1:
                found[axis] = size
            elif size not in (1, found[axis]):
                raise UnsupportedModelError(
                    f"Sizes {found[axis]} and {size} are not known to be the same."
                )
    return tuple(found)


def _within_blocks(before: Sizes, after: Sizes, order: Sequence[int]) -> list[int] | None:
    """Return the order in which a reshape's source may be transposed in place of its result."""
    blocks = {}  # by their first axis after the reshape: the axes after it, and those before it
    i = j = 0
    while i < len(before) or j < len(after):
        ends = itertools.product(range(i, len(before) + 1), range(j, len(after) + 1))
        fitting = [
            (a, b)
            for a, b in ends
            if (a, b) != (i, j) and product(before[i:a]) == product(after[j:b])
        ]
        if not fitting:
            return None
        # One axis that stays comes before axes of size one.
        a, b = min(fitting, key=lambda ends: (ends != (i + 1, j + 1), sum(ends)))
        blocks[j if b > j else -1 - i] = (range(j, b), range(i, a))
        i, j = a, b
    found = [axis for first, (_, axes) in blocks.items() if first < 0 for axis in axes]
    rest = list(order)
    while rest:
        own, sources = blocks.get(rest[0], ((), ()))
        if not own or rest[: len(own)] != list(own):
            return None
        found += sources
        del rest[: len(own)]
    return found


def order_of(node: SkeletonNode) -> list[int]:
    """Return the order of a Transpose."""
    return [int(axis) for axis in dict(node.attributes)["order"].strip("[]").split(", ")]


def is_one(numbers: Numbers) -> bool:
    """True for the neutral factor, exactly."""
    return numbers.values.size == 1 and numbers.values.item() == 1


def is_zero(numbers: Numbers) -> bool:
    """True for the neutral term, exactly."""
    return not numbers.values.any()


def text(value: Any) -> str:
    """Return an attribute as text, the same for equal ones."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _ordered(tensors: Sequence[Tensor]) -> list[Tensor]:
    return sorted(tensors, key=lambda tensor: tensor.place)


def _bounded(value: Numbers, low: Numbers, high: Numbers) -> Numbers:
    """Return a bound within others, with the roundings of the one that counts."""
    if value.values.item() < low.values.item():
        value = low
    return high if value.values.item() > high.values.item() else value


def _simple(numbers: Numbers, rank: int) -> Numbers:
    """Return constants with an axis for each of the value's, and equal ones as one number."""
    values = numbers.values
    if (
        values.size
        and (values == values.flat[0]).all()
        and (numbers.magnitude == numbers.magnitude.flat[0]).all()
    ):
        return numbers.map(lambda a: a.reshape(-1)[:1])
    if values.ndim >= rank:
        return numbers
    return numbers.map(lambda a: a.reshape((1,) * (rank - a.ndim) + a.shape))


def _permuted(numbers: Numbers, order: Sequence[int]) -> Numbers:
    return numbers if numbers.values.size == 1 else numbers.map(lambda a: a.transpose(order))
