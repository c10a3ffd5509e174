"""SmoothQuant's migration: like ranges for the channels of a tensor, at no change to the function.

An activation tensor has one scale for all its channels: a channel that stays small keeps few of the
256 levels. A positive factor s per channel moves from the layers that write the channel to those
that read it:

    W'[c, :] = W[c, :] / s[c],  b'[c] = b[c] / s[c]     where channel c is written
    W'[:, c] = W[:, c] * s[c]                           where it is read

s[c] is the range of the channel over the largest of its tensor, so that all get the same; of
several tensors that share their channels, the largest counts. This is SmoothQuant (Xiao et al.
2022, arXiv 2211.10438) with all of the difficulty migrated to the weights, alpha = 1: they have a
scale for each row, and can be rounded so that their errors cancel; activations cannot. Cross-layer
equalization (Nagel et al. 2019, arXiv 1906.04721) evens out the weights of two layers instead, for
weights that share a scale.

A channel's range is exceeded by one of 10,000 values. The largest value of all may be that of a
single odd image.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.graph.onnx_file import copy_of
from resdeploy.quant.channel_groups import ChannelGroups, find_channel_groups
from resdeploy.quant.onnx_graph import Constants, layers, read_layer
from resdeploy.quant.runtime import Runner, input_of, with_outputs

__all__ = ["smooth_channels"]

# A channel that is almost always zero must not blow up the weights, nor lose its values.
_LARGEST_FACTOR = 64.0
_LEAST_OF_LARGEST = 0.05
# Of the values of a channel, so many may be beyond its range.
_BEYOND = 1e-4


def smooth_channels(model: onnx.ModelProto, inputs: NDArray[np.float32]) -> onnx.ModelProto:
    """Return a copy that computes the same over other channel ranges.

    Args:
        model: prepared, in float32.
        inputs: (N, ...) samples to find ranges with.
    """
    channels = find_channel_groups(model)
    ranges = _group_ranges(model, channels, inputs)
    scaled = channels.is_free & (ranges > 0)
    factors = np.where(scaled, np.clip(ranges, 1 / _LARGEST_FACTOR, 1.0), 1.0)
    return _rescaled(model, {name: factors[at] for name, at in channels.group_of.items()})


def _group_ranges(
    model: onnx.ModelProto, channels: ChannelGroups, inputs: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return each group's range over the largest of its tensor."""
    left_out = {input_of(model).name, *_read_by_relu_alone(model)}
    names = [name for name in channels.group_of if name not in left_out]
    highest: dict[str, NDArray[np.float32]] = {}
    for batch, tensors in Runner(with_outputs(model, names), optimize=False).run_batches(inputs):
        for name, values in tensors.items():
            size_CP = np.abs(np.moveaxis(values, 1, 0)).reshape(values.shape[1], -1)
            num_beyond = int(_BEYOND * size_CP.shape[1] / len(batch) * len(inputs))
            highest[name] = _highest(highest.get(name, size_CP[:, :0]), size_CP, num_beyond + 1)
    ranges = np.zeros(channels.num_groups)
    for name, highest_CK in highest.items():
        range_C = np.maximum(highest_CK.min(axis=1), _LEAST_OF_LARGEST * highest_CK.max(axis=1))
        if range_C.max() > 0:
            np.maximum.at(ranges, channels.group_of[name], range_C / range_C.max())
    return ranges


def _read_by_relu_alone(model: onnx.ModelProto) -> set[str]:
    """Return the tensors that are never rounded: a ReLU is part of the layer before it."""
    given_out = {value.name for value in model.graph.output}
    by_relu, by_others = set[str](), set[str]()
    for node in model.graph.node:
        (by_relu if node.op_type == "Relu" else by_others).update(node.input)
    return by_relu - by_others - given_out


def _highest(
    before_CK: NDArray[np.float32], values_CP: NDArray[np.float32], num: int
) -> NDArray[np.float32]:
    """Return the `num` highest values of each row of both, in no order."""
    both = np.concatenate([before_CK, values_CP], axis=1)
    return both if both.shape[1] <= num else np.partition(both, -num, axis=1)[:, -num:]


def _rescaled(
    model: onnx.ModelProto, factors: Mapping[str, NDArray[np.float64]]
) -> onnx.ModelProto:
    scaled = copy_of(model)
    del scaled.graph.value_info[:]
    constants = Constants(scaled)
    for node in layers(scaled, constants):
        layer, weight = read_layer(node, constants), constants[node.input[1]]
        exact_GOIK = layer.by_group(weight.astype(np.float64))  # rounded once, at the end
        written, read = factors.get(node.output[0]), factors.get(node.input[0])
        along = (1,) * len(layer.kernel)
        if written is not None:
            exact_GOIK = exact_GOIK / written.reshape(layer.groups, -1, 1, *along)
        if read is not None:
            exact_GOIK = exact_GOIK * read.reshape(layer.groups, 1, -1, *along)
        scaled_weight = layer.as_stored(exact_GOIK)
        if np.array_equal(scaled_weight, weight):
            continue
        constants[node.input[1]] = scaled_weight.astype(weight.dtype)
        if written is not None:
            bias = constants[node.input[2]]
            constants[node.input[2]] = (bias.astype(np.float64) / written).astype(bias.dtype)
    return scaled
