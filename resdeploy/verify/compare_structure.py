"""L0: two networks compared as graphs, without their weights.

A skeleton is a network in normal form: affine layers, the other operators with their attributes in
full, and the wiring, without operators that only pass elements on (reshape, identity, dropout at
inference) and without folded BatchNorms.

Every node gets a digest of itself and of everything it reads. Two skeletons are isomorphic if the
digests of their outputs are equal; otherwise the descent from the outputs along different digests
ends at the first operators that differ. Sums and products read their operands in any order.

This sees faults that no weight shows: a missing ReLU, another padding, a rounded-up pooling window.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.schema.verdicts import StructureResult

__all__ = ["Affine", "Alignment", "Skeleton", "SkeletonNode", "align"]

Float64Array = NDArray[np.float64]

_COMMUTATIVE = frozenset({"Add", "Mul", "Sum", "Max", "Min", "Mean"})
_MOST_DIFFERENCES = 8


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
    """

    weight: Float64Array
    bias: Float64Array
    dtype: str
    num_products: int
    bias_magnitude: Float64Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SkeletonNode:
    """An operator.

    Attributes:
        name: as the model calls it.
        op: its kind; `Linear` for every matrix product with constant weights.
        attributes: all of them, defaults filled in, as text.
        sources: its operands: a node by its place in the skeleton, or an input as -1, -2, ...
        affine: its weights, if it is an affine layer.
        reads: the name of the value that an affine layer reads.
        writes: the name of the value it computes.
    """

    name: str
    op: str
    attributes: tuple[tuple[str, str], ...]
    sources: tuple[int, ...]
    affine: Affine | None = None
    reads: str = ""
    writes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Skeleton:
    """A network: its nodes, sources before readers, and the places of its outputs."""

    nodes: tuple[SkeletonNode, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """The pairs of affine layers (reference, candidate), in the reference's order."""

    pairs: tuple[tuple[SkeletonNode, SkeletonNode], ...]
    result: StructureResult


def align(reference: Skeleton, candidate: Skeleton) -> Alignment:
    """Return the pairs of layers that correspond, and the differences of the networks."""
    digests = _digests(reference), _digests(candidate)
    differences: list[str] = []
    same_form = len(reference.outputs) == len(candidate.outputs)
    pairs: dict[int, int] = {}
    if not same_form:
        differences.append(
            f"the reference has {len(reference.outputs)} outputs, "
            f"the candidate {len(candidate.outputs)}"
        )
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
        if _own(mine) != _own(other):
            differences.append(_attribute_difference(mine, other))
        if mine.affine is not None:
            pairs[ours] = theirs
        for pair in _paired_sources(mine, other, digests):
            if pair not in seen:
                seen.add(pair)
                waiting.append(pair)
    return Alignment(
        pairs=tuple((reference.nodes[k], candidate.nodes[pairs[k]]) for k in sorted(pairs)),
        result=StructureResult(
            num_nodes=len(reference.nodes),
            num_layers=sum(node.affine is not None for node in reference.nodes),
            num_aligned=len(pairs),
            same_form=same_form,
            differences=tuple(differences[:_MOST_DIFFERENCES]),
        ),
    )


def _node(skeleton: Skeleton, place: int) -> SkeletonNode | None:
    """Return the node at a place, None for an input."""
    return skeleton.nodes[place] if place >= 0 else None


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
    """Return a node's content without its wiring."""
    shape = None if node.affine is None else node.affine.weight.shape
    return (node.op, node.attributes, shape)


def _paired_sources(
    mine: SkeletonNode, other: SkeletonNode, digests: tuple[list[bytes], list[bytes]]
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of corresponding sources."""
    theirs = list(other.sources)
    if mine.op not in _COMMUTATIVE:
        yield from zip(mine.sources, theirs, strict=True)
        return
    unpaired = []
    for source in mine.sources:
        digest = _digest(source, digests[0])
        twin = next((t for t in theirs if _digest(t, digests[1]) == digest), None)
        if twin is None:
            unpaired.append(source)
        else:
            theirs.remove(twin)
            yield source, twin
    yield from zip(unpaired, theirs, strict=True)


def _digest(source: int, digests: Sequence[bytes]) -> bytes:
    return digests[source] if source >= 0 else str(source).encode()


def _attribute_difference(mine: SkeletonNode, other: SkeletonNode) -> str:
    ours, theirs = dict(mine.attributes), dict(other.attributes)
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            return (
                f"`{other.name}` ({other.op}) has {key} {theirs.get(key)}, "
                f"the reference {ours.get(key)}"
            )
    assert mine.affine is not None
    assert other.affine is not None
    return (
        f"`{other.name}` ({other.op}) has weights of shape {other.affine.weight.shape}, "
        f"the reference {mine.affine.weight.shape}"
    )


def _title(skeleton: Skeleton, place: int) -> str:
    node = _node(skeleton, place)
    return f"input {-place - 1}" if node is None else f"`{node.name}` ({node.op})"
