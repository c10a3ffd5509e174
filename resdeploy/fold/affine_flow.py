"""Carry an affine map through an ONNX graph to the layers it can be folded into.

`affine_map` holds the algebra of maps, `map_rules` the effect of each operator on one.

Upwards, to the layers that compute a value. Besides the operators of `map_rules`, the map crosses

1. Concat, where it parts;
2. Add, Sub and Sum of values, each of which takes the scale and one the shift; along an axis where
   their lengths may differ, the map must not vary;
3. Add, Sub, Mul and Div with a constant, which it takes in: the node goes.

It stops, with the reason, at anything else, such as a pair of QuantizeLinear and DequantizeLinear;
and at any value

4. that has another reader or is an output of its graph: that reader must not see the change;
5. that is computed in another graph than its reader.

Downwards, to all the layers that read a value, each of which takes in the whole map. It stops at
what it cannot cross, at 5, at an output of the graph, and

6. at a layer that reads the value in another place than that of its input;
7. at a layer that sees zeros beside the value, unless the shift is zero.
"""

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from resdeploy.fold.affine_map import (
    AffineMap,
    add_constant,
    flatten_axes,
    multiply_by_constant,
    part,
    per_channel,
)
from resdeploy.fold.algebra import ExtendedArray
from resdeploy.fold.layers import Layer, Layers
from resdeploy.fold.map_rules import after, before
from resdeploy.graph.editor import (
    chosen_by_caller,
    constant_array,
    describe,
    describe_value,
    int_attribute,
    is_op,
    why_it_varies,
)

__all__ = ["Absorbed", "Target", "constant_operand", "targets_above", "targets_below"]


@dataclass(frozen=True, eq=False)
class Absorbed:
    """A node on the way that the map has taken in: its input `source` takes its place."""

    node: ir.Node
    source: ir.Value


@dataclass(frozen=True, eq=False)
class Target:
    """A layer, and the map per channel to fold into it after or before it."""

    layer: Layer
    side: Literal["after", "before"]
    scale: ExtendedArray
    shift: ExtendedArray
    absorbed: tuple[Absorbed, ...] = ()


# --- upwards -------------------------------------------------------------------------------------


def targets_above(
    value: ir.Value,
    affine: AffineMap,
    reader: ir.Node,
    layers: Layers,
    absorbed: tuple[Absorbed, ...] = (),
) -> list[Target] | str:
    """Return the layers that compute `value`, each with its part of the map; or why there are none.

    Args:
        value: the input at the map's place, which nothing else may read.
        affine: the map.
        reader: the node that reads it on the way here.
        layers: those of the graph.
        absorbed: the nodes that the map has taken in on the way here.
    """
    node = value.producer()
    if node is None:
        return f"its input is {describe_value(value)}, not the output of a layer"
    reason = _read_elsewhere(value)  # 4
    if reason is not None:
        return reason
    if node.graph is not reader.graph:  # 5
        return f"its input, {describe_value(value)}, is computed in another graph than itself"
    layer = layers.computing.get(node)
    if layer is not None:
        return _into_layer(layer, affine, "after", absorbed)
    if is_op(node, "Concat"):  # 1
        return _into_parts(node, affine, layers, absorbed)
    taken_in = _with_constant(node, affine, layers)  # 3
    if taken_in is not None:
        source, through = taken_in
        passed = (*absorbed, Absorbed(node, source))
        return targets_above(source, through, node, layers, passed)
    if is_op(node, "Add", "Sub", "Sum"):  # 2
        return _into_summands(node, affine, layers, absorbed)
    crossed = before(node, affine, layers.editor)
    if isinstance(crossed, str):
        return crossed
    if crossed is None:
        return f"its input comes from {describe(node)}, not from a convolution or linear layer"
    previous = node.inputs[0]
    assert previous is not None
    return targets_above(previous, crossed, node, layers, absorbed)


def _read_elsewhere(value: ir.Value) -> str | None:
    """Return the reason why `value` cannot change its meaning, None if it has one reader alone."""
    if value.is_graph_output():
        return f"its input, {describe_value(value)}, is also an output of its graph"
    if len(value.uses()) == 1:
        return None
    others = f"its input, {describe_value(value)}, is read {len(value.uses())} times"
    around = [reader for reader, _ in value.uses()] + [value.producer()]
    if any(node is not None and _adds_two_streams(node) for node in around):
        return f"{others}: it is the residual stream"
    return others


def _adds_two_streams(node: ir.Node) -> bool:
    return is_op(node, "Add") and all(why_it_varies(value) is not None for value in node.inputs)


def constant_operand(node: ir.Node) -> int | None:
    """Return the place of the constant of two operands; None if neither or both are constant."""
    varies = [why_it_varies(value) is not None for value in node.inputs]
    return varies.index(False) if sorted(varies) == [False, True] else None


def _with_constant(
    node: ir.Node, affine: AffineMap, layers: Layers
) -> tuple[ir.Value, AffineMap] | None:
    """Return the other operand of a sum or product with a constant, and the map of it."""
    at = constant_operand(node) if is_op(node, "Add", "Sub", "Mul", "Div") else None
    if at is None or chosen_by_caller(node) is not None:
        return None
    constant, source = node.inputs[at], node.inputs[1 - at]
    assert constant is not None
    assert source is not None
    shape = layers.editor.shape(source)
    if shape is None:
        return None
    array = constant_array(constant)
    taken_in: AffineMap | None
    if is_op(node, "Add"):
        taken_in = add_constant(affine, array, shape)
    elif is_op(node, "Mul"):
        taken_in = multiply_by_constant(affine, array, shape)
    elif is_op(node, "Sub"):
        # constant - x is -(x - constant).
        turned = affine if at == 1 else AffineMap(-affine.scale, affine.shift)
        taken_in = add_constant(turned, array, shape, sign=-1)
    else:  # a constant divided by x is no affine map of x
        taken_in = None if at == 0 else multiply_by_constant(affine, array, shape, divide=True)
    return None if taken_in is None else (source, taken_in)


