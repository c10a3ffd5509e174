"""A layer's integers better than the nearest: GPTQ for its weights, bias correction for its bias.

Rounded to the nearest integers, weights have errors that add up at random. The error that counts is
the output's: for a row of weights w, over inputs x, its square is

    (q - w)^T H (q - w),    H = sum over patches of x x^T

GPTQ rounds weights in the order of their inputs' strength; the error of each is taken over by those
still to be rounded, as far as their inputs are alike (Frantar et al. 2022, arXiv 2210.17323, after
Hassibi and Stork's Optimal Brain Surgeon, 1993). Scales and graph stay as they are. AdaRound (Nagel
et al. 2020, arXiv 2004.10568) minimises an error of this form by gradient descent.

The layer computes q * scale instead of w: on the inputs x that it has in the quantised model, its
output is off by (q * scale - w)^T E[x] in the mean. That, and the rounding error of the bias
itself, is subtracted from the bias, whose integers are fine enough for it. Nagel et al. 2019 (arXiv
1906.04721), with E[x] measured rather than derived.

The inputs are im2col's: unfolded into rows, the patches that the weights are multiplied with.

Shapes: N samples, P patches, G groups, O rows of a group, C input channels of a group, K values of
a patch.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from resdeploy.graph.affine_layer import AffineLayer, Array
from resdeploy.graph.onnx_file import copy_of
from resdeploy.quant.onnx_graph import Constants, layers, read_layer
from resdeploy.quant.qdq import LayerNames
from resdeploy.quant.runtime import Runner, input_of, with_outputs

__all__ = ["correct_biases", "gptq", "gptq_weights"]

# Added to the diagonal of H, over its mean: weights without inputs must not be free.
_DAMPING = 1e-3
# Of each sample, at most as many patches are looked at: neighbours are alike.
_PATCHES_PER_SAMPLE = 64
# Several layers share a pass over the samples, as long as their H fit into this.
_HESSIAN_BYTES = 256 * 2**20
# Weights after these are updated all at once.
_BLOCK = 64


def gptq_weights(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    inputs: NDArray[np.float32],
    *,
    limit: int,
) -> dict[str, NDArray[np.int8]]:
    """Return better integers for the weights of a quantised model, by the name of the constant.

    `model` is the prepared one it was made from, `inputs` (N, ...) samples to look at, and `limit`
    the largest integer of a weight.
    """
    constants, integers = Constants(model), Constants(quantized)
    nodes = [node for node in layers(model, constants) if _can_round(node, constants, integers)]
    rounded: dict[str, NDArray[np.int8]] = {}
    for some in _by_memory(nodes, constants):
        for node, hessians_GKK in zip(some, _hessians(model, some, inputs), strict=True):
            names = LayerNames(node)
            layer = read_layer(node, constants)
            weight_OIK = layer.by_output(constants[node.input[1]])
            weight_GOK = weight_OIK.reshape(layer.groups, -1, layer.num_products)
            scale_O = np.broadcast_to(integers[names.weight_scale].reshape(-1), layer.num_outputs)
            groups = zip(weight_GOK, scale_O.reshape(layer.groups, -1), hessians_GKK, strict=True)
            rows = [gptq(*group, limit=limit) for group in groups]
            rounded[names.weight] = layer.as_stored(np.concatenate(rows))
    return rounded


def gptq(
    weight_OK: NDArray[np.floating],
    scale_O: NDArray[np.floating],
    hessian_KK: NDArray[np.float64],
    *,
    limit: int,
) -> NDArray[np.int8]:
    """Return integers q for which q * scale is near to the weights in the metric of H."""
    order = np.argsort(-np.diag(hessian_KK), kind="stable")
    hessian_KK = hessian_KK[np.ix_(order, order)]
    damping = _DAMPING * float(np.mean(np.diag(hessian_KK)))
    hessian_KK[np.diag_indices_from(hessian_KK)] += damping if damping > 0 else 1.0
    # The rows of this upper factor hold the effect of an error at j on the best weights after j.
    factor_KK = np.linalg.cholesky(np.linalg.inv(hessian_KK)).T
    rest_OK = weight_OK.astype(np.float64)[:, order]
    scale_O = scale_O.astype(np.float64)
    rounded_OK = np.zeros(weight_OK.shape, np.int8)
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        error_OB = np.zeros((len(weight_OK), stop - start))
        for j in range(start, stop):
            whole_O = np.clip(np.rint(rest_OK[:, j] / scale_O), -limit, limit)
            error_O = (rest_OK[:, j] - whole_O * scale_O) / factor_KK[j, j]
            rest_OK[:, j + 1 : stop] -= np.outer(error_O, factor_KK[j, j + 1 : stop])
            rounded_OK[:, order[j]] = whole_O
            error_OB[:, j - start] = error_O
        rest_OK[:, stop:] -= error_OB @ factor_KK[start:stop, stop:]
    return rounded_OK


def _can_round(node: onnx.NodeProto, constants: Constants, integers: Constants) -> bool:
    own = not constants.is_shared(node.input[1])
    can = _can_unfold(read_layer(node, constants))
    return can and own and LayerNames(node).weight in integers


def _by_memory(
    nodes: Sequence[onnx.NodeProto], constants: Constants
) -> Iterator[list[onnx.NodeProto]]:
    group: list[onnx.NodeProto] = []
    taken = 0
    for node in nodes:
        layer = read_layer(node, constants)
        num_bytes = layer.groups * layer.num_products**2 * np.dtype(np.float64).itemsize
        if group and taken + num_bytes > _HESSIAN_BYTES:
            yield group
            group, taken = [], 0
        group.append(node)
        taken += num_bytes
    if group:
        yield group


def _hessians(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], inputs: NDArray[np.float32]
) -> list[NDArray[np.float64]]:
    """Return for each layer the sum of x x^T over patches, (groups, K, K)."""
    constants = Constants(model)
    given = input_of(model).name
    read = sorted({node.input[0] for node in nodes} - {given})
    read_layers = [read_layer(node, constants) for node in nodes]
    hessians = [np.zeros((one.groups, one.num_products, one.num_products)) for one in read_layers]
    random = np.random.default_rng(0)
    runner = Runner(with_outputs(model, read or [model.graph.output[0].name]), optimize=False)
    for batch, tensors in runner.run_batches(inputs):
        for node, layer, hessian_GKK in zip(nodes, read_layers, hessians, strict=True):
            values = batch if node.input[0] == given else tensors[node.input[0]]
            patches_GPK = _unfold(layer, values, random, num=_PATCHES_PER_SAMPLE)
            for patches_PK, sum_KK in zip(patches_GPK, hessian_GKK, strict=True):
                sum_KK += patches_PK.T @ patches_PK
    return hessians


def correct_biases(
    model: onnx.ModelProto, quantized: onnx.ModelProto, inputs: NDArray[np.float32]
) -> onnx.ModelProto:
    """Return a copy of a quantised model with corrected biases; see `gptq_weights`."""
    corrected = copy_of(quantized)
    constants, integers = Constants(model), Constants(corrected)
    running = {node.name: node.input[0] for node in corrected.graph.node if node.input}
    nodes = [
        node
        for node in layers(model, constants)
        if _can_round(node, constants, integers)
        and LayerNames(node).bias in integers
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
            found = _mean_patch(read_layer(node, constants), tensors[running[node.name]])
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


# --- im2col ---


def _can_unfold(layer: AffineLayer) -> bool:
    """True for a layer known to im2col: Gemm, and Conv of images with explicit padding."""
    if layer.is_linear:
        return not layer.reads_columns and layer.alpha == 1.0
    return layer.auto_pad == "NOTSET" and len(layer.kernel) == 2


def _unfold(layer: AffineLayer, values: Array, random: np.random.Generator, *, num: int) -> Array:
    """Return (G, P, K): at most `num` patches of each sample, at places drawn for each batch."""
    if layer.is_linear:
        return values[np.newaxis]
    windows = _windows(layer, values)
    height, width = windows.shape[2:4]
    places = random.permutation(height * width)[:num]
    chosen = windows[:, :, places // width, places % width]  # N, channels, P, kh, kw
    n, channels, p, kh, kw = chosen.shape
    grouped = chosen.reshape(n, layer.groups, channels // layer.groups, p, kh * kw)
    return np.ascontiguousarray(grouped.transpose(1, 0, 3, 2, 4)).reshape(
        layer.groups, n * p, channels // layer.groups * kh * kw
    )


def _mean_patch(layer: AffineLayer, values: Array) -> NDArray[np.float64]:
    """Return (G, K): the mean over all patches of all samples."""
    if layer.is_linear:
        return np.asarray(values.mean(axis=0, dtype=np.float64))[np.newaxis]
    windows = _windows(layer, values)
    taps = (windows[..., row, column] for row, column in np.ndindex(*layer.kernel))
    mean = np.stack([tap.mean(axis=(0, 2, 3), dtype=np.float64) for tap in taps])
    by_channel = mean.T.reshape(layer.groups, -1, len(mean))  # (G, C, taps)
    return np.ascontiguousarray(by_channel).reshape(layer.groups, -1)


def _windows(layer: AffineLayer, values: Array) -> Array:
    kernel_h, kernel_w = layer.kernel
    dilation_h, dilation_w = layer.dilations
    stride_h, stride_w = layer.strides
    top, left, bottom, right = layer.pads
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = (dilation_h * (kernel_h - 1) + 1, dilation_w * (kernel_w - 1) + 1)
    windows = sliding_window_view(padded, reach, axis=(2, 3))
    return windows[:, :, ::stride_h, ::stride_w, ::dilation_h, ::dilation_w]
