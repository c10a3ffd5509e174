"""Pixel grid: a quantised input whose integers are the pixels themselves.

Before:  input = (pixel / divisor - mean) / std;  Conv(input, W, b)
After:   grid = input * (divisor * std) + (divisor * mean - 128) = pixel - 128
         Conv([grid, 64], W', b)

A pixel has 256 values, and so has uint8; but a range from the least input to the largest puts its
levels elsewhere: rounding to them is the largest single error of a small network. On a grid of step
1 nothing is rounded. W' divides by divisor * std. What is left is a constant,

    sum over c of W[o, c, k] * (128 - divisor * mean[c]) / (divisor * std[c]),

for every tap k that lies inside the image, not on the padding: the weights, over 64, of one more
channel that is 64 everywhere and padded with zeros like the others.

Refuses when
1. the inputs are not made from 8-bit images, or are several;
2. the input is read by anything but one Conv without groups;
3. the weights of that Conv are computed, or another node reads them.
"""

import numpy as np
import onnx
from onnx import helper

from resdeploy.graph.affine_layer import Array, is_affine
from resdeploy.graph.onnx_file import copy_of, fed_inputs
from resdeploy.quant.onnx_graph import Constants, new_name, read_layer
from resdeploy.schema.recipes import Preprocess

__all__ = ["GRID_RANGE", "takes_pixel_grid", "use_pixel_grid"]

# Of a tensor with step 1: as uint8 it is 0...255 about 128.
GRID_RANGE = (-128.0, 127.0)
_CENTRE = 128.0
# A value on the grid. The larger it is, the smaller the weights that read it: large enough for them
# not to widen the range of their row, small enough to keep their precision.
_ONE = 64.0


def takes_pixel_grid(model: onnx.ModelProto, preprocess: Preprocess) -> bool:
    """True if the input's integers can be the pixels themselves."""
    given = fed_inputs(model)
    if preprocess.color == "none" or preprocess.divisor != 255 or len(given) > 1:  # 1
        return False
    name = given[0].name
    readers = [node for node in model.graph.node if name in node.input]
    if len(readers) != 1 or not is_affine(readers[0], "Conv"):  # 2
        return False
    constants, weight = Constants(model), readers[0].input[1]
    own = weight in constants and not constants.is_shared(weight)
    return own and read_layer(readers[0], constants).groups == 1  # 3, 2


def use_pixel_grid(model: onnx.ModelProto, preprocess: Preprocess) -> tuple[onnx.ModelProto, str]:
    """Return a copy on the grid, where `takes_pixel_grid`, and its tensor there."""
    changed = copy_of(model)
    del changed.graph.value_info[:]
    constants = Constants(changed)
    source = fed_inputs(changed)[0].name
    conv = next(node for node in changed.graph.node if source in node.input)
    weight_OIK = constants[conv.input[1]].astype(np.float64)
    num_channels = weight_OIK.shape[1]
    per_channel = (1, num_channels, *(1 for _ in weight_OIK.shape[2:]))
    mean, std = (
        np.broadcast_to(np.asarray(given, np.float64), num_channels).reshape(per_channel)
        for given in (preprocess.mean, preprocess.std)
    )
    gain, offset = preprocess.divisor * std, preprocess.divisor * mean - _CENTRE
    scaled_OIK = weight_OIK / gain
    constant_O1K = -(scaled_OIK * offset).sum(axis=1, keepdims=True) / _ONE
    constants[conv.input[1]] = np.concatenate([scaled_OIK, constant_O1K], axis=1).astype(np.float32)

    rank = weight_OIK.ndim
    pads = np.zeros(2 * rank, np.int64)
    pads[rank + 1] = 1  # one channel, behind the others

    def constant(key: str, value: Array) -> str:
        name = new_name(changed, f"pixel_grid.{key}")
        constants[name] = value
        return name

    scaled, shifted, grid = (new_name(changed, f"pixel_grid.{key}") for key in ("a", "b", "grid"))
    conv.input[0] = grid
    one = np.array(_ONE, np.float32)
    added = [
        ("Mul", [source, constant("gain", gain.astype(np.float32))], scaled),
        ("Add", [scaled, constant("offset", offset.astype(np.float32))], shifted),
        ("Pad", [shifted, constant("pads", pads), constant("one", one)], grid),
    ]
    for place, (operator, inputs, output) in enumerate(added):
        node = helper.make_node(operator, inputs, [output], name=f"pixel_grid/{operator}")
        changed.graph.node.insert(place, node)
    return changed, grid
