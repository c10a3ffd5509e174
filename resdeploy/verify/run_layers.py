"""The affine nodes of a model, run where they stand and computed in float64 on the same inputs.

Shapes: N inputs, of which all are run as one batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from resdeploy.data.named_inputs import by_name, values_per_sample
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.float64 import evaluate_float64
from resdeploy.graph.onnx_file import fed_inputs
from resdeploy.schema.verdicts import NodeError, NodeLocalResult
from resdeploy.verify.compare_structure import Affine
from resdeploy.verify.layer_bounds import judge_node, judge_nodes
from resdeploy.verify.own_layers import OwnLayer
from resdeploy.verify.precision import FLOAT32_ROUNDOFF

__all__ = ["NodeFault", "Run", "certify_nodes", "convolution_alone", "expose", "node_model"]

# Runs a serialised model on inputs by name; returns outputs by name.
Run = Callable[[bytes, Mapping[str, Array]], Mapping[str, Array]]

# One image of ImageNet's size gives each layer of a ResNet-50 1e5 outputs and more, and 90 MB of
# values to keep; of small inputs, two.
_MOST_INPUTS = 2
_MOST_ELEMENTS = 3 * 224 * 224


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeFault:
    """A faulty node with its inputs, its result and the exact one."""

    node: OwnLayer
    inputs: Array
    computed: Array
    exact: Array
    error: NodeError


def certify_nodes(
    model: onnx.ModelProto,
    layers: Sequence[OwnLayer],
    inputs: Array,
    run: Run,
    *,
    unit_roundoff: float = FLOAT32_ROUNDOFF,
) -> tuple[NodeLocalResult, NodeFault | None]:
    """Return the verdict on every layer of `model`, and the first one that is wrong.

    Args:
        model: the candidate, with its weights in it.
        layers: its affine nodes.
        inputs: (N, ...); the first one or two are run, or as many as a model of fixed batch takes.
        run: computes a model's outputs, with optimisations that keep them as they are.
        unit_roundoff: u of the arithmetic that is claimed.
    """
    names = dict.fromkeys(name for node in layers for name in (node.reads, node.writes))
    affordable = _MOST_ELEMENTS // max(1, values_per_sample(inputs))
    batch = inputs[: max(1, min(_MOST_INPUTS, affordable))]
    fed = {value.name: value for value in fed_inputs(model)}
    fixed = next((size for value in fed.values() if (size := _fixed_batch(value))), None)
    batch = np.resize(batch, (fixed, *batch.shape[1:])) if fixed else batch
    feeds = {
        name: array.astype(onnx.helper.tensor_dtype_to_np_dtype(_type(fed[name])), copy=False)
        for name, array in by_name(batch, [*fed]).items()
    }
    values = {**run(expose(model, list(names)), feeds), **feeds}
    protos = {output: node for node in model.graph.node for output in node.output}
    found: list[NodeError] = []
    fault = None
    for node in layers:
        x, y = values[node.reads], values[node.writes]
        exact, magnitude = _exact(node, protos[node.writes], node.affine, x)
        error = judge_node(
            node.name,
            y,
            exact.reshape(y.shape),
            magnitude.reshape(y.shape),
            node.affine.num_products,
            unit_roundoff=unit_roundoff,
        )
        found.append(error)
        if fault is None and not error.of_estimate <= 1:
            fault = NodeFault(node=node, inputs=x, computed=y, exact=exact, error=error)
    return judge_nodes(found, num_inputs=min(len(batch), len(inputs))), fault


def _type(value: onnx.ValueInfoProto) -> int:
    return int(value.type.tensor_type.elem_type)


def _fixed_batch(value: onnx.ValueInfoProto) -> int | None:
    """Return the batch that an input takes; None if it is open."""
    dims = value.type.tensor_type.shape.dim
    return int(dims[0].dim_value) or None if dims else None


def expose(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """Return `model`, serialised, with the values of these names as further outputs."""
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    more = [onnx.ValueInfoProto(name=name) for name in names if name not in present]
    # A message that follows another of its kind is merged with it: no copy of the weights is made.
    merged = onnx.ModelProto(graph=onnx.GraphProto(output=more))
    return b"".join((model.SerializeToString(), merged.SerializeToString()))


def node_model(
    nodes: Sequence[onnx.NodeProto], weight: Array, bias: Array, rank: int
) -> onnx.ModelProto:
    """Return a model of a layer alone: `nodes` read x, weight and bias, and compute y."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
    x, y = (
        onnx.helper.make_tensor_value_info(name, kind, [f"{name}{axis}" for axis in range(rank)])
        for name in "xy"
    )
    numbers = (("weight", weight), ("bias", bias))
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in numbers]
    graph = onnx.helper.make_graph(nodes, "node", [x], [y], initializers)
    opset = onnx.helper.make_opsetid("", 13)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)


def convolution_alone(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a convolution as `node_model` takes it: with its attributes, and other names."""
    single = onnx.NodeProto()
    single.CopyFrom(node)
    del single.input[:], single.output[:]
    single.input.extend(["x", "weight", "bias"])
    single.output.append("y")
    return single


def _exact(node: OwnLayer, proto: onnx.NodeProto, affine: Affine, x: Array) -> tuple[Array, Array]:
    """Return (W x + b, |W| |x| + |b|) in float64; `proto` is the node that writes the value."""
    wide = x.astype(np.float64)
    pairs = (
        (wide, affine.weight, affine.bias),
        (np.abs(wide), np.abs(affine.weight), affine.bias_magnitude),
    )
    exact, magnitude = (_apply(node, proto, *numbers) for numbers in pairs)
    return exact, magnitude


def _apply(node: OwnLayer, proto: onnx.NodeProto, x: Array, weight: Array, bias: Array) -> Array:
    if node.op == "Linear":
        return np.asarray(x @ weight.T + bias)
    if node.op in ("BatchNormalization", "Sub"):  # a scale and a shift
        along = (-1,) + (1,) * (x.ndim - 2)
        return np.asarray(weight.reshape(along) * x + bias.reshape(along))
    model = node_model([convolution_alone(proto)], weight, np.ascontiguousarray(bias), x.ndim)
    return evaluate_float64(model, {"x": x})["y"]
