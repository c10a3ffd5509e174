"""See and change an ONNX graph: constants wherever they lie, names that collide with nothing."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

__all__ = [
    "GraphEditor",
    "constant_array",
    "constant_tensor",
    "describe",
    "describe_value",
    "float_attribute",
    "graph_editors",
    "int_attribute",
    "is_op",
    "node_name",
    "remove_if_unread",
    "why_it_varies",
]

FloatArray = npt.NDArray[np.floating[Any]]


class GraphEditor:
    """The main graph or a local function, each with the graphs inside it."""

    def __init__(
        self,
        model: ir.Model,
        holder: ir.Model | ir.Function,
        *,
        names: set[str],
        constants_are_nodes: bool,
    ) -> None:
        self.graph = holder.graph
        self.opset = holder.opset_imports.get("", 0)
        self._model = model
        self._names = names
        self._constants_are_nodes = constants_are_nodes
        self._ranks: dict[str, int] | None = None

    def rank(self, value: ir.Value) -> int | None:
        """Return the number of axes of a value, inferred if the model does not state it."""
        if value.shape is not None:
            return len(value.shape)
        if self._ranks is None:
            self._ranks = _inferred_ranks(self._model)
        return self._ranks.get(value.name or "")

    def add(self, name: str, tensor: ir.TensorProtocol, *, reader: ir.Node) -> ir.Value:
        """Add a constant that `reader` can read, under `name` or, if that is taken, one like it."""
        number, unique = 0, name
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names.add(unique)
        assert reader.graph is not None
        if self._constants_are_nodes:
            node = ir.node("Constant", [], attributes={"value": tensor})
            reader.graph.insert_before(reader, node)
            value = node.outputs[0]
            value.name = unique
        else:
            tensor.name = unique
            value = ir.Value(name=unique, const_value=tensor)
        value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.numpy().shape)
        if not self._constants_are_nodes:
            assert isinstance(reader.graph, ir.Graph)
            reader.graph.initializers.add(value)
        return value

    def replace(self, old: ir.Value, tensor: ir.TensorProtocol, *, reader: ir.Node) -> ir.Value:
        """Return `tensor` as a constant in the place of `old`, which others keep as it is."""
        alone = len(old.uses()) == 1 and not old.is_graph_output()
        if alone and old.is_initializer():
            tensor.name = old.name
            old.const_value = tensor
            old.dtype, old.shape = tensor.dtype, ir.Shape(tensor.numpy().shape)
            return old
        return self.add(old.name or "folded", tensor, reader=reader)


def graph_editors(model: ir.Model) -> Iterator[GraphEditor]:
    """Yield an editor for the main graph and for each local function, in that order."""
    names = _names_of(model)
    # Before IR version 4, an initializer had to be an input of the graph as well.
    yield GraphEditor(model, model, names=names, constants_are_nodes=model.ir_version < 4)
    for function in model.functions.values():  # which have no initializers
        yield GraphEditor(model, function, names=names, constants_are_nodes=True)


def _names_of(model: ir.Model) -> set[str]:
    """Return the names of all values, in whatever graph: an inner one sees those of the outer."""
    names: set[str] = set()
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        for graph in (root, *root.subgraphs()):
            values = [*graph.inputs, *graph.initializers.values()]
            values += [value for node in graph for value in node.outputs]
            names.update(value.name for value in values if value.name)
    return names


def _inferred_ranks(model: ir.Model) -> dict[str, int]:
    """Return the ranks that shape inference finds, by name; the model stays as it is."""
    inference = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)
    inferred = inference(model.clone()).model
    return {
        value.name: len(value.shape)
        for node in inferred.graph.all_nodes()
        for value in node.outputs
        if value.name and value.shape is not None
    }


# --- constants ---


def why_it_varies(value: ir.Value | None) -> str | None:
    """Return why the numbers of `value` are not known now, or None if they are."""
    if value is None:
        return "is missing"
    if value.is_graph_input():
        if value.is_initializer():
            return "is an input of the model, whose default value a caller may replace"
        return "is an input of the model"
    return "is computed at run time" if _constant(value) is None else None


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or a Constant node, or None if it is neither."""
    try:
        return ir.convenience.get_const_tensor(value)
    except ValueError:  # a sparse Constant
        return None


def constant_tensor(value: ir.Value) -> ir.TensorProtocol:
    """Return the tensor of a value that `why_it_varies` has no objection to."""
    tensor = _constant(value)
    assert tensor is not None
    return tensor


def constant_array(value: ir.Value) -> FloatArray:
    """Return the numbers of such a value, bfloat16 as float32."""
    array: FloatArray = constant_tensor(value).numpy()
    # numpy has no bfloat16; float32 holds its every number.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """Return a float attribute, which ONNX holds in float32: exactly that number."""
    attribute = node.attributes.get(name)
    return float(np.float32(default if attribute is None else attribute.as_float()))


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def remove_if_unread(constant: ir.Value) -> None:
    """Remove a constant from its graph if nothing needs it any more."""
    if constant.uses() or constant.is_graph_output() or constant.is_graph_input():
        return
    if constant.is_initializer():
        assert constant.graph is not None
        assert constant.name is not None
        constant.graph.initializers.pop(constant.name, None)
        return
    node = constant.producer()
    if node is not None and node.graph is not None:
        node.graph.remove(node, safe=True)


# --- names and attributes ---


def is_op(node: ir.Node, *operators: str) -> bool:
    """Whether `node` is one of these operators of ONNX itself."""
    return node.op_type in operators and node.domain in ("", "ai.onnx")


def node_name(node: ir.Node) -> str:
    """Return the name of a node, or of its output where it has none."""
    return node.name or node.outputs[0].name or node.op_type


def describe(node: ir.Node) -> str:
    """Return a node by its name and operator, as a user would find it in a viewer."""
    return f"`{node_name(node)}` ({node.op_type})"


def describe_value(value: ir.Value) -> str:
    """Return a value by where it comes from."""
    node = value.producer()
    if node is not None:
        return describe(node)
    if value.is_graph_input():
        return f"the model's input `{value.name}`"
    return f"the constant `{value.name}`"
