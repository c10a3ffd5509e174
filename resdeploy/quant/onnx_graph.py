"""The ONNX graph as quantisation reads and changes it: constants, layers, shapes."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resdeploy.graph.affine_layer import AffineLayer, Array, is_affine, read_node
from resdeploy.graph.onnx_file import fed_inputs

__all__ = [
    "Constants",
    "attribute",
    "channels_first_shapes",
    "drop_unread",
    "float_inputs",
    "is_layer_or_sum",
    "layers",
    "names_inside",
    "new_name",
    "read_layer",
]


_LAYERS = ("Conv", "Gemm")  # those with an integer kernel


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute."""
    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default


def names_inside(node: onnx.NodeProto) -> set[str]:
    """Return the names of the tensors that the graphs inside a node read, such as a loop's."""
    inside = [found.g for found in node.attribute if found.type == onnx.AttributeProto.GRAPH]
    nodes = [one for graph in inside for one in graph.node]
    read = {name for one in nodes for name in one.input}
    return read.union(
        (value.name for graph in inside for value in graph.output), *map(names_inside, nodes)
    )


def drop_unread(model: onnx.ModelProto) -> None:
    """Remove the constants of a graph that nothing reads, as runtimes warn of them."""
    read = {value.name for value in model.graph.output}
    for node in model.graph.node:
        read.update(node.input, names_inside(node))
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def new_name(model: onnx.ModelProto, name: str) -> str:
    """Return `name`, or one like it that no tensor has."""
    taken = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        taken.update((*node.input, *node.output))
    number, unique = 0, name
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique


class Constants:
    """The constants of a model's graph, to be read and replaced."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        # A default value is not known: a caller may give another one.
        given = {value.name for value in model.graph.input}
        self._tensors = {t.name: t for t in model.graph.initializer if t.name not in given}
        reads = (name for node in model.graph.node for name in (*node.input, *names_inside(node)))
        self._num_readers = Counter(reads)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Array:
        return np.asarray(numpy_helper.to_array(self._tensors[name]))

    def __setitem__(self, name: str, value: Array) -> None:
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        if name in self._tensors:
            self._tensors[name].CopyFrom(tensor)
            return
        self._model.graph.initializer.append(tensor)
        self._tensors[name] = self._model.graph.initializer[-1]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a constant."""
        return tuple(self._tensors[name].dims)

    def is_shared(self, name: str) -> bool:
        """True if several nodes read a constant."""
        return self._num_readers[name] > 1


def is_layer_or_sum(node: onnx.NodeProto, constants: Constants) -> bool:
    """True if a node is a layer with constant weights, or adds two computed tensors."""
    if node.op_type == "Add":
        return not any(name in constants for name in node.input)
    return _is_layer(node, constants)


def _is_layer(node: onnx.NodeProto, constants: Constants) -> bool:
    return is_affine(node, *_LAYERS) and node.input[1] in constants


def layers(model: onnx.ModelProto, constants: Constants) -> Iterable[onnx.NodeProto]:
    """Return every Conv and Gemm of constant weights, in the order of the graph."""
    return (node for node in model.graph.node if _is_layer(node, constants))


def read_layer(node: onnx.NodeProto, constants: Constants) -> AffineLayer:
    """Return the layer of a node that `layers` yields.

    Raises:
        UnsupportedModelError: it is outside the specification.
    """
    return read_node(node, constants.shape(node.input[1]))


def float_inputs(model: onnx.ModelProto) -> list[str]:
    """Return the names of the inputs that take float32."""
    return [
        value.name
        for value in fed_inputs(model)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]


def channels_first_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of every float32 tensor that has one, None where a size is open."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        # A tensor of pixels has its channels last, and no scale to move about.
        if kind.elem_type == onnx.TensorProto.FLOAT and kind.HasField("shape"):
            found[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim
            )
    return found
