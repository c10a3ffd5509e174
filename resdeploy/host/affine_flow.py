"""Carry an affine map through a functional graph to the layers it can be folded into.

A map y = scale * x + shift of a value is held as two arrays of the value's rank, each axis of
length 1 (the same everywhere) or of the value's length; the batch axis always has length 1.

Upwards, to the layers that compute the value. The map crosses

1. what does nothing at inference: dropout, clone;
2. what moves elements about: transpose, permute, reshape, flatten, pixel shuffle, channel shuffle;
3. averages over windows without counted padding, whose weights add up to 1; max pooling, if no
   scale is negative; what repeats values: nearest upsampling, padding that is not constant;
4. concatenation, where it parts, and addition, where both sides take the scale and one the shift;
5. slices: what they cut away is left alone;
6. sums and products with constants, which it takes in.

Downwards, to the layer that alone reads the value. The map crosses 1 to 3; it ends in a layer that
sees no zeros beside the value, unless the shift is zero.

It stops, with the reason, at anything else, and at any value that has another reader or is an
output of the model: that reader must not see the change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import fx

from resdeploy.algebra import ExtendedArray
from resdeploy.host.layers import Layer, as_layer, describe, is_addition, node_shape

__all__ = ["AffineMap", "Target", "along_axis", "targets_above", "targets_below"]

aten = torch.ops.aten

Constant = Callable[[fx.Node], torch.Tensor | None]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """scale * x + shift, for a value of the arrays' rank."""

    scale: ExtendedArray
    shift: ExtendedArray

    def each(self, change: Any) -> "AffineMap | None":
        """Return the map with `change` made to both arrays; None if it cannot be made."""
        scale, shift = change(self.scale), change(self.shift)
        return None if scale is None or shift is None else AffineMap(scale, shift)


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


