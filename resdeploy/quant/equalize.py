"""Give the channels of a tensor like ranges, at no change to what the network computes.

An activation tensor has one scale for all its channels: a channel that stays small keeps few of the
256 levels. A positive factor s per channel moves from the layers that write the channel to those
that read it:

    W'[c, :] = W[c, :] / s[c],  b'[c] = b[c] / s[c]     where channel c is written
    W'[:, c] = W[:, c] * s[c]                           where it is read

    s[c] = sqrt(a[c] / w[c])

a: the largest value of the channel over the largest of its tensor; w: the largest weight that
reads the channel over the largest of its row. Nagel et al. 2019 (arXiv 1906.04721) equalise the
ranges of the weights on both sides; with a scale for each row of weights, as here, those that write
need none, and the activations take their place.
"""

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.quant.channels import Channels, find_channels
from resdeploy.quant.onnx_graph import Constants, attribute, copy_of, layers
from resdeploy.quant.runtime import Runner, input_of, with_outputs

__all__ = ["equalize"]

# A channel that is almost always zero must not blow up the weights.
_LARGEST_FACTOR = 64.0


def equalize(model: onnx.ModelProto, inputs: NDArray[np.float32]) -> tuple[onnx.ModelProto, int]:
    """Return a copy that computes the same over other channel ranges, and how many it scaled.

    Args:
        model: prepared, in float32.
        inputs: (N, ...) what ranges are looked at with.
    """
    channels = find_channels(model)
    activation = _activation_ranges(model, channels, inputs)
    weight = _weight_ranges(model, channels)
    scaled = channels.is_free & (activation > 0) & (weight > 0)
    factors = np.ones(channels.num_classes)
    factors[scaled] = np.sqrt(activation[scaled] / weight[scaled])
    factors = np.clip(factors, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    return _rescaled(model, channels, factors), int(scaled.sum())


def _activation_ranges(
    model: onnx.ModelProto, channels: Channels, inputs: NDArray[np.float32]
) -> NDArray[np.float64]:
    given = input_of(model).name
    names = [name for name in channels.class_of if name != given]
    largest: dict[str, NDArray[np.float64]] = {}
    for _, tensors in Runner(with_outputs(model, names), optimize=False).run_batches(inputs):
        for name, values in tensors.items():
            others = tuple(axis for axis in range(values.ndim) if axis != 1)
            found = np.abs(values).max(axis=others).astype(np.float64)
            largest[name] = np.maximum(largest.get(name, 0.0), found)
    ranges = np.zeros(channels.num_classes)
    for name, values in largest.items():
        if values.max() > 0:
            np.maximum.at(ranges, channels.class_of[name], values / values.max())
    return ranges


def _weight_ranges(model: onnx.ModelProto, channels: Channels) -> NDArray[np.float64]:
    constants = Constants(model)
    ranges = np.zeros(channels.num_classes)
    for node in layers(model, constants):
        if node.input[0] not in channels.class_of:
            continue
        classes_I = channels.class_of[node.input[0]]
        for rows, columns, weight_OIK in _groups(node, constants[node.input[1]]):
            del rows
            size_OI = np.abs(weight_OIK).max(axis=2)
            of_row = np.maximum(size_OI.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
            np.maximum.at(ranges, classes_I[columns], (size_OI / of_row).max(axis=0))
    return ranges


def _rescaled(
    model: onnx.ModelProto, channels: Channels, factors: NDArray[np.float64]
) -> onnx.ModelProto:
    scaled = copy_of(model)
    del scaled.graph.value_info[:]
    constants = Constants(scaled)
    for node in layers(scaled, constants):
        weight = constants[node.input[1]]
        exact = weight.astype(np.float64)  # rounded once, at the end
        written = _factors_of(node.output[0], channels, factors)
        read = _factors_of(node.input[0], channels, factors)
        for rows, columns, weight_OIK in _groups(node, exact):
            weight_OIK /= 1.0 if written is None else written[rows, np.newaxis, np.newaxis]
            weight_OIK *= 1.0 if read is None else read[np.newaxis, columns, np.newaxis]
        if np.array_equal(exact, weight):
            continue
        constants[node.input[1]] = exact.astype(weight.dtype)
        if written is not None:
            bias = constants[node.input[2]]
            constants[node.input[2]] = (bias.astype(np.float64) / written).astype(bias.dtype)
    return scaled


def _factors_of(
    tensor: str, channels: Channels, factors: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    classes = channels.class_of.get(tensor)
    return None if classes is None else factors[classes]


def _groups(
    node: onnx.NodeProto, weight: NDArray[np.floating]
) -> list[tuple[slice, slice, NDArray[np.floating]]]:
    """Return each group's output channels, input channels and a view (O, I, K) of its weights."""
    if node.op_type == "Gemm":
        by_row = weight if attribute(node, "transB", 0) else weight.T
        return [(slice(None), slice(None), by_row[:, :, np.newaxis])]
    num_groups = attribute(node, "group", 1)
    num_out, num_in = weight.shape[0] // num_groups, weight.shape[1]
    flat = weight.reshape(weight.shape[0], num_in, -1)
    return [
        (rows, slice(g * num_in, (g + 1) * num_in), flat[rows])
        for g in range(num_groups)
        for rows in [slice(g * num_out, (g + 1) * num_out)]
    ]
