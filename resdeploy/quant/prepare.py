"""Preparation of a folded model for quantisation, or the refusal of it.

- a mean over the image becomes GlobalAveragePool, for which there is an integer kernel;
- every Conv and Gemm gets a bias, for bias correction;
- every node gets a name, for the report.

Refuses when
1. the model is quantised already;
2. a BatchNormalization is left: its statistics would be quantised apart from the layer before;
3. nothing in it can be quantised, or a layer is outside ONNX's specification (`affine_layer`).
"""

import numpy as np
import onnx
from onnx import numpy_helper

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.onnx_file import copy_of, opset_of
from resdeploy.quant.onnx_graph import (
    Constants,
    attribute,
    channels_first_shapes,
    layers,
    new_name,
    read_layer,
)
from resdeploy.quant.raise_opset import raise_opset

__all__ = ["prepare"]

# Per-channel QuantizeLinear exists from here on.
_OLDEST_OPSET = 13
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
    _name_nodes(ready)
    _pool_globally(ready)
    _add_biases(ready)
    return ready


def _refuse(model: onnx.ModelProto) -> None:
    operators = {node.op_type: node for node in model.graph.node}
    for operator in _QUANTISED:
        if operator in operators:
            raise UnsupportedModelError(
                f"The model is quantised already: it has a {operator}.",
                where=operators[operator].name or None,
                fix="give the float32 model that it was made from",
            )
    if (node := operators.get("BatchNormalization")) is not None:
        raise UnsupportedModelError(
            "A BatchNormalization is not folded.",
            where=node.name or node.output[0],
            fix="resdeploy fold-bn model.onnx -o folded.onnx",
        )
    constants = Constants(model)
    found = [read_layer(node, constants) for node in layers(model, constants)]
    if not found:
        raise UnsupportedModelError("The model has no Conv or Gemm with constant weights.")


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
        if node.op_type == "Constant":
            constants[node.output[0]] = attribute(node, "value")
        if node.op_type != "ReduceMean" or len(shapes.get(node.input[0], ())) != 4:
            continue
        # Axes are an input since opset 18, and an attribute before.
        axes = attribute(node, "axes")
        if axes is None and len(node.input) > 1:
            found = constants.get(node.input[1])
            axes = None if found is None else numpy_helper.to_array(found)
        if axes is None or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
            continue
        if attribute(node, "keepdims", 1) == 1:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]


def _add_biases(model: onnx.ModelProto) -> None:
    constants = Constants(model)
    for node in layers(model, constants):
        if len(node.input) > 2 and node.input[2]:
            continue
        name = new_name(model, f"{node.input[1]}.bias")
        num_outputs = read_layer(node, constants).num_outputs
        constants[name] = np.zeros(num_outputs, constants[node.input[1]].dtype)
        del node.input[2:]
        node.input.append(name)
