"""L0: two networks compared as graphs, without their weights.

A skeleton is a network in normal form (`normal_form`): affine layers, the other operators with
their attributes in full, and the wiring. Every node gets a digest of itself and of everything it
reads. Two skeletons are isomorphic if the digests of their outputs are equal, and so are the shapes
and types of inputs and outputs; otherwise the descent from the outputs along different digests ends
at the first operators that differ. Sums and products read their operands in any order.

This sees faults that no weight shows: a missing ReLU, another padding, a rounded-up pooling window.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.schema.verdicts import StructureResult

__all__ = ["Affine", "Alignment", "Numbers", "Skeleton", "SkeletonNode", "align", "kind_of"]

Float64Array = NDArray[np.float64]

_COMMUTATIVE = frozenset({"Add", "Mul", "Sum", "Max", "Min", "Mean"})
_MOST_DIFFERENCES = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Numbers:
    """Constants that an operator works with, other than a layer's weights.

    Attributes:
        values: in float64, with an axis for each of the value's, or one number.
        magnitude: the largest of the terms behind each value: where these cancel, the value's own
            ulp says little.
        dtype: the type they are stored in.
        roundings: to that type, behind each value.
    """

    values: Float64Array
    magnitude: Float64Array
    dtype: str = "float32"
    roundings: int = 0

    @classmethod
    def of(cls, values: Any, dtype: str = "float32", roundings: int = 0) -> "Numbers":
        """Return numbers that are no sums."""
        array = np.atleast_1d(np.asarray(values, np.float64))
        return cls(values=array, magnitude=np.abs(array), dtype=dtype, roundings=roundings)

    @classmethod
    def one(cls) -> "Numbers":
        """Return the neutral factor."""
        return cls.of(1.0)

    @classmethod
    def zero(cls) -> "Numbers":
        """Return the neutral term."""
        return cls.of(0.0)

    def map(self, change: Callable[[Float64Array], Float64Array]) -> "Numbers":
        """Return the numbers in another shape."""
        return replace(self, values=change(self.values), magnitude=change(self.magnitude))

    def times(self, other: "Numbers") -> "Numbers":
        """Return the products."""
        with np.errstate(invalid="ignore", over="ignore"):  # 0 times an open bound
            values = np.nan_to_num(
                self.values * other.values, nan=0.0, posinf=np.inf, neginf=-np.inf
            )
            magnitude = np.nan_to_num(
                self.magnitude * other.magnitude, nan=0.0, posinf=np.inf, neginf=-np.inf
            )
        return replace(
            self,
            values=values,
            magnitude=magnitude,
            roundings=self.roundings + other.roundings,
        )

    def plus(self, other: "Numbers") -> "Numbers":
        """Return the sums."""
        if not self.values.any():
            return other
        if not other.values.any():
            return self
        return replace(
            self,
            values=self.values + other.values,
            magnitude=np.maximum(
                *np.broadcast_arrays(self.magnitude, other.magnitude),
            ),
            roundings=self.roundings + other.roundings,
        )

    def inverse(self) -> "Numbers":
        """Return the reciprocals."""
        return replace(self, values=1 / self.values, magnitude=1 / np.abs(self.values))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Affine:
    """The numbers of an affine layer, in float64.

    Attributes:
        weight: of the layer's own layout; for a BatchNorm, its scale (C,).
        bias: (O,), zeros where there is none; for a BatchNorm, its shift.
        dtype: the type the weight is stored in.
        num_products: the products that one output adds up.
        bias_magnitude: (O,), the largest of the bias's terms by absolute value: its own ulp says
            little where they cancel.
        roundings: to `dtype`, behind each weight.
    """

    weight: Float64Array
    bias: Float64Array
    dtype: str
    num_products: int
    bias_magnitude: Float64Array
    roundings: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SkeletonNode:
    """An operator.

    Attributes:
        name: as the model calls it.
        op: its kind; `Linear` for every matrix product with constant weights.
        attributes: all of them, defaults filled in, as text.
        sources: its operands: a node by its place in the skeleton, or an input as -1, -2, ...
        affine: its weights, if it is an affine layer.
        numbers: its other constants.
        value: the shape and the kind of its value. What an operator does may depend on the rank of
            what it reads, so operators of one text that read others are told apart.
    """

    name: str
    op: str
    attributes: tuple[tuple[str, str], ...]
    sources: tuple[int, ...]
    affine: Affine | None = None
    numbers: tuple[Numbers, ...] = ()
    value: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Skeleton:
    """A network: its nodes, sources before readers, and its inputs and outputs.

    Attributes:
        nodes: see there.
        outputs: their places.
        shapes: of the outputs, with open sizes as polynomials.
        dtypes: of the outputs.
        inputs: the shape and type of each.
    """

    nodes: tuple[SkeletonNode, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[Any, ...], ...] = ()
    dtypes: tuple[str, ...] = ()
    inputs: tuple[tuple[tuple[Any, ...], str], ...] = ()

    def without_unread(self) -> "Skeleton":
        """Return the skeleton without nodes that no output depends on."""
        needed: set[int] = set()
        waiting = [place for place in self.outputs if place >= 0]
        while waiting:
            place = waiting.pop()
            if place not in needed:
                needed.add(place)
                waiting += [k for k in self.nodes[place].sources if k >= 0]
        order = sorted(needed)
        moved = {old: new for new, old in enumerate(order)}

        def move(place: int) -> int:
            return moved[place] if place >= 0 else place

        nodes = (self.nodes[place] for place in order)
        return replace(
            self,
            nodes=tuple(replace(node, sources=tuple(map(move, node.sources))) for node in nodes),
            outputs=tuple(map(move, self.outputs)),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """The pairs of operators with numbers (reference, candidate), in the reference's order."""

    pairs: tuple[tuple[SkeletonNode, SkeletonNode], ...]
    result: StructureResult


