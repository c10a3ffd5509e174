"""ONNX graphs read and changed: constants of every kind, names that collide with nothing."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import AffineLayer, read_layer

__all__ = [
    "EPSILON_NOTE",
    "NOTES",
    "PATH_NOTE",
    "GraphEditor",
    "Shape",
    "bias_name",
    "chosen_by_caller",
    "constant_array",
    "constant_ints",
    "constant_tensor",
    "describe",
    "describe_value",
    "each_node",
    "float_attribute",
    "graph_editors",
    "int_attribute",
    "ints_attribute",
    "is_op",
    "is_present",
    "module_name",
    "node_name",
    "optional_input",
    "read_ir_layer",
    "remove_if_unread",
    "string_attribute",
    "take_place_of",
    "why_it_varies",
]

FloatArray = npt.NDArray[np.floating[Any]]
# A length is an int, a name, or an object that is equal to nothing else.
Shape = tuple[Any, ...]

# Facts about a node beyond its attributes, between the exporter and the file: the path of its
# module, "" for the root, and the epsilon of a norm, which ONNX holds in float32, to its last bit.
PATH_NOTE, EPSILON_NOTE = "resdeploy.path", "resdeploy.epsilon"
NOTES = (PATH_NOTE, EPSILON_NOTE)

# They compute a value of the shape of their first input.
_KEEP_SHAPE = ("BatchNormalization", "Identity", "Dropout", "Relu", "LayerNormalization", "Cast")


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
        self._known: dict[ir.Value, tuple[Shape | None, ir.DataType | None]] | None = None

    def shape(self, value: ir.Value) -> Shape | None:
        """Return the shape of a value, inferred if the model does not state it; None if unknown."""
        if self._known is None:
            self._known = _inferred(self._model)
        if value not in self._known:
            stated = _lengths(value.shape)
            self._known[value] = (stated or self._shape_by_operator(value), value.dtype)
        return self._known[value][0]

    def rank(self, value: ir.Value) -> int | None:
        """Return the number of axes of a value, None if unknown."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Return the type of a value's elements, None if unknown."""
        self.shape(value)
        assert self._known is not None
        return self._known[value][1]

    def _shape_by_operator(self, value: ir.Value) -> Shape | None:
        """Return the shape by the operator alone: local functions have no inference."""
        node = value.producer()
        if node is None or not node.inputs or node.inputs[0] is None:
            return None
        if is_op(node, *_KEEP_SHAPE):
            return self.shape(node.inputs[0])
        if is_op(node, "Conv", "ConvTranspose") and why_it_varies(node.inputs[1]) is None:
            assert node.inputs[1] is not None
            try:
                layer = read_ir_layer(node, node.inputs[1])
            except UnsupportedModelError:  # which the fold into it gives as its reason
                return tuple(object() for _ in constant_tensor(node.inputs[1]).shape)
            return (object(), layer.num_outputs, *(object() for _ in layer.kernel))
        return None

    def new_name(self, name: str) -> str:
        """Return `name` or, if that is taken, one like it; it is taken from now on."""
        number, unique = 0, name
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names.add(unique)
        return unique

    def add(self, name: str, tensor: ir.TensorProtocol, *, reader: ir.Node) -> ir.Value:
        """Add a constant that `reader` can read, under `name` or, if that is taken, one like it."""
        unique = self.new_name(name)
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


def each_node(model: ir.Model) -> Iterator[tuple[ir.Node, GraphEditor]]:
    """Yield every node with the editor of its graph; nodes may be removed and added meanwhile."""
    for editor in graph_editors(model):
        for node in list(editor.graph.all_nodes()):
            yield node, editor


def take_place_of(old: ir.Value, new: ir.Value) -> None:
    """Let the readers of `old` read `new`, which takes its type, shape and name."""
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None


