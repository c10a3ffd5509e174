"""Preparation of a folded model for quantisation, or the refusal of it.

- a Constant node becomes a constant of the graph, as every other one is;
- a mean over the image becomes GlobalAveragePool, for which there is an integer kernel;
- MatMul of a matrix by constant weights becomes Gemm, with the bias that is added to it;
- every Conv and Gemm gets a bias of its own, for bias correction: the step of its integers is that
  of the layer's input;
- every node gets a name, for the report.

A BatchNormalization that is not folded stays, in float32.

Refuses when
1. the model is quantised already;
2. nothing in it can be quantised, or a layer is outside ONNX's specification (`affine_layer`);
3. it cannot be raised to opset 13, which per-channel scales take.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import is_affine
from resdeploy.graph.onnx_file import copy_of, opset_of
from resdeploy.quant.onnx_graph import (
    Constants,
    attribute,
    channels_first_shapes,
    layers,
    names_inside,
    new_name,
    read_layer,
)
from resdeploy.quant.raise_opset import raise_opset

__all__ = ["prepare"]

# Per-channel QuantizeLinear exists from here on.
_OLDEST_OPSET = 13
# The attributes of a Constant that hold a number or a list of them.
_NUMBERS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "QLinearMatMul")


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` that can be quantised.

    Raises:
        UnsupportedModelError: see the module's list.
    """
    _refuse(model)
    ready = copy_of(model)
    if opset_of(ready) < _OLDEST_OPSET:
        ready = raise_opset(ready, _OLDEST_OPSET)
    _lift_constants(ready)
    _name_nodes(ready)
    _pool_globally(ready)
    _write_gemm(ready)
    constants = Constants(ready)
    found = [read_layer(node, constants) for node in layers(ready, constants)]
    if not found:
        raise UnsupportedModelError("The model has no Conv or Gemm with constant weights.")
    _own_biases(ready)
    return ready


def _lift_constants(model: onnx.ModelProto) -> None:
    """Make the values of Constant nodes constants of the graph."""
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        given = {found.name: helper.get_attribute_value(found) for found in node.attribute}
        if "value" in given:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(given["value"])
        elif given.keys() & _NUMBERS.keys():
            ((kind, value),) = given.items()
            tensor = numpy_helper.from_array(np.array(value, _NUMBERS[kind]))
        else:  # of text, or sparse: no layer reads them
            continue
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
        model.graph.node.remove(node)


def _refuse(model: onnx.ModelProto) -> None:
    operators = {node.op_type: node for node in model.graph.node}
    for operator in _QUANTISED:
        if operator in operators:
            raise UnsupportedModelError(
                f"The model is quantised already: it has a {operator}.",
                where=operators[operator].name or None,
                fix="give the float32 model that it was made from",
            )


def _name_nodes(model: onnx.ModelProto) -> None:
    taken = {node.name for node in model.graph.node}
    for node in model.graph.node:
        if not node.name:
            node.name = f"{node.op_type}_{node.output[0]}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)


def _pool_globally(model: onnx.ModelProto) -> None:
    shapes = channels_first_shapes(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        rank = len(shapes.get(node.input[0], ())) if node.op_type == "ReduceMean" else 0
        if rank < 3:
            continue
        # Axes are an input since opset 18, and an attribute before.
        axes = attribute(node, "axes")
        if axes is None and len(node.input) > 1:
            found = constants.get(node.input[1])
            axes = None if found is None else numpy_helper.to_array(found)
        if axes is None or sorted(int(axis) % rank for axis in axes) != [*range(2, rank)]:
            continue
        if attribute(node, "keepdims", 1) == 1:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]


def _write_gemm(model: onnx.ModelProto) -> None:
    """Write the product of a matrix (N, F) and constant weights as Gemm, its bias inside."""
    shapes, constants = channels_first_shapes(model), Constants(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in (*node.input, *names_inside(node)):
            readers.setdefault(name, []).append(node)
    given_out = {value.name for value in model.graph.output}
    for node in [node for node in model.graph.node if is_affine(node, "MatMul")]:
        weight = node.input[1]
        if weight not in constants or len(constants.shape(weight)) != 2:
            continue
        if len(shapes.get(node.input[0], ())) != 2:
            continue
        node.op_type = "Gemm"
        product, after = node.output[0], readers.get(node.output[0], [])
        if product in given_out or len(after) != 1 or after[0].op_type != "Add":
            continue
        added = [name for name in after[0].input if name != product]
        width = constants.shape(weight)[1]
        if len(added) == 1 and added[0] in constants and constants.shape(added[0]) == (width,):
            node.input.append(added[0])
            node.output[0] = after[0].output[0]
            model.graph.node.remove(after[0])


def _own_biases(model: onnx.ModelProto) -> None:
    constants = Constants(model)
    for node in layers(model, constants):
        weight, given = node.input[1], node.input[2] if len(node.input) > 2 else ""
        if given and not (given in constants and constants.is_shared(given)):
            continue
        name = new_name(model, given or f"{weight}.bias")
        num_outputs = read_layer(node, constants).num_outputs
        zeros = np.zeros(num_outputs, constants[weight].dtype)
        constants[name] = constants[given] if given else zeros
        del node.input[2:]
        node.input.append(name)