# What only moves elements about: with another one of these, what follows may make up for it.
_MOVEMENTS = frozenset(
    {"Reshape", "Transpose", "Slice", "Concat", "Gather", "Expand", "Pad", "Tile"}
)


def align(reference: Skeleton, candidate: Skeleton) -> Alignment:
    """Return the pairs of operators that correspond, and the differences of the networks."""
    digests = _digests(reference), _digests(candidate)
    differences = _differences_at_the_ends(reference, candidate)
    # Ends of another kind are another network: whoever calls it sees it.
    same_form = True
    pairs: list[tuple[int, int]] = []
    marks = _fingerprints(reference), _fingerprints(candidate)
    waiting = list(zip(reference.outputs, candidate.outputs, strict=False))[::-1]
    seen = set(waiting)
    while waiting:
        ours, theirs = waiting.pop()
        mine, other = _node(reference, ours), _node(candidate, theirs)
        if mine is None or other is None:
            is_alike = ours == theirs
        else:
            is_alike = mine.op == other.op and len(mine.sources) == len(other.sources)
        if not is_alike:
            same_form = False
            differences.append(
                f"{_title(reference, ours)} of the reference is "
                f"{_title(candidate, theirs)} of the candidate"
            )
        if not is_alike or mine is None or other is None:
            continue
        sources = list(_paired_sources(mine, other, digests, marks))
        values = [(_value(reference, a), _value(candidate, b)) for a, b in sources]
        # Of values of another shape, another shape follows: it is told where it begins.
        follows = _own(mine)[:-1] == _own(other)[:-1] and any(a != b for a, b in values)
        if _own(mine) != _own(other) and not follows:
            same_form = same_form and mine.op not in _MOVEMENTS
            differences.append(_attribute_difference(mine, other))
        if mine.affine is not None or mine.numbers:
            pairs.append((ours, theirs))
        for pair in sources:
            if pair not in seen:
                seen.add(pair)
                waiting.append(pair)
    layers = {k for k, node in enumerate(reference.nodes) if node.affine is not None}
    return Alignment(
        pairs=tuple((reference.nodes[a], candidate.nodes[b]) for a, b in sorted(pairs)),
        result=StructureResult(
            num_nodes=len(reference.nodes),
            num_layers=len(layers),
            num_aligned=len({ours for ours, _ in pairs} & layers),
            same_form=same_form,
            differences=tuple(differences[:_MOST_DIFFERENCES]),
        ),
    )


def _differences_at_the_ends(reference: Skeleton, candidate: Skeleton) -> list[str]:
    """Return the differences of inputs and outputs: their number, shapes and kinds."""
    found = []
    if len(reference.outputs) != len(candidate.outputs):
        found.append(
            f"the reference has {len(reference.outputs)} outputs, "
            f"the candidate {len(candidate.outputs)}"
        )
    for k, (ours, theirs) in enumerate(zip(reference.shapes, candidate.shapes, strict=False)):
        if ours != theirs:
            found.append(f"output {k} has shape {theirs}, in the reference {ours}")
    for k, (mine, other) in enumerate(zip(reference.dtypes, candidate.dtypes, strict=False)):
        if kind_of(mine) != kind_of(other):
            found.append(f"output {k} is {other}, in the reference {mine}")
    if len(reference.inputs) != len(candidate.inputs):
        found.append(
            f"the reference has {len(reference.inputs)} inputs, "
            f"the candidate {len(candidate.inputs)}"
        )
    for k, (one, two) in enumerate(zip(reference.inputs, candidate.inputs, strict=False)):
        if one[0] != two[0] or kind_of(one[1]) != kind_of(two[1]):
            found.append(f"input {k} is {two[1]} {two[0]}, in the reference {one[1]} {one[0]}")
    return found


