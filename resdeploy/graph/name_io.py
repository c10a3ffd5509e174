"""Give a model's input, output and batch dimension the names a user expects.

Before:  x[s77, 3, 224, 224] -> linear[s77, 1000]
After:   input[batch, 3, 224, 224] -> logits[batch, 1000]

Models of several inputs or outputs get `input_0`, `input_1`, … and `output_0`, …, unless they
have names of their own. A value that is two outputs, or an input that is one, becomes two values.
"""

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from resdeploy.errors import ResdeployError
from resdeploy.schema.exports import PassReport
from resdeploy.schema.files import IMAGE_SIDES

__all__ = ["name_io", "rename_io"]

_IMAGE_RANK = 4


def name_io(
    model: ir.Model,
    *,
    batch_dimension: str | None,
    open_sides: Sequence[str] = (),
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> PassReport:
    """Rename inputs, outputs and symbolic leading dimensions, in place.

    Args:
        model: the graph.
        batch_dimension: the name of an open batch dimension; None if it is fixed.
        open_sides: of images, "height" or "width".
        inputs: names of the inputs, or none.
        outputs: names of the outputs, or none; those of inputs become `NAME_output`.
    """
    graph = model.graph
    num_changed = _part_repeated_outputs(graph)
    inputs = inputs or _names("input", "input", len(graph.inputs))
    outputs = outputs or _names("logits", "output", len(graph.outputs))
    outputs = [f"{name}_output" if name in inputs else name for name in outputs]
    wanted = dict(
        zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True),
    )
    inner = [v for node in graph.all_nodes() for v in node.outputs]
    for value in [*inner, *graph.initializers.values()]:
        if value.name in wanted.values() and value not in wanted:
            value.name = f"{value.name}_inner"
    for value, name in wanted.items():
        num_changed += value.name != name
        value.name = name
    names = {} if batch_dimension is None else {0: batch_dimension}
    names |= {IMAGE_SIDES[side]: side for side in open_sides}
    if names:
        num_changed += _name_dimensions(graph, names)
    return PassReport(name="name_io", num_changed=num_changed)


def rename_io(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the inputs and outputs of a model these names, in its order, in place; () for its own.

    Raises:
        ResdeployError: there are more or fewer names, or a name twice.
    """
    if not inputs and not outputs:
        return
    graph = model.graph
    for what, names, values in (
        ("input", inputs, graph.inputs),
        ("output", outputs, graph.outputs),
    ):
        if names and len(names) != len(values):
            raise ResdeployError(
                f"The model has {len(values)} {what}s, which are given {len(names)} names.",
                where=", ".join(names),
                fix=f"give one name for each of {', '.join(str(v.name) for v in values)}",
            )
    new_inputs = inputs or [str(value.name) for value in graph.inputs]
    new_outputs = outputs or [str(value.name) for value in graph.outputs]
    names = [*new_inputs, *new_outputs]
    if len(set(names)) != len(names):
        raise ResdeployError("Two inputs or outputs have one name.", where=", ".join(names))
    wanted = dict(zip((*graph.inputs, *graph.outputs), names, strict=True))
    taken = [*graph.initializers.values(), *(v for node in graph.all_nodes() for v in node.outputs)]
    for value in taken:
        if value.name in names and value not in wanted:
            value.name = f"{value.name}_inner"
    for value, name in wanted.items():
        value.name = name


def _part_repeated_outputs(graph: ir.Graph) -> int:
    """Let an Identity compute each output that is an input or another output; return how many."""
    seen = {*graph.inputs}
    num_changed = 0
    for k, value in enumerate(graph.outputs):
        if value in seen:
            node = ir.node("Identity", [value])
            graph.append(node)
            copied = node.outputs[0]
            copied.name, copied.type, copied.shape = f"{value.name}_{k}", value.type, value.shape
            graph.outputs[k] = copied
            num_changed += 1
        seen.add(value)
    return num_changed


def _names(single: str, several: str, count: int) -> list[str]:
    return [single] if count == 1 else [f"{several}_{k}" for k in range(count)]


def _name_dimensions(graph: ir.Graph, names: Mapping[int, str]) -> int:
    """Rename every occurrence of the symbols of the inputs' open axes, in sums of them too."""
    symbols = {}
    for value in graph.inputs:
        for axis, dimension in enumerate(value.shape or ()):
            is_named = axis in names and (axis == 0 or len(value.shape or ()) == _IMAGE_RANK)
            if is_named and isinstance(dimension, ir.SymbolicDim):
                symbols[str(dimension.value)] = names[axis]
    values = [*graph.inputs, *(v for node in graph.all_nodes() for v in node.outputs)]
    num_changed = 0
    for value in values:
        if value.shape is None:
            continue
        dimensions = [_renamed(dimension, symbols) for dimension in value.shape]
        num_changed += dimensions != list(value.shape)
        value.shape = ir.Shape(dimensions)
    return num_changed


def _renamed(dimension: int | ir.SymbolicDim, symbols: Mapping[str, str]) -> int | ir.SymbolicDim:
    if not isinstance(dimension, ir.SymbolicDim) or dimension.value is None:
        return dimension
    written = re.sub(r"\w+", lambda found: symbols.get(found[0], found[0]), str(dimension.value))
    return ir.SymbolicDim(written)
