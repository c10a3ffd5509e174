"""Give a model's input, output and batch dimension the names a user expects.

Before:  x[s77, 3, 224, 224] -> linear[s77, 1000]
After:   input[batch, 3, 224, 224] -> logits[batch, 1000]

Models of several inputs or outputs get `input_0`, `input_1`, … and `output_0`, …, unless they
have names of their own. A value that is two outputs, or an input that is one, becomes two values.
"""

from collections.abc import Sequence

import onnx_ir as ir

from resdeploy.schema.exports import PassReport

__all__ = ["name_io"]


def name_io(
    model: ir.Model,
    *,
    batch_dimension: str | None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> PassReport:
    """Rename inputs, outputs and symbolic leading dimensions, in place.

    Args:
        model: the graph.
        batch_dimension: the name of an open batch dimension; None if it is fixed.
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
    if batch_dimension is not None:
        num_changed += _name_batch(graph, batch_dimension)
    return PassReport(name="name_io", num_changed=num_changed)


def _part_repeated_outputs(graph: ir.Graph) -> int:
    """Let an Identity compute each further output of the same value; return how many there are."""
    seen: set[ir.Value] = set()
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


def _name_batch(graph: ir.Graph, name: str) -> int:
    """Rename every occurrence of the symbol of the inputs' leading dimension."""
    symbols = {
        str(value.shape[0].value)
        for value in graph.inputs
        if value.shape and isinstance(value.shape[0], ir.SymbolicDim)
    }
    values = [*graph.inputs, *(v for node in graph.all_nodes() for v in node.outputs)]
    num_changed = 0
    for value in values:
        if value.shape is None:
            continue
        dimensions = [_renamed(dimension, symbols, name) for dimension in value.shape]
        num_changed += dimensions != list(value.shape)
        value.shape = ir.Shape(dimensions)
    return num_changed


def _renamed(dimension: int | ir.SymbolicDim, symbols: set[str], name: str) -> int | ir.SymbolicDim:
    is_batch = isinstance(dimension, ir.SymbolicDim) and str(dimension.value) in symbols
    return ir.SymbolicDim(name) if is_batch else dimension