def kind_of(dtype: str) -> str:
    """Return a type of value; the reference's floats are all in float64."""
    return "float" if "float" in dtype else dtype


def _node(skeleton: Skeleton, place: int) -> SkeletonNode | None:
    """Return the node at a place, None for an input."""
    return skeleton.nodes[place] if place >= 0 else None


def _value(skeleton: Skeleton, place: int) -> tuple[str, str]:
    """Return the shape and kind at a place; none of an input, which is compared at the ends."""
    return skeleton.nodes[place].value if place >= 0 else ("", "")


def _digests(skeleton: Skeleton) -> list[bytes]:
    found: list[bytes] = []
    for node in skeleton.nodes:
        sources = [_digest(k, found) for k in node.sources]
        if node.op in _COMMUTATIVE:
            sources.sort()
        content = repr(_own(node)).encode() + b"".join(sources)
        found.append(hashlib.sha256(content).digest())
    return found


def _own(node: SkeletonNode) -> tuple[Any, ...]:
    """Return a node's content without its wiring and its numbers."""
    shape = None if node.affine is None else node.affine.weight.shape
    numbers = tuple(n.values.shape for n in node.numbers)
    return (node.op, node.attributes, shape, numbers, node.value)


def _fingerprints(skeleton: Skeleton) -> list[float]:
    """Return a number for each node that is nearly the same for nearly the same numbers.

    Operands of one form are paired in its order; a pair that is wrong shows in its numbers.
    """
    found: list[float] = []
    for node in skeleton.nodes:
        arrays = [numbers.values for numbers in node.numbers]
        if node.affine is not None:
            arrays += [node.affine.weight, node.affine.bias]
        own = sum(
            float(np.sum(np.abs(a[np.isfinite(a)]))) + float(np.sum(a[np.isfinite(a)])) / 3
            for a in arrays
        )
        sources = [_mark(k, found) for k in node.sources]
        if node.op in _COMMUTATIVE:
            sources.sort()
        found.append(own + sum(0.3 / (k + 1) * mark for k, mark in enumerate(sources)))
    return found


def _mark(source: int, marks: Sequence[float]) -> float:
    return marks[source] if source >= 0 else float(source)


def _paired_sources(
    mine: SkeletonNode,
    other: SkeletonNode,
    digests: tuple[list[bytes], list[bytes]],
    marks: tuple[list[float], list[float]],
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of corresponding sources."""
    if mine.op not in _COMMUTATIVE:
        yield from zip(mine.sources, other.sources, strict=True)
        return
    by_digest: tuple[dict[bytes, list[int]], dict[bytes, list[int]]] = ({}, {})
    for which, node in enumerate((mine, other)):
        for source in sorted(node.sources, key=lambda k, w=which: _mark(k, marks[w])):  # type: ignore[misc]
            by_digest[which].setdefault(_digest(source, digests[which]), []).append(source)
    unpaired: tuple[list[int], list[int]] = ([], [])
    for digest in dict.fromkeys((*by_digest[0], *by_digest[1])):
        ours, theirs = (found.get(digest, []) for found in by_digest)
        yield from zip(ours, theirs, strict=False)
        both = min(len(ours), len(theirs))
        unpaired[0].extend(ours[both:])
        unpaired[1].extend(theirs[both:])
    yield from zip(*unpaired, strict=True)


def _digest(source: int, digests: Sequence[bytes]) -> bytes:
    return digests[source] if source >= 0 else str(source).encode()


def _attribute_difference(mine: SkeletonNode, other: SkeletonNode) -> str:
    stated, found = dict(mine.attributes), dict(other.attributes)
    for key in sorted({*stated, *found}):
        if stated.get(key) != found.get(key):
            return (
                f"`{other.name}` ({other.op}) has {key} {found.get(key)}, "
                f"the reference {stated.get(key)}"
            )
    if mine.value != other.value:
        ours, theirs = (" ".join(node.value) for node in (mine, other))
        return f"`{other.name}` ({other.op}) makes {theirs}, in the reference {ours}"
    first, second = (
        node.affine.weight.shape if node.affine else [n.values.shape for n in node.numbers]
        for node in (other, mine)
    )
    return f"`{other.name}` ({other.op}) has weights of shape {first}, the reference {second}"


def _title(skeleton: Skeleton, place: int) -> str:
    node = _node(skeleton, place)
    return f"input {-place - 1}" if node is None else f"`{node.name}` ({node.op})"