def along_axis(vector: ExtendedArray, axis: int, rank: int) -> ExtendedArray:
    """Return a vector as an array of `rank` that varies along `axis` alone."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


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
    operand = arguments[1]
    if isinstance(operand, fx.Node):
        tensor = constant(operand)
        if tensor is None or len(node_shape(arguments[0])) != affine.scale.ndim:
            return None
        array = tensor.detach().cpu().double().numpy().astype(np.longdouble)
    elif isinstance(operand, int | float):
        array = np.asarray(operand, np.longdouble)
    else:
        return None
    rank = affine.scale.ndim
    array = array.reshape((1,) * (rank - array.ndim) + array.shape) if array.ndim <= rank else array
    if array.ndim != rank or array.shape[0] != 1 or not np.isfinite(array).all():
        return None
    if is_sum:
        signed = -array if value.target is aten.sub.Tensor else array
        return AffineMap(affine.scale, affine.scale * signed + affine.shift)
    if value.target is aten.div.Tensor:
        if (array == 0).any():
            return None
        array = 1 / array
    return AffineMap(affine.scale * array, affine.shift)


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
    for part, length in zip(parts, lengths, strict=True):
        share = affine.each(_slice(axis, start, length))
        if share is None:
            return f"its input, {describe(value)}, joins along the batch"
        found = targets_above(part, share, constant, absorbed)
        if isinstance(found, str):
            return found
        targets += found
        start += length
    return targets


def _slice(axis: int, start: int, length: Any) -> Any:
    def change(array: ExtendedArray) -> ExtendedArray | None:
        if array.shape[axis] == 1:
            return array
        if not isinstance(length, int):
            return None
        return np.take(array, range(start, start + length), axis=axis)

    return change


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
    for summand, share in (
        (first, affine),
        (second, AffineMap(affine.scale, np.zeros_like(affine.shift))),
    ):
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
        return affine.each(_reshape(node_shape(value), node_shape(source)))
    if target in _PERMUTES:
        order = np.argsort(_permutation(value, len(node_shape(source))))
        return affine.each(lambda array: array.transpose(order))
    if target is aten.pixel_shuffle.default:
        return affine.each(_unshuffle_pixels(int(value.args[1])))  # type: ignore[arg-type]
    if target is aten.channel_shuffle.default:
        order = np.argsort(_shuffled_channels(value, source))
        return affine.each(lambda array: array[:, order] if array.shape[1] > 1 else array)
    if target is aten.slice.Tensor:
        return _back_through_slice(value, source, affine)
    if _keeps_channels(value, affine) and _same_everywhere(affine, range(2, affine.scale.ndim)):
        return affine
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
    chosen = np.arange(length)[slice(start, end, step)]

    def whole(array: ExtendedArray, elsewhere: float) -> ExtendedArray:
        shape = list(array.shape)
        shape[axis] = length
        result = np.full(shape, elsewhere, np.longdouble)
        place: list[Any] = [slice(None)] * rank
        place[axis] = chosen
        result[tuple(place)] = array
        return result

    return AffineMap(whole(affine.scale, 1), whole(affine.shift, 0))


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
    return affine if _same_everywhere(affine, axes) else None


# --- downwards -----------------------------------------------------------------------------------


_NO_LAYER_BELOW = "no layer alone reads its output"


def targets_below(value: fx.Node, affine: AffineMap) -> list[Target] | str:
    """Return the layer that reads the mapped `value`, with the map to fold in before it.

    `value` is the result of what the map stands for; its one reader is changed, not itself.
    """
    readers = list(value.users)
    if len(readers) != 1 or readers[0].op == "output":
        return _NO_LAYER_BELOW
    reader = readers[0]
    if reader.all_input_nodes.count(value) != 1:
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
        through = affine if _same_everywhere(affine, range(2, affine.scale.ndim)) else None
    elif reader.target in _RESHAPES:
        through = affine.each(_reshape(node_shape(value), node_shape(reader)))
    elif reader.target in _PERMUTES:
        order = _permutation(reader, affine.scale.ndim)
        through = affine.each(lambda array: array.transpose(order))
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
    rank = affine.scale.ndim
    axis = rank - 1 if layer.is_linear else 1
    others = [k for k in range(rank) if k != axis]
    if not _same_everywhere(affine, others):
        if layer.is_linear:
            return (
                f"{describe(layer.node)} has its features on the last axis of a rank-{rank} value, "
                "but it normalises another axis"
            )
        return f"the map differs between positions of {describe(layer.node)}"
    value = layer.node if side == "after" else layer.input
    length = node_shape(value)[axis]
    vectors = []
    for array in (affine.scale, affine.shift):
        vector = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)[:, 0]
        vectors.append(np.broadcast_to(vector, (length,)))
    return [Target(layer, side, vectors[0], vectors[1], absorbed)]


def _same_everywhere(affine: AffineMap, axes: Sequence[int] | range) -> bool:
    """Whether the map does not vary along `axes`."""
    return all(
        (array == np.take(array, [0], axis=axis)).all()
        for array in (affine.scale, affine.shift)
        for axis in axes
    )


def _reshape(shape: tuple[Any, ...], wanted: tuple[Any, ...]) -> Any:
    """Return the change from arrays of a value of `shape` to those of that value as `wanted`."""

    def change(array: ExtendedArray) -> ExtendedArray | None:
        rest, wanted_rest = shape[1:], wanted[1:]
        if str(shape[0]) == str(wanted[0]) and _are_ints(rest) and _are_ints(wanted_rest):
            return np.broadcast_to(array, (1, *rest)).reshape(1, *wanted_rest)
        # The batch is merged or split: only what the map varies along must stay as it is.
        common = 0
        for a, b in zip(reversed(shape), reversed(wanted), strict=False):
            if not (isinstance(a, int) and a == b):
                break
            common += 1
        lead, trail = array.shape[: array.ndim - common], array.shape[array.ndim - common :]
        if any(length != 1 for length in lead):
            return None
        return array.reshape((1,) * (len(wanted) - common) + trail)

    return change


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


def _unshuffle_pixels(factor: int) -> Any:
    """Return the change from a map of pixel_shuffle's output to one of its input.

    Output channel c, pixel (i, j) of its block, is input channel c * factor^2 + i * factor + j.
    """

    def change(array: ExtendedArray) -> ExtendedArray | None:
        if array.ndim != 4 or array.shape[2:] != (1, 1):
            return None
        return np.repeat(array, factor * factor, axis=1)

    return change


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