def _into_parts(
    node: ir.Node, affine: AffineMap, layers: Layers, absorbed: tuple[Absorbed, ...]
) -> list[Target] | str:
    """Part the map as the value is joined."""
    parts = [value for value in node.inputs if value is not None]
    if len(set(parts)) != len(parts):
        return f"its input, {describe(node)}, joins a value with itself"
    axis = int_attribute(node, "axis", 1) % affine.rank
    shares: list[tuple[ir.Value, AffineMap | None]] = []
    start, known = 0, True
    for joined in parts:
        shape = layers.editor.shape(joined)
        length = None if shape is None else shape[axis]
        known = known and isinstance(length, int)
        places = range(start, start + length) if known and length else None
        shares.append((joined, part(affine, axis, places)))
        start += length if known and length else 0
    why_not = f"its input, {describe(node)}, joins values of unknown lengths"
    return _into_shares(shares, why_not, node, layers, absorbed)


def _into_summands(
    node: ir.Node, affine: AffineMap, layers: Layers, absorbed: tuple[Absorbed, ...]
) -> list[Target] | str:
    """Give the scale to each summand, and the shift to the first."""
    summands = [value for value in node.inputs if value is not None]
    if len(set(summands)) != len(summands):
        return f"its input comes from {describe(node)}, which adds a value to itself"
    total = layers.editor.shape(node.outputs[0])
    shares: list[tuple[ir.Value, AffineMap | None]] = []
    for k, summand in enumerate(summands):
        shape, share = layers.editor.shape(summand), None
        if total is not None and shape is not None and len(shape) == len(total):
            stretched = [axis for axis in range(len(total)) if shape[axis] != total[axis]]
            share = flatten_axes(affine if k == 0 else affine.without_shift(), stretched)
        shares.append((summand, share))
    why_not = f"its input, {describe(node)}, is a sum of values of different shapes"
    return _into_shares(shares, why_not, node, layers, absorbed)


def _into_shares(
    shares: list[tuple[ir.Value, AffineMap | None]],
    why_not: str,
    node: ir.Node,
    layers: Layers,
    absorbed: tuple[Absorbed, ...],
) -> list[Target] | str:
    """Return the layers above each input of `node`, or the first reason why there are none."""
    targets: list[Target] = []
    for value, share in shares:
        found = why_not if share is None else targets_above(value, share, node, layers, absorbed)
        if isinstance(found, str):
            return found
        targets += found
    return targets


# --- downwards -----------------------------------------------------------------------------------


_NO_LAYER_BELOW = "no layer alone reads its output"


def targets_below(value: ir.Value, affine: AffineMap, layers: Layers) -> list[Target] | str:
    """Return the layers that read the mapped `value`, each with the map to fold in before it.

    `value` is the result of the map. Its readers are changed, not itself: so every one of them must
    lead to layers, or none may be changed.
    """
    if value.is_graph_output() or not value.uses():
        return _NO_LAYER_BELOW
    targets: list[Target] = []
    producer = value.producer()
    home = value.graph if producer is None else producer.graph
    for reader, at in value.uses():
        alone = reader.graph is home  # 5
        if not alone or at != 0 or list(reader.inputs).count(value) != 1:  # 6
            return _NO_LAYER_BELOW
        found = _targets_in(reader, affine, layers)
        if isinstance(found, str):
            return found
        targets += found
    return targets


def _targets_in(reader: ir.Node, affine: AffineMap, layers: Layers) -> list[Target] | str:
    """Return the layers that a map of the first input of `reader` reaches through it."""
    layer = layers.reading.get(reader)
    if layer is not None:
        if layer.refusal is None and layer.affine.pads_with_zeros and affine.shift.any():  # 7
            return f"{describe(reader)}, which reads it, pads with zeros that its shift would move"
        return _into_layer(layer, affine, "before", ())
    crossed = after(reader, affine, layers.editor)
    if crossed is None or isinstance(crossed, str):
        return crossed or _NO_LAYER_BELOW
    return targets_below(reader.outputs[0], crossed, layers)


# --- both ways -----------------------------------------------------------------------------------


def _into_layer(
    layer: Layer,
    affine: AffineMap,
    side: Literal["after", "before"],
    absorbed: tuple[Absorbed, ...],
) -> list[Target] | str:
    """Return the map as one vector per channel of the layer; or why it is none."""
    if layer.refusal is not None:
        return layer.refusal
    read = layer.affine
    axis = affine.rank - 1 if read.is_linear else 1
    length, what = read.num_outputs, "output"
    if side == "before":
        axis, length, what = 0 if read.reads_columns else axis, read.num_inputs, "input"
    vectors = per_channel(affine, axis, length)
    if vectors is not None:
        return [Target(layer, side, *vectors, absorbed)]
    if flatten_axes(affine, (k for k in range(affine.rank) if k != axis)) is not None:
        found = max(affine.scale.shape[axis], affine.shift.shape[axis])
        return f"{describe(layer.node)} has {length} {what} channels, but it normalises {found}"
    if read.is_linear:
        return (
            f"{describe(layer.node)} has its features on the last axis of a "
            f"rank-{affine.rank} value, but it normalises another axis"
        )
    return f"the map differs between positions of {describe(layer.node)}"
