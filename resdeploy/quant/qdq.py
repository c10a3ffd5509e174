"""Write a model in int8, as QuantizeLinear and DequantizeLinear pairs, given every range."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from resdeploy.graph.onnx_file import copy_of
from resdeploy.quant.onnx_graph import (
    Constants,
    attribute,
    is_layer_or_sum,
    layers,
    read_layer,
)
from resdeploy.quant.ranges import Range
from resdeploy.schema.quants import IntegerTypes

__all__ = [
    *("LayerNames", "float_nodes", "insert_qdq", "saturating_layers", "scale_name"),
    *("weight_limit", "why_float"),
]

# Operators with an integer kernel, or that pass integers on. Softmax and the like stay in float.
_OPERATORS = (
    *("Conv", "Gemm", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Concat", "Slice", "Pad", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
    *("LeakyRelu", "Mul", "Resize", "Sigmoid"),
)
# Those of which more than the first input is data.
_SEVERAL = ("Add", "Concat", "Mul")
# The reasons for others, where there is more to say than that there is none.
_WITHOUT_KERNEL: Mapping[str, str] = {
    "BatchNormalization": "it is not folded into a layer, and there is no integer kernel for it",
    "MatMul": "it is no product of a matrix (N, F) and constant weights",
    "Conv": "its weights are computed",
    "Gemm": "its weights are computed",
    "Resize": "it computes new values between pixels",
}
# Of an image's value, and of the sum of two products in 16 bits.
_LARGEST_INPUT, _LARGEST_SUM = 255, 2**15 - 1
# Names that QDQQuantizer gives.
_QUANTIZED, _SCALE = "_quantized", "_scale"


class LayerNames:
    """The names of a layer's weights, bias and their scales in a quantised model."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.weight = f"{node.input[1]}{_QUANTIZED}"
        self.weight_scale = f"{node.input[1]}{_SCALE}"
        self.bias = f"{node.input[2]}{_QUANTIZED}"
        self.bias_scale = f"{node.input[2]}{_QUANTIZED}{_SCALE}"


def scale_name(tensor: str) -> str:
    """Return the name of an activation's scale."""
    return f"{tensor}{_SCALE}"


def weight_limit(*, reduce_range: bool) -> int:
    """Return the largest integer of a weight, which is symmetric."""
    return 64 if reduce_range else 127


def insert_qdq(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    *,
    types: IntegerTypes,
    reduce_range: bool = False,
    exclude: Sequence[str] = (),
) -> onnx.ModelProto:
    """Return a quantised copy of a prepared model.

    Weights have a scale for each output channel. The output of the last Gemm stays in float32: the
    sums are there, and rounding them to 256 levels would tie classes that are not. So do
    `float_nodes`.
    """
    tensors = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(copy_of(model)),
        per_channel=True,
        reduce_range=reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8 if types == "u8s8" else QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, tensors),
        nodes_to_quantize=[],
        nodes_to_exclude=float_nodes(model, ranges, exclude),
        op_types_to_quantize=list(_OPERATORS),
        extra_options={"ActivationSymmetric": types == "s8s8-symmetric"},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    _leave_last_sums(quantized)
    return quantized


def float_nodes(
    model: onnx.ModelProto, ranges: Mapping[str, Range], exclude: Sequence[str] = ()
) -> list[str]:
    """Return the nodes to leave in float32, by name.

    They are those named in `exclude`, those without an integer kernel, and those that read nothing
    but what these make: to quantise a ReLU, a pooling or a sum behind a layer in float would only
    cost precision. A tensor without a range, such as the input on its way to the pixel grid, cannot
    be quantised.
    """
    constants = Constants(model)
    layer_names = {node.name for node in layers(model, constants)}
    in_float = {value.name for value in model.graph.input}
    left = []
    for node in model.graph.node:
        data = node.input if node.op_type in _SEVERAL else node.input[:1]
        read = [name for name in data if name and name not in constants]
        passes_on_float = node.name not in layer_names and all(name in in_float for name in read)
        has_ranges = all(name in ranges for name in (*read, *node.output))
        able = why_float(node, constants) is None
        if node.name in exclude or passes_on_float or not (has_ranges and able):
            left.append(node.name)
            in_float.update(node.output)
    return left


def why_float(node: onnx.NodeProto, constants: Constants) -> str | None:
    """Return the reason why a node is never computed in integers; None if it can be."""
    op = node.op_type
    is_known = op in _OPERATORS and node.domain in ("", "ai.onnx")
    if op in ("Conv", "Gemm"):
        is_known = is_layer_or_sum(node, constants)
    elif op == "Resize":
        is_known = attribute(node, "mode", b"nearest") == b"nearest"
    if is_known:
        return None
    return _WITHOUT_KERNEL.get(op, "there is no integer kernel for it")


def _leave_last_sums(model: onnx.ModelProto) -> None:
    producers = {name: node for node in model.graph.node for name in node.output}
    for output in model.graph.output:
        dequantize = producers.get(output.name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        quantize = producers.get(dequantize.input[0])
        if quantize is None:
            continue
        sums = quantize.input[0]
        if sums not in producers or producers[sums].op_type != "Gemm":
            continue
        producers[sums].output[0] = output.name
        model.graph.node.remove(dequantize)
        model.graph.node.remove(quantize)


def saturating_layers(model: onnx.ModelProto, quantized: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the layers whose results differ on an x86 CPU without VNNI.

    Such a CPU multiplies 8-bit numbers with VPMADDUBSW, which adds each two neighbouring products
    in 16 bits and cuts the sum off at 32767: 255 * (127 + 127) is 64770. With 7-bit weights the
    largest sum is 255 * (64 + 64) = 32640, and nothing is cut off. Neighbours are those of adjacent
    input channels at one place of the kernel, the order in which the runtime lays out images.
    """
    constants, integers = Constants(model), Constants(quantized)
    found = []
    for node in layers(model, constants):
        name = LayerNames(node).weight
        if name not in integers:
            continue
        weight_OIK = read_layer(node, constants).by_output(integers[name].astype(np.int64))
        rows = np.moveaxis(weight_OIK, 1, -1).reshape(len(weight_OIK), -1)
        even = rows[:, : rows.shape[1] // 2 * 2]
        sums = np.abs(even[:, 0::2] + even[:, 1::2]).max(initial=0)
        # Of opposite signs, either product may be alone: it is never too large by itself.
        if sums * _LARGEST_INPUT > _LARGEST_SUM:
            found.append(node.name)
    return tuple(found)
