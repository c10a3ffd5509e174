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

ReLU, pooling, padding with zeros, slices of the image and sums commute with a positive scale per
channel. So all channels that these operators connect form one group: a residual stream is one group
per channel, however many blocks read and write it, and so are the channels between two layers of a
block. A group may be scaled if every layer around it can take the scale into its weights. Channels
are joined one by one, by union-find, as a shortcut that pads channels moves them.

A channel's range is exceeded by one of 10,000 values. The largest value of all may be that of a
single odd image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.graph.onnx_file import copy_of
from resdeploy.quant.onnx_graph import (
    Constants,
    attribute,
    channels_first_shapes,
    layers,
    names_inside,
    read_layer,
)
from resdeploy.quant.runtime import Runner, with_outputs

__all__ = ["ChannelGroups", "find_channel_groups", "smooth_channels"]

# A channel that is almost always zero must not blow up the weights, nor lose its values.
_LARGEST_FACTOR = 64.0
_LEAST_OF_LARGEST = 0.05
# Of the values of a channel, so many may be beyond its range.
_BEYOND = 1e-4
# They commute with a positive scale per channel.
_COMMUTING = frozenset(
    {
        *("Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout"),
        *("Reshape", "Flatten", "Slice"),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroups:
    """The channel groups of a model.

    Attributes:
        group_of: by tensor, the group of each of its channels.
        is_free: by group, whether it may be scaled.
    """

    group_of: dict[str, NDArray[np.int64]]
    is_free: NDArray[np.bool_]


def smooth_channels(model: onnx.ModelProto, inputs: NDArray[np.float32]) -> onnx.ModelProto:
    """Return a copy that computes the same, its channels' ranges alike on `inputs` (N, ...)."""
    channels = find_channel_groups(model)
    ranges = _group_ranges(model, channels, inputs)
    scaled = channels.is_free & (ranges > 0)
    factors = np.where(scaled, np.clip(ranges, 1 / _LARGEST_FACTOR, 1.0), 1.0)
    return _rescaled(model, {name: factors[at] for name, at in channels.group_of.items()})


def _group_ranges(
    model: onnx.ModelProto, channels: ChannelGroups, inputs: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return each group's range over the largest of its tensor."""
    left_out = {*_read_by_relu_alone(model), *(value.name for value in model.graph.input)}
    names = [name for name in channels.group_of if name not in left_out]
    highest: dict[str, NDArray[np.float32]] = {}
    for _, tensors in Runner(with_outputs(model, names), optimize=False).run_batches(inputs):
        for name, values in tensors.items():
            size_CP = np.abs(np.moveaxis(values, 1, 0)).reshape(values.shape[1], -1)
            num = 1 + int(_BEYOND * size_CP.shape[1] / len(values) * len(inputs))
            both = np.concatenate([highest.get(name, size_CP[:, :0]), size_CP], axis=1)
            few = both.shape[1] <= num
            highest[name] = both if few else np.partition(both, -num, axis=1)[:, -num:]
    ranges = np.zeros(len(channels.is_free))
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


# --- channels that must be scaled together ---


def find_channel_groups(model: onnx.ModelProto) -> ChannelGroups:
    """Return the groups of the channels (axis 1) of every tensor that nodes compute."""
    constants = Constants(model)
    known = channels_first_shapes(model)
    computed = [value.name for value in model.graph.input if value.name not in constants]
    computed += [name for node in model.graph.node for name in node.output]
    shapes = {n: known[n] for n in computed if len(known.get(n, ())) >= 2 and known[n][1]}
    joiner = _UnionFind(shapes)
    weighted = {node.output[0] for node in layers(model, constants)}
    for value in (*model.graph.input, *model.graph.output):
        joiner.pin(value.name)
    for node in model.graph.node:
        is_layer = node.output[0] in weighted and _takes_scales(node, constants)
        if not is_layer and not _join(node, joiner, constants):
            for name in (*node.input, *node.output, *names_inside(node)):
                joiner.pin(name)
    return joiner.result()


def _takes_scales(node: onnx.NodeProto, constants: Constants) -> bool:
    """True if a layer's weights are its own, so that scales can go into them."""
    layer = read_layer(node, constants)
    plain = layer.alpha == layer.beta == 1.0 and not layer.reads_columns
    own = [name in constants and not constants.is_shared(name) for name in node.input[1:]]
    return plain and len(own) == 2 and all(own)


def _join(node: onnx.NodeProto, joiner: "_UnionFind", constants: Constants) -> bool:
    """Join the channels that a node connects; False if it may do anything with them."""
    shapes = joiner.shapes
    output = node.output[0]
    data = [name for name in node.input if name in shapes]
    if output not in shapes or not data or len(node.output) > 1:
        return False
    if node.op_type == "Pad":
        return _join_padded(node, joiner, constants)
    # Slices of channels, and reshapes that mix them with pixels, change their number.
    if any(shapes[name][1] != shapes[output][1] for name in data):
        return False
    is_sum = node.op_type == "Add" and len(node.input) == 2 == len(data)
    commutes = node.op_type in _COMMUTING and len(data) == 1 and _keeps_pixels(node, shapes)
    if is_sum or commutes:
        for name in data:
            joiner.join(name, output)
    return is_sum or commutes


def _keeps_pixels(node: onnx.NodeProto, shapes: dict[str, tuple[int | None, ...]]) -> bool:
    """True if axis 1 is still the channels: a reshaped value has a single pixel."""
    if node.op_type not in ("Reshape", "Flatten"):
        return True
    before, after = shapes[node.input[0]], shapes[node.output[0]]
    return all(size == 1 for size in (*before[2:], *after[2:]))


def _join_padded(node: onnx.NodeProto, joiner: "_UnionFind", constants: Constants) -> bool:
    source, output = node.input[0], node.output[0]
    is_zero = len(node.input) < 3 or not node.input[2]
    if not is_zero:
        is_zero = node.input[2] in constants and not np.any(constants[node.input[2]])
    plain = attribute(node, "mode", b"constant") == b"constant" and len(node.input) < 4
    if not (plain and is_zero and source in joiner.shapes and node.input[1] in constants):
        return False
    pads = constants[node.input[1]]
    offset, rank = int(pads[1]), len(joiner.shapes[output])
    if len(pads) != 2 * rank or min(offset, int(pads[1 + rank])) < 0:
        return False
    joiner.join(source, output, offset=offset)
    return True


class _UnionFind:
    """Union-find over channels, each a place in one row, with path halving."""

    def __init__(self, shapes: dict[str, tuple[int | None, ...]]) -> None:
        self.shapes = shapes
        self._places: dict[str, range] = {}
        total = 0
        for name, shape in shapes.items():
            self._places[name] = range(total, total + (shape[1] or 0))
            total = self._places[name].stop
        self._parent = list(range(total))
        self._pinned: set[int] = set()

    def join(self, source: str, output: str, *, offset: int = 0) -> None:
        """Join channel c of `source` with channel c + offset of `output`."""
        targets = self._places[output][offset:]
        for place, target in zip(self._places[source], targets, strict=False):
            root = self._root(place)
            self._parent[root] = self._root(target)

    def pin(self, name: str) -> None:
        """Forbid to scale the channels of a tensor."""
        self._pinned.update(self._places.get(name, ()))

    def result(self) -> ChannelGroups:
        roots = np.array([self._root(place) for place in range(len(self._parent))], np.int64)
        unique, numbers = np.unique(roots, return_inverse=True)
        is_free = np.ones(len(unique), bool)
        is_free[numbers[sorted(self._pinned)]] = False
        group_of = {name: numbers[at.start : at.stop] for name, at in self._places.items()}
        return ChannelGroups(group_of, is_free)

    def _root(self, place: int) -> int:
        while self._parent[place] != place:
            self._parent[place] = self._parent[self._parent[place]]
            place = self._parent[place]
        return place
