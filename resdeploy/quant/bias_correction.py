"""Bias correction: the mean error of rounded weights, taken out of the biases.

A layer computes q * scale instead of w: on the inputs x that it has in the quantised model, its
output is off by (q * scale - w)^T E[x] in the mean. That, and the rounding error of the bias
itself, is subtracted from the bias, whose integers are fine enough for it. Nagel et al. 2019 (arXiv
1906.04721), with E[x] measured rather than derived.
"""

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.graph.onnx_file import copy_of
from resdeploy.quant.im2col import can_unfold, mean_patch
from resdeploy.quant.onnx_graph import Constants, layers, read_layer
from resdeploy.quant.qdq import LayerNames
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
        if can_unfold(read_layer(node, constants))
        and LayerNames(node).bias in integers
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
            found = mean_patch(read_layer(node, constants), tensors[running[node.name]])
            means[node.name] = means.get(node.name, 0.0) + share * found
    for node in nodes:
        names = LayerNames(node)
        layer, bias = read_layer(node, constants), constants[node.input[2]]
        scale = integers[names.weight_scale].astype(np.float64).reshape(-1, 1)
        weight, whole = constants[node.input[1]], integers[names.weight].astype(np.float64)
        rows_OK = [layer.by_output(array).reshape(len(bias), -1) for array in (whole, weight)]
        lost_GOK = (rows_OK[0] * scale - rows_OK[1]).reshape(layer.groups, -1, layer.num_products)
        mean_error = np.concatenate(
            [lost_OK @ mean_K for lost_OK, mean_K in zip(lost_GOK, means[node.name], strict=True)]
        )
        step = integers[names.bias_scale].astype(np.float64).reshape(-1)
        integers[names.bias] = np.rint((bias - mean_error) / step).astype(np.int32)
    return corrected
