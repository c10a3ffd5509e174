"""Carry an affine map through a functional graph to the layers it can be folded into.

How a map changes on the way is in `resdeploy.affine_map`; here is what the operators are.

Upwards, to the layers that compute the value. The map crosses

1. what does nothing at inference: dropout, clone;
2. what moves elements about: transpose, permute, reshape, flatten, pixel shuffle, channel shuffle;
3. averages over windows without counted padding, whose weights add up to 1; max pooling, if no
   scale is negative; what repeats values: nearest upsampling, padding that is not constant;
4. concatenation, where it parts, and addition, where both sides take the scale and one the shift;
5. slices: what they cut away is left alone;
6. sums and products with constants, which it takes in.

Downwards, to all the layers that read the value, each of which takes in the whole map. It crosses
1 to 3; it ends in layers that see no zeros beside the value, unless the shift is zero.

It stops, with the reason, at anything else, and at any value that is an output of the model or,
upwards, has another reader: that reader must not see the change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import fx

from resdeploy.affine_map import (
    AffineMap,
    add_constant,
    flatten_axes,
    multiply_by_constant,
    part,
    per_channel,
    permute,
    reorder_channels,
    reshape,
    unshuffle_pixels,
    whole,
)
from resdeploy.algebra import ExtendedArray
from resdeploy.host.layers import Layer, as_layer, describe, is_addition, node_shape

__all__ = ["Target", "targets_above", "targets_below"]

aten = torch.ops.aten

Constant = Callable[[fx.Node], torch.Tensor | None]


@dataclass(frozen=True, eq=False)
class Target:
    """A layer, and the map per channel to fold into it after or before it.

    `absorbed` are operations on the way that the map has taken in: their input takes their place.
    """

    layer: Layer
    side: Literal["after", "before"]
    scale: ExtendedArray
    shift: ExtendedArray
    absorbed: tuple[fx.Node, ...] = ()


# --- upwards -------------------------------------------------------------------------------------


def targets_above(
    value: fx.Node, affine: AffineMap, constant: Constant, absorbed: tuple[fx.Node, ...] = ()
) -> list[Target] | str:
    """Return the layers that compute `value`, each with its part of the map; or why there are none.

    Args:
        value: what the map's place reads, and nothing else may read.
        affine: the map.
        constant: the value of a node that does not vary, or None.
        absorbed: what the map has taken in on the way here.
    """
    reason = _read_elsewhere(value)
    if reason is not None:
        return reason
    layer = as_layer(value)
    if layer is not None:
        return _into_layer(layer, affine, "after", absorbed)
    if value.target is aten.cat.default:
        return _into_parts(value, affine, constant, absorbed)
    source = _source_of(value)
    taken_in = None if source is None else _with_constant(value, affine, constant)
    if source is not None and taken_in is not None:
        return targets_above(source, taken_in, constant, (*absorbed, value))
    if value.target is aten.add.Tensor:
        return _into_summands(value, affine, constant, absorbed)
    through = None if source is None else _back_through(value, source, affine)
    if source is None or through is None:
        return f"its input comes from {describe(value)}, not from a convolution or linear layer"
    return targets_above(source, through, constant, absorbed)


def _with_constant(value: fx.Node, affine: AffineMap, constant: Constant) -> AffineMap | None:
    """Return the map with `value` taken in, if that adds or multiplies a constant; else None."""
    arguments: Sequence[Any] = value.args
    is_sum = value.target in (aten.add.Tensor, aten.sub.Tensor)
    is_product = value.target in (aten.mul.Tensor, aten.div.Tensor)
    if not (is_sum or is_product) or value.kwargs:
        return None
    source, operand = arguments[:2]
    if isinstance(operand, fx.Node):
        tensor = constant(operand)
        if tensor is None:
            return None
        operand = tensor.detach().cpu().double().numpy()
    elif not isinstance(operand, int | float):
        return None
    lengths = _lengths(source)
    if is_sum:
        sign = -1 if value.target is aten.sub.Tensor else 1
        return add_constant(affine, operand, lengths, sign=sign)
    return multiply_by_constant(affine, operand, lengths, divide=value.target is aten.div.Tensor)


def _into_parts(
    value: fx.Node, affine: AffineMap, constant: Constant, absorbed: tuple[fx.Node, ...]
) -> list[Target] | str:
    parts: Any = value.args[0]
    axis = int(value.args[1]) if len(value.args) > 1 else 0  # type: ignore[arg-type]
    lengths = [node_shape(part)[axis] for part in parts]
    if len(set(parts)) != len(parts):
        return f"its input, {describe(value)}, joins a value with itself"
    targets: list[Target] = []
    start = 0
    for joined, length in zip(parts, lengths, strict=True):
        known = isinstance(length, int)
        share = part(affine, axis, range(start, start + length) if known else None)
        if share is None:
            return f"its input, {describe(value)}, joins along the batch"
        found = targets_above(joined, share, constant, absorbed)
        if isinstance(found, str):
            return found
        targets += found
        start += length
    return targets


def _into_summands(
    value: fx.Node, affine: AffineMap, constant: Constant, absorbed: tuple[fx.Node, ...]
) -> list[Target] | str:
    first, second = value.args[:2]
    plain = isinstance(first, fx.Node) and isinstance(second, fx.Node) and not value.kwargs
    if not plain or first is second:
        return f"its input comes from {describe(value)}, which is no plain sum of two layers"
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    if list(map(str, node_shape(first))) != list(map(str, node_shape(second))):
        return f"its input, {describe(value)}, is a sum of values of different shapes"
    targets: list[Target] = []
    for summand, share in ((first, affine), (second, affine.without_shift())):
        found = targets_above(summand, share, constant, absorbed)
        if isinstance(found, str):
            return found
        targets += found
    return targets


def _source_of(value: fx.Node) -> fx.Node | None:
    """Return the one tensor that an operation of the list above works on."""
    source = value.args[0] if value.op == "call_function" and value.args else None
    return source if isinstance(source, fx.Node) else None


def _back_through(value: fx.Node, source: fx.Node, affine: AffineMap) -> AffineMap | None:
    """Return the map of `source` that has the effect of `affine` on `value`; None if none has."""
    target: Any = value.target
    if _does_nothing(value):
        return affine
    if target in _RESHAPES:
        return reshape(affine, _lengths(value), _lengths(source))
    if target in _PERMUTES:
        return permute(affine, np.argsort(_permutation(value, len(node_shape(source)))).tolist())
    if target is aten.pixel_shuffle.default:
        return unshuffle_pixels(affine, int(value.args[1]))  # type: ignore[arg-type]
    if target is aten.channel_shuffle.default:
        order = np.argsort(_shuffled_channels(value, source))
        return reorder_channels(affine, order.tolist())
    if target is aten.slice.Tensor:
        return _back_through_slice(value, source, affine)
    if _keeps_channels(value, affine):
        return flatten_axes(affine, range(2, affine.rank))
    if target is aten.mean.dim:
        return _back_through_mean(value, source, affine)
    return None


def _keeps_channels(value: fx.Node, affine: AffineMap) -> bool:
    """Whether a node works on each channel in a way that commutes with the map."""
    is_max = value.target in (
        aten.max_pool1d.default,
        aten.max_pool2d.default,
        aten.max_pool3d.default,
    )
    if is_max:
        return bool((affine.scale >= 0).all())
    return _averages(value) or _repeats_values(value)


def _back_through_slice(value: fx.Node, source: fx.Node, affine: AffineMap) -> AffineMap | None:
    """Return the map of the whole of which `value` is a slice; what is cut away is left alone."""
    rank = affine.scale.ndim
    arguments: Sequence[Any] = value.args
    axis = int(arguments[1]) % rank if len(arguments) > 1 else 0
    if affine.scale.shape[axis] == affine.shift.shape[axis] == 1:
        return affine
    length = node_shape(source)[axis]
    start = arguments[2] if len(arguments) > 2 else 0
    end = arguments[3] if len(arguments) > 3 else length
    step = arguments[4] if len(arguments) > 4 else 1
    if not _are_ints((length, start, end, step)):
        return None
    return whole(affine, axis, length, np.arange(length)[slice(start, end, step)])


def _averages(value: fx.Node) -> bool:
    """Whether a node averages over windows, each of which holds as many values as it divides by."""
    target: Any = value.target
    if target in (aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default):
        return True
    if target is aten.adaptive_avg_pool3d.default:
        return True
    if target not in (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default):
        return False
    arguments: Sequence[Any] = value.args
    padding = arguments[3] if len(arguments) > 3 else [0]
    counts_padding = arguments[5] if len(arguments) > 5 else True
    divisor = arguments[6] if len(arguments) > 6 else None
    return divisor is None and not (counts_padding and any(padding))


def _back_through_mean(value: fx.Node, source: fx.Node, affine: AffineMap) -> AffineMap | None:
    rank = len(node_shape(source))
    axes: Any = value.args[1]
    if not axes:
        return None
    axes = sorted(axis % rank for axis in axes)
    if 0 in axes:
        return None
    keeps = len(value.args) > 2 and bool(value.args[2])
    if not keeps:
        affine = AffineMap(np.expand_dims(affine.scale, axes), np.expand_dims(affine.shift, axes))
    return flatten_axes(affine, axes)


# --- downwards -----------------------------------------------------------------------------------


_NO_LAYER_BELOW = "no layer alone reads its output"


def targets_below(value: fx.Node, affine: AffineMap) -> list[Target] | str:
    """Return the layers that read the mapped `value`, each with the map to fold in before it.

    `value` is the result of what the map stands for. Its readers are changed, not itself: so every
    one of them must lead to layers, or none may be changed.
    """
    readers = list(value.users)
    if not readers:
        return _NO_LAYER_BELOW
    targets: list[Target] = []
    for reader in readers:
        found = _targets_in(reader, value, affine)
        if isinstance(found, str):
            return found
        targets += found
    return targets


def _targets_in(reader: fx.Node, value: fx.Node, affine: AffineMap) -> list[Target] | str:
    """Return the layers that the mapped `value` reaches through one of its readers."""
    if reader.op == "output" or reader.all_input_nodes.count(value) != 1:
        return _NO_LAYER_BELOW
    layer = as_layer(reader)
    if layer is not None and layer.input is value:
        if layer.pads_with_zeros and (affine.shift != 0).any():
            return f"{describe(reader)}, which reads it, pads with zeros that its shift would move"
        return _into_layer(layer, affine, "before", ())
    through: AffineMap | None = None
    if _does_nothing(reader):
        through = affine
    elif _keeps_channels(reader, affine):
        through = flatten_axes(affine, range(2, affine.rank))
    elif reader.target in _RESHAPES:
        through = reshape(affine, _lengths(value), _lengths(reader))
    elif reader.target in _PERMUTES:
        through = permute(affine, _permutation(reader, affine.rank))
    if through is None:
        return _NO_LAYER_BELOW
    return targets_below(reader, through)


def _repeats_values(node: fx.Node) -> bool:
    """Whether a node makes an image larger by repeating values of its own."""
    if node.target in (aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec):
        return True
    is_pad = node.target is aten.pad.default and len(node.args) > 2
    return is_pad and node.args[2] in ("reflect", "replicate", "circular")


# --- what both ways share ------------------------------------------------------------------------

_RESHAPES = {
    aten.reshape.default,
    aten.view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
}
_PERMUTES = {aten.transpose.int, aten.permute.default, aten.mT.default, aten.t.default}
_NOTHING = {aten.clone.default, aten.detach.default, aten.contiguous.default, aten.alias.default}
_DROPOUT = {aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default}


def _does_nothing(node: fx.Node) -> bool:
    if node.target in _DROPOUT:
        return node.args[2] is False
    if node.target in (aten.to.dtype, aten.to.device, aten._to_copy.default):
        source = node.args[0]
        return isinstance(source, fx.Node) and source.meta["val"].dtype == node.meta["val"].dtype
    return node.target in _NOTHING


def _into_layer(
    layer: Layer,
    affine: AffineMap,
    side: Literal["after", "before"],
    absorbed: tuple[fx.Node, ...],
) -> list[Target] | str:
    """Return the map as one vector per channel of the layer; or why it is none."""
    axis = affine.rank - 1 if layer.is_linear else 1
    value = layer.node if side == "after" else layer.input
    vectors = per_channel(affine, axis, int(node_shape(value)[axis]))
    if vectors is None:
        if layer.is_linear:
            return (
                f"{describe(layer.node)} has its features on the last axis of a "
                f"rank-{affine.rank} value, but it normalises another axis"
            )
        return f"the map differs between positions of {describe(layer.node)}"
    return [Target(layer, side, *vectors, absorbed)]


def _lengths(node: fx.Node) -> list[int | str]:
    """Return the shape of a node's value; to compare symbolic lengths would add a guard to them."""
    return [length if isinstance(length, int) else str(length) for length in node_shape(node)]