def read_ir_layer(node: ir.Node, weight: ir.Value) -> AffineLayer:
    """Return the affine layer of a node with a constant weight.

    Raises:
        UnsupportedModelError: it is outside the specification.
    """
    attributes = {name: found.value for name, found in node.attributes.items()}
    shape = constant_tensor(weight).shape.numpy()
    return read_layer(node.op_type, attributes, shape, where=module_name(node))


def _names_of(model: ir.Model) -> set[str]:
    """Return the names of all values, in every graph: an inner one sees those of the outer."""
    names: set[str] = set()
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        for graph in (root, *root.subgraphs()):
            values = [*graph.inputs, *graph.initializers.values()]
            values += [value for node in graph for value in node.outputs]
            names.update(value.name for value in values if value.name)
    return names


def _inferred(model: ir.Model) -> dict[ir.Value, tuple[Shape | None, ir.DataType | None]]:
    """Return the shapes and types that inference finds; the model stays as it is."""
    inference = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)
    inferred = inference(model.clone()).model
    # Matched by place: branches may use a name of each other again.
    pairs = zip(model.graph.all_nodes(), inferred.graph.all_nodes(), strict=True)
    return {
        value: (_lengths(twin.shape), twin.dtype)
        for node, copy in pairs
        for value, twin in zip(node.outputs, copy.outputs, strict=True)
        if twin.shape is not None
    }


def _lengths(shape: ir.Shape | None) -> Shape | None:
    if shape is None:
        return None
    lengths = (length if isinstance(length, int) else length.value for length in shape)
    return tuple(object() if length is None else length for length in lengths)


# --- constants ---


def why_it_varies(value: ir.Value | None) -> str | None:
    """Return the reason why `value` is no constant, or None if it is one."""
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
    """Return the tensor of a constant."""
    tensor = _constant(value)
    assert tensor is not None
    return tensor


def constant_array(value: ir.Value) -> FloatArray:
    """Return the numbers of a constant, bfloat16 as float32."""
    array: FloatArray = constant_tensor(value).numpy()
    # numpy has no bfloat16; float32 holds its every number.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def constant_ints(value: ir.Value | None) -> list[int] | None:
    """Return the integers of a constant in one row; None if there is none, or it varies."""
    if value is None or why_it_varies(value) is not None:
        return None
    return [int(number) for number in np.ravel(constant_array(value))]


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input that may have been left out, in either of the two ways to do so."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.name == "" else value


def is_present(value: ir.Value) -> bool:
    """True if an output of a node is read, or is one of the graph."""
    return bool(value.uses()) or value.is_graph_output()


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """Return a float attribute, which ONNX holds in float32: exactly that number."""
    attribute = node.attributes.get(name)
    return float(np.float32(default if attribute is None else attribute.as_float()))


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def ints_attribute(node: ir.Node, name: str) -> list[int] | None:
    """Return an attribute of several integers, None if it is not there."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(number) for number in attribute.as_ints()]


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    """Return an attribute of text."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def chosen_by_caller(node: ir.Node) -> str | None:
    """Return the reason why attributes are not known: they are parameters of a function."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return f"{name} of {describe(node)} is chosen by the caller of the function"
    return None


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
    """True if `node` is one of these operators of ONNX itself."""
    return node.op_type in operators and node.domain in ("", "ai.onnx")


def node_name(node: ir.Node) -> str:
    """Return the name of a node, or of its output where it has none."""
    return node.name or node.outputs[0].name or node.op_type


def module_name(node: ir.Node, parameter: ir.Value | None = None) -> str:
    """Return the module a node came from, else that of a parameter, else the node's own name."""
    path = node.metadata_props.get(PATH_NOTE)
    if path is None:
        return node_name(node)
    owner = "" if parameter is None else (parameter.name or "").rpartition(".")[0]
    return path or owner or node_name(node)


def bias_name(weight: ir.Value) -> str:
    """Return `layer.bias` for `layer.weight`, else a name like it."""
    name = weight.name or "folded"
    stem = name.removesuffix("weight")
    return f"{stem}bias" if stem != name and stem.endswith((".", "_", "/")) else f"{name}_bias"


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
