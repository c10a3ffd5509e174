"""Carry an affine map through an ONNX graph to the layers it can be folded into.

`affine_map` holds the algebra of maps, `map_rules` the effect of each operator on one.

Upwards, to the layers that compute a value. Besides the operators of `map_rules`, the map crosses

1. Concat, where it parts;
2. Add, Sub and Sum of values, each of which takes the scale and one the shift; along an axis where
   their lengths may differ, the map must not vary;
3. Add, Sub, Mul and Div with a constant, which it takes in: the node goes.

Where a value is taken apart (Split, Slice, Gather) and every part is on the way, the maps of the
parts are joined. Readers of a shape do not count. It stops, with the reason, at anything else, such
as a pair of QuantizeLinear and DequantizeLinear; and at any value

4. that has another reader or is an output of its graph: that reader must not see the change;
5. that is computed in another graph than its reader.

Downwards, to all the layers that read a value, each of which takes in the whole map. Nodes of 3
stay where they are, and each part of a Split goes its own way. It stops at what it cannot cross, at
5, at an output of the graph, and

6. at a layer that reads the value in another place than that of its input;
7. at a layer that sees zeros beside the value, unless the shift is zero.
"""

from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from resdeploy.fold.affine_map import (
    AffineMap,
    add_constant,
    flatten_axes,
    join,
    multiply_by_constant,
    part,
    past_constant_factor,
    past_constant_sum,
    per_channel,
)
from resdeploy.fold.algebra import ExtendedArray
from resdeploy.fold.layers import Layer, Layers
from resdeploy.fold.map_rules import Window, after, before, window
from resdeploy.graph.editor import (
    chosen_by_caller,
    constant_array,
    describe,
    describe_value,
    int_attribute,
    is_op,
    is_present,
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


_WITH_CONSTANT = ("Add", "Sub", "Mul", "Div")


# --- upwards -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of a value on the way: its places, its map, and what that has taken in so far."""

    window: Window
    affine: AffineMap
    absorbed: tuple[Absorbed, ...]


@dataclass(frozen=True, eq=False)
class _Ascent:
    """One way up: the layers of the graph, and the parts of values that were met, by output."""

    layers: Layers
    parts: dict[ir.Value, dict[ir.Value, _Part]] = field(default_factory=dict)


def targets_above(
    value: ir.Value, affine: AffineMap, reader: ir.Node, layers: Layers
) -> list[Target] | str:
    """Return the layers that compute `value`, each with its part of the map; or why there are none.

    Args:
        value: the input at the map's place, which nothing else may read.
        affine: the map.
        reader: the node that reads it.
        layers: those of the graph.
    """
    ascent = _Ascent(layers)
    targets = _above(value, affine, reader, ascent, ())
    if isinstance(targets, str):
        return targets
    for source, met in ascent.parts.items():
        if len(met) < len(_outputs_of_windows(source)):  # 4
            return f"its input, {describe_value(source)}, has parts that go elsewhere"
    return targets


def _above(
    value: ir.Value,
    affine: AffineMap,
    reader: ir.Node,
    ascent: _Ascent,
    absorbed: tuple[Absorbed, ...],
) -> list[Target] | str:
    reason = _read_elsewhere(value)  # 4
    return reason or _above_read_once(value, affine, reader, ascent, absorbed)


def _above_read_once(
    value: ir.Value,
    affine: AffineMap,
    reader: ir.Node,
    ascent: _Ascent,
    absorbed: tuple[Absorbed, ...],
) -> list[Target] | str:
    """Return the layers above a value that nothing else reads; `absorbed` are the nodes so far."""
    layers, node = ascent.layers, value.producer()
    if node is None:
        return f"its input is {describe_value(value)}, not the output of a layer"
    if node.graph is not reader.graph:  # 5
        return f"its input, {describe_value(value)}, is computed in another graph than itself"
    layer = layers.computing.get(node)
    if layer is not None:
        return _into_layer(layer, affine, "after", absorbed)
    if is_op(node, "Concat"):  # 1
        return _into_parts(node, affine, ascent, absorbed)
    taken_in = _with_constant(node, affine, layers)  # 3
    if taken_in is not None:
        source, through = taken_in
        passed = (*absorbed, Absorbed(node, source))
        return _above(source, through, node, ascent, passed)
    if is_op(node, "Add", "Sub", "Sum"):  # 2
        return _into_summands(node, affine, ascent, absorbed)
    previous = node.inputs[0] if node.inputs else None
    if previous is not None and len(_outputs_of_windows(previous)) > 1:
        return _into_whole(previous, value, affine, ascent, absorbed)
    crossed = before(node, affine, layers.editor)
    if isinstance(crossed, str):
        return crossed
    if crossed is None:
        return f"its input comes from {describe(node)}, not from a convolution or linear layer"
    assert previous is not None
    return _above(previous, crossed, node, ascent, absorbed)


def _outputs_of_windows(source: ir.Value) -> list[ir.Value]:
    """Return the parts of a value if parts of it are all that is read, else nothing."""
    outputs: list[ir.Value] = []
    for reader, at in _uses(source):
        if at != 0 or not is_op(reader, "Split", "Slice", "Gather"):
            return []
        outputs += [value for value in reader.outputs if is_present(value)]
    return [] if source.is_graph_output() else outputs


def _into_whole(
    source: ir.Value,
    value: ir.Value,
    affine: AffineMap,
    ascent: _Ascent,
    absorbed: tuple[Absorbed, ...],
) -> list[Target] | str:
    """Note the map of a part of `source`; with the last one, go on with the map of the whole."""
    node, editor = value.producer(), ascent.layers.editor
    assert node is not None
    found = window(node, value, editor)
    if found is None:
        return f"what {describe(node)} takes of its input is not known"
    met = ascent.parts.setdefault(source, {})
    met[value] = _Part(found, found.before(affine), absorbed)
    if len(met) < len(_outputs_of_windows(source)):
        return []
    axes = {(one.window.axis, one.window.length) for one in met.values()}
    readers = {reader.graph for reader, _ in _uses(source)}
    axis, length = next(iter(axes))
    one_way = len(axes) == len(readers) == 1
    parts = [(one.window.places, one.affine) for one in met.values()]
    joined = join(parts, axis, length) if one_way else None
    if joined is None:
        return f"the parts of {describe_value(source)} would need different maps at one place"
    on_the_way = tuple(node for one in met.values() for node in one.absorbed)
    return _above_read_once(source, joined, node, ascent, on_the_way)


def _read_elsewhere(value: ir.Value) -> str | None:
    """Return the reason why `value` cannot change its meaning, None if it has one reader alone."""
    if value.is_graph_output():
        return f"its input, {describe_value(value)}, is also an output of its graph"
    readers = [reader for reader, _ in _uses(value)]
    if len(readers) == 1:
        return None
    others = f"its input, {describe_value(value)}, is read {len(readers)} times"
    around = [*readers, value.producer()]
    if any(node is not None and _adds_two_streams(node) for node in around):
        return f"{others}: it is the residual stream"
    return others


def _uses(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Return the readers of the numbers of a value, each with the place: no map changes a shape."""
    return [(reader, at) for reader, at in value.uses() if not is_op(reader, "Shape", "Size")]


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
    at = constant_operand(node) if is_op(node, *_WITH_CONSTANT) else None
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
    node: ir.Node, affine: AffineMap, ascent: _Ascent, absorbed: tuple[Absorbed, ...]
) -> list[Target] | str:
    """Part the map as the value is joined."""
    parts = [value for value in node.inputs if value is not None]
    if len(set(parts)) != len(parts):
        return f"its input, {describe(node)}, joins a value with itself"
    axis = int_attribute(node, "axis", 1) % affine.rank
    shares: list[tuple[ir.Value, AffineMap | None]] = []
    start, known = 0, True
    for joined in parts:
        shape = ascent.layers.editor.shape(joined)
        length = None if shape is None else shape[axis]
        known = known and isinstance(length, int)
        places = range(start, start + length) if known and length else None
        shares.append((joined, part(affine, axis, places)))
        start += length if known and length else 0
    why_not = f"its input, {describe(node)}, joins values of unknown lengths"
    return _into_shares(shares, why_not, node, ascent, absorbed)


def _into_summands(
    node: ir.Node, affine: AffineMap, ascent: _Ascent, absorbed: tuple[Absorbed, ...]
) -> list[Target] | str:
    """Give the scale to each summand, and the shift to the first."""
    summands = [value for value in node.inputs if value is not None]
    if len(set(summands)) != len(summands):
        return f"its input comes from {describe(node)}, which adds a value to itself"
    editor = ascent.layers.editor
    total = editor.shape(node.outputs[0])
    shares: list[tuple[ir.Value, AffineMap | None]] = []
    for k, summand in enumerate(summands):
        shape, share = editor.shape(summand), None
        if total is not None and shape is not None and len(shape) == len(total):
            stretched = [axis for axis in range(len(total)) if shape[axis] != total[axis]]
            share = flatten_axes(affine if k == 0 else affine.without_shift(), stretched)
        shares.append((summand, share))
    why_not = f"its input, {describe(node)}, is a sum of values of different shapes"
    return _into_shares(shares, why_not, node, ascent, absorbed)


def _into_shares(
    shares: list[tuple[ir.Value, AffineMap | None]],
    why_not: str,
    node: ir.Node,
    ascent: _Ascent,
    absorbed: tuple[Absorbed, ...],
) -> list[Target] | str:
    """Return the layers above each input of `node`, or the first reason why there are none."""
    targets: list[Target] = []
    for value, share in shares:
        found = why_not if share is None else _above(value, share, node, ascent, absorbed)
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
    if value.is_graph_output():
        return _NO_LAYER_BELOW
    targets: list[Target] = []
    producer = value.producer()
    home = value.graph if producer is None else producer.graph
    for reader, at in _uses(value):
        alone = reader.graph is home  # 5
        if not alone or at != _place_of_input(reader, layers) or _times_read(reader, value) != 1:
            return _NO_LAYER_BELOW  # 6
        found = _targets_in(reader, affine, layers)
        if isinstance(found, str):
            return found
        targets += found
    return targets or _NO_LAYER_BELOW


def _times_read(reader: ir.Node, value: ir.Value) -> int:
    return list(reader.inputs).count(value)


def _place_of_input(reader: ir.Node, layers: Layers) -> int:
    """Return the place of the input that a node does something to, as seen by a map of it."""
    layer = layers.reading.get(reader)
    if layer is not None:
        return layer.input_index
    constant = constant_operand(reader) if is_op(reader, *_WITH_CONSTANT) else None
    return 0 if constant is None else 1 - constant


def _targets_in(reader: ir.Node, affine: AffineMap, layers: Layers) -> list[Target] | str:
    """Return the layers that a map of the input of `reader` reaches through it."""
    layer = layers.reading.get(reader)
    if layer is not None:
        if layer.refusal is None and layer.affine.pads_with_zeros and affine.shift.any():  # 7
            return f"{describe(reader)}, which reads it, pads with zeros that its shift would move"
        return _into_layer(layer, affine, "before", ())
    if is_op(reader, "Split"):
        return _into_all_parts(reader, affine, layers)
    crossed = _past_constant(reader, affine, layers) or after(reader, affine, layers.editor)
    if crossed is None or isinstance(crossed, str):
        return crossed or _NO_LAYER_BELOW
    return targets_below(reader.outputs[0], crossed, layers)


def _into_all_parts(split: ir.Node, affine: AffineMap, layers: Layers) -> list[Target] | str:
    targets: list[Target] = []
    for output in filter(is_present, split.outputs):
        taken = window(split, output, layers.editor)
        of_part = None if taken is None else taken.after(affine)
        found = targets_below(output, of_part, layers) if of_part else _NO_LAYER_BELOW
        if isinstance(found, str):
            return found
        targets += found
    return targets or _NO_LAYER_BELOW


def _past_constant(node: ir.Node, affine: AffineMap, layers: Layers) -> AffineMap | None:  # 3
    """Return the map of a sum or product with a constant, of the same effect as that of a term."""
    at = constant_operand(node) if is_op(node, *_WITH_CONSTANT) else None
    if at is None or chosen_by_caller(node) is not None:
        return None
    constant, source = node.inputs[at], node.inputs[1 - at]
    assert constant is not None
    assert source is not None
    shape, array = layers.editor.shape(source), constant_array(constant)
    if shape is None or (is_op(node, "Div") and at == 0):
        return None
    if is_op(node, "Mul", "Div"):
        return past_constant_factor(affine, array, shape, divide=is_op(node, "Div"))
    signs = (1, 1) if is_op(node, "Add") else (1, -1) if at == 1 else (-1, 1)
    return past_constant_sum(affine, array, shape, signs=signs)


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
    axis, length, what = layer.output_axis(affine.rank), read.num_outputs, "output"
    if side == "before":
        axis, length, what = layer.input_axis(affine.rank), read.num_inputs, "input"
    if axis < 0:
        return f"{describe(layer.node)} has no axis of features in a rank-{affine.rank} value"
    vectors = per_channel(affine, axis, length)
    if vectors is not None:
        return [Target(layer, side, *vectors, absorbed)]
    if flatten_axes(affine, (k for k in range(affine.rank) if k != axis)) is not None:
        found = max(affine.scale.shape[axis], affine.shift.shape[axis])
        return f"{describe(layer.node)} has {length} {what} channels, but it normalises {found}"
    if read.is_linear:
        place = "the last axis" if axis == affine.rank - 1 else f"axis {axis}"
        return (
            f"{describe(layer.node)} has its features on {place} of a "
            f"rank-{affine.rank} value, but it normalises another axis"
        )
    return f"the map differs between positions of {describe(layer.node)}"
