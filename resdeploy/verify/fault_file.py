"""A faulty node as a model of its own, with its inputs and the right outputs.

    NODE.onnx   the node alone, with the candidate's own weights
    NODE.npz    x, its input; computed, the provider's output; exact, the output in float64

The first, run on `x` of the second on that provider, shows the fault without the network around it.
"""

import re
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.files import atomic_write
from resdeploy.verify.own_layers import OwnLayer
from resdeploy.verify.run_layers import NodeFault, convolution_alone, node_model

__all__ = ["write_fault"]


def write_fault(folder: Path, fault: NodeFault, model: onnx.ModelProto) -> Path:
    """Write a fault of `model` into `folder`, over one of the same name; return the model's path.

    Raises:
        ResdeployError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', fault.node.name)}.onnx"
    with atomic_write(path, force=True) as temporary:
        temporary.write_bytes(_node_alone(fault.node, model, fault.inputs.ndim).SerializeToString())
    with atomic_write(path.with_suffix(".npz"), force=True) as temporary:
        np.savez(temporary, x=fault.inputs, computed=fault.computed, exact=fault.exact)
    return path


def _node_alone(node: OwnLayer, model: onnx.ModelProto, rank: int) -> onnx.ModelProto:
    affine = node.affine
    weight, bias = (_stored(array, affine.dtype) for array in (affine.weight, affine.bias))
    if node.op == "Linear":
        product, weight = "MatMul", np.ascontiguousarray(weight.T)
    elif node.op in ("BatchNormalization", "Sub"):  # a scale and a shift
        along = (-1, *[1] * (rank - 2))
        product, weight, bias = "Mul", weight.reshape(along), bias.reshape(along)
    else:
        proto = next(n for n in model.graph.node if node.writes in n.output)
        return node_model([convolution_alone(proto)], weight, bias, rank)
    make = onnx.helper.make_node
    nodes = [make(product, ["x", "weight"], ["product"]), make("Add", ["product", "bias"], ["y"])]
    return node_model(nodes, weight, bias, rank)


def _stored(array: NDArray[np.float64], dtype: str) -> NDArray[np.floating]:
    return np.ascontiguousarray(array, "float32" if dtype == "bfloat16" else dtype)