def _are_ints(shape: tuple[Any, ...]) -> bool:
    return all(isinstance(length, int) for length in shape)


def _permutation(node: fx.Node, rank: int) -> list[int]:
    """Return the order in which a node takes its input's axes."""
    order = list(range(rank))
    if node.target is aten.permute.default:
        return [int(axis) % rank for axis in node.args[1]]  # type: ignore[union-attr, arg-type]
    last_two = (rank - 2, rank - 1)
    is_named = node.target is aten.transpose.int
    axes: Any = node.args[1:3] if is_named else last_two
    first, second = (int(axis) % rank for axis in axes)
    order[first], order[second] = order[second], order[first]
    return order


def _shuffled_channels(value: fx.Node, source: fx.Node) -> list[int]:
    """Return, for each output channel of channel_shuffle, the input channel it is."""
    channels, groups = int(node_shape(source)[1]), int(value.args[1])  # type: ignore[arg-type]
    return np.arange(channels).reshape(groups, -1).T.ravel().tolist()


def _read_elsewhere(value: fx.Node) -> str | None:
    """Return why `value` cannot change its meaning, or None if one node alone reads it."""
    if any(user.op == "output" for user in value.users):
        return f"its input, {describe(value)}, is also an output of the model"
    if len(value.users) == 1 or value.op == "placeholder":
        return None
    others = f"its input, {describe(value)}, is read {len(value.users)} times"
    if any(is_addition(user) for user in value.users) or is_addition(value):
        return f"{others}: it is the residual stream"
    return others
