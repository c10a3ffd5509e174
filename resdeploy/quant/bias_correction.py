"""Take the mean error of rounded weights out of the biases.

A layer computes q * scale instead of w: on the inputs x that it has in the quantised model, its
output is off by (q * scale - w)^T E[x] in the mean. That, and what the bias itself lost when it was
rounded, is subtracted from the bias, whose integers are fine enough for it. Nagel et al. 2019
(arXiv 1906.04721), with E[x] measured rather than derived.
"""

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.quant.onnx_graph import Constants, attribute, copy_of, layers
from resdeploy.quant.patches import mean_patch, supports
from resdeploy.quant.qdq import layer_names
from resdeploy.quant.runtime import Runner, with_outputs

__all__ = ["correct_biases"]


def correct_biases(
    model: onnx.ModelProto, quantized: onnx.ModelProto, inputs: NDArray[np.float32]
) -> onnx.ModelProto:
    """Return a copy of a quantised model with corrected biases.

    Args:
        model: the prepared model it was made from.
        quantized: with its integers.
        inputs: (N, ...) samples to look at.
    """
    corrected = copy_of(quantized)
    constants, integers = Constants(model), Constants(corrected)
    running = {node.name: node.input[0] for node in corrected.graph.node}
    nodes = [
        node
        for node in layers(model, constants)
        if supports(node)
        and layer_names(node).bias in integers
        and not constants.is_shared(node.input[1])
        and not constants.is_shared(node.input[2])
    ]
    if not nodes:  # every layer that has a bias stays in float
        return corrected
    means: dict[str, NDArray[np.float64]] = {}
    read = sorted({running[node.name] for node in nodes})
    runner = Runner(with_outputs(corrected, read), optimize=False)
    for batch, tensors in runner.run_batches(inputs):
        for node in nodes:
            share = len(batch) / len(inputs)
            found = mean_patch(node, tensors[running[node.name]])
            means[node.name] = means.get(node.name, 0.0) + share * found
    for node in nodes:
        names = layer_names(node)
        weight, bias = constants[node.input[1]], constants[node.input[2]]
        scale = integers[names.weight_scale].astype(np.float64).reshape(-1)
        by_row = node.op_type == "Conv" or attribute(node, "transB", 0)
        shape = (-1,) + (1,) * (weight.ndim - 1) if by_row else (1, -1)
        lost = integers[names.weight].astype(np.float64) * scale.reshape(shape) - weight
        rows_OK = (lost if by_row else lost.T).reshape(len(bias), -1)
        mean_GK = means[node.name]
        size = len(bias) // len(mean_GK)
        mean_error = np.concatenate(
            [rows_OK[g * size : (g + 1) * size] @ mean_K for g, mean_K in enumerate(mean_GK)]
        )
        step = integers[names.bias_scale].astype(np.float64).reshape(-1)
        integers[names.bias] = np.rint((bias - mean_error) / step).astype(np.int32)
    return corrected
