"""An affine map of a tensor's values, and how it changes when the tensor is moved about.

A map y = scale * x + shift of a value is held as two arrays of the value's rank, each axis of
length 1 (the same everywhere) or of the value's length. Where axis 0 is the batch, it has length 1.

Each function gives, for a map after an operation, the map before it of the same effect; None where
there is none. The operators are those of `map_rules`, the walk along a graph is `affine_flow`'s.

A shape is a sequence of lengths. One that is not known is anything but an int; two of them are the
same length if they are equal.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.fold.algebra import ExtendedArray

__all__ = [
    "AffineMap",
    "add_constant",
    "along_axis",
    "compose",
    "flatten_axes",
    "join",
    "multiply_by_constant",
    "part",
    "past_constant_factor",
    "past_constant_sum",
    "per_channel",
    "permute",
    "reshape",
    "unshuffle_pixels",
    "whole",
]

Shape = Sequence[Any]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """scale * x + shift, for a value of the arrays' rank."""

    scale: ExtendedArray
    shift: ExtendedArray

    @property
    def rank(self) -> int:
        """The number of axes of the value."""
        return self.scale.ndim

    def each(self, change: Callable[[ExtendedArray], ExtendedArray]) -> "AffineMap":
        """Return the map with `change` made to both arrays."""
        return AffineMap(change(self.scale), change(self.shift))

    def without_shift(self) -> "AffineMap":
        """Return the map's scale alone."""
        return AffineMap(self.scale, np.zeros_like(self.shift))


def along_axis(vector: ExtendedArray, axis: int, rank: int) -> ExtendedArray:
    """Return a vector as an array of `rank` that varies along `axis` alone."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def compose(first: AffineMap, then: AffineMap) -> AffineMap:
    """Return the map that does `first` and `then` in one."""
    return AffineMap(then.scale * first.scale, then.scale * first.shift + then.shift)


def flatten_axes(affine: AffineMap, axes: Iterable[int]) -> AffineMap | None:
    """Return the map with length 1 along `axes`, None if it varies along one of them.

    So it fits values of any length there: pooled, padded, made larger.
    """
    for axis in axes:
        first = affine.each(lambda array, axis=axis: np.take(array, [0], axis=axis))  # type: ignore[misc]
        if (affine.scale != first.scale).any() or (affine.shift != first.shift).any():
            return None
        affine = first
    return affine


def per_channel(
    affine: AffineMap, axis: int, length: int
) -> tuple[ExtendedArray, ExtendedArray] | None:
    """Return (scale, shift), each (length,), if the map varies along `axis` alone."""
    flat = flatten_axes(affine, (k for k in range(affine.rank) if k != axis))
    if flat is None or not {flat.scale.size, flat.shift.size} <= {1, length}:
        return None
    scale, shift = (np.broadcast_to(a.reshape(-1), (length,)) for a in (flat.scale, flat.shift))
    return scale, shift


# --- moving elements about -----------------------------------------------------------------------


def reshape(affine: AffineMap, shape: Shape, wanted: Shape) -> AffineMap | None:
    """Return the map of a value of `shape` as that of the same elements in the shape `wanted`."""
    if affine.scale.shape[0] != 1 or affine.shift.shape[0] != 1 or not wanted:
        return None
    rest, wanted_rest = tuple(shape[1:]), tuple(wanted[1:])
    if _are_ints((*rest, *wanted_rest)) and 0 < math.prod(rest) == math.prod(wanted_rest):
        # The elements of one sample are as many as before, so that the batch is the same too.
        return affine.each(
            lambda array: np.broadcast_to(array, (1, *rest)).reshape(1, *wanted_rest)
        )
    # Else, the map may vary along equal axes at either end, and not between them.
    shorter = min(len(shape), len(wanted))
    lead = _num_equal(shape, wanted, shorter)
    trail = _num_equal(shape[::-1], wanted[::-1], shorter - lead)
    end, between = len(shape) - trail, len(wanted) - lead - trail
    flat = flatten_axes(affine, range(lead, end))
    if flat is None:
        return None
    return flat.each(
        lambda array: array.reshape(array.shape[:lead] + (1,) * between + array.shape[end:])
    )


def _num_equal(shape: Shape, wanted: Shape, limit: int) -> int:
    """Return the number of equal lengths, from the first on, up to `limit`."""
    count = 0
    while count < limit and shape[count] == wanted[count]:
        count += 1
    return count


def permute(affine: AffineMap, order: Sequence[int]) -> AffineMap:
    """Return the map of a value as that of the value whose axis k is its axis `order[k]`."""
    return affine.each(lambda array: array.transpose(order))


def part(affine: AffineMap, axis: int, chosen: Any) -> AffineMap | None:
    """Return the map of the places `chosen` along `axis`: of one part of a value that was joined.

    `chosen` is a sequence of ints, or None where they are not known.
    """
    if affine.scale.shape[axis] == affine.shift.shape[axis] == 1:
        return affine
    if chosen is None:
        return None
    return affine.each(
        lambda array: array if array.shape[axis] == 1 else np.take(array, chosen, axis=axis)
    )


def whole(affine: AffineMap, axis: int, length: int, chosen: Any) -> AffineMap | None:
    """Return the map of the whole value of which `chosen` along `axis` is a part.

    `chosen` is None where it is not known. The places that are not chosen keep their values.
    """
    if affine.scale.shape[axis] == affine.shift.shape[axis] == 1:
        return affine
    return None if chosen is None else join([(chosen, affine)], axis, length)


def join(
    parts: Sequence[tuple[Sequence[int], AffineMap]], axis: int, length: int
) -> AffineMap | None:
    """Return the map of a value of which each part, its places along `axis`, has a map of its own.

    None where a place that is in two parts, or twice in one, would have to change in two ways. The
    places in no part keep their values.
    """

    def assemble(arrays: Sequence[ExtendedArray], elsewhere: float) -> ExtendedArray | None:
        around = np.broadcast_shapes(
            *((*array.shape[:axis], 1, *array.shape[axis + 1 :]) for array in arrays)
        )
        result = np.full((*around[:axis], length, *around[axis + 1 :]), np.nan, np.longdouble)
        for (places, _), array in zip(parts, arrays, strict=True):
            shape = (*around[:axis], len(places), *around[axis + 1 :])
            if array.shape[axis] not in (1, len(places)):
                return None
            for at, place in enumerate(places):
                slot = (slice(None),) * axis + (place,)
                new = np.broadcast_to(array, shape)[(slice(None),) * axis + (at,)]
                if not (np.isnan(result[slot]) | (result[slot] == new)).all():
                    return None
                result[slot] = new
        return np.where(np.isnan(result), np.longdouble(elsewhere), result)

    scale = assemble([affine.scale for _, affine in parts], 1)
    shift = assemble([affine.shift for _, affine in parts], 0)
    if scale is None or shift is None:
        return None
    return flatten_axes(AffineMap(scale, shift), [axis]) or AffineMap(scale, shift)


def unshuffle_pixels(
    affine: AffineMap, factor: int, *, depth_first: bool = False
) -> AffineMap | None:
    """Return the map before blocks of channels became blocks of `factor` x `factor` pixels.

    Pixel (i, j) of output channel c, of C, is input channel c * factor^2 + i * factor + j, or
    (i * factor + j) * C + c if `depth_first`.
    """
    flat = None if affine.rank != 4 else flatten_axes(affine, (2, 3))
    if flat is None:
        return None
    blocks = factor * factor

    def spread(array: ExtendedArray) -> ExtendedArray:
        if array.shape[1] == 1:
            return array
        return np.tile(array, (1, blocks, 1, 1)) if depth_first else np.repeat(array, blocks, 1)

    return flat.each(spread)


# --- taking in constants -------------------------------------------------------------------------


def add_constant(
    affine: AffineMap, constant: npt.ArrayLike, shape: Shape, *, sign: int = 1
) -> AffineMap | None:
    """Return scale * (x + sign * constant) + shift as a map of x, a value of `shape`."""
    array = _as_part_of_map(constant, affine.rank, shape)
    if array is None:
        return None
    return AffineMap(affine.scale, affine.scale * (sign * array) + affine.shift)


def multiply_by_constant(
    affine: AffineMap, constant: npt.ArrayLike, shape: Shape, *, divide: bool = False
) -> AffineMap | None:
    """Return scale * (x * constant) + shift, or with x / constant, as a map of x."""
    array = _as_part_of_map(constant, affine.rank, shape)
    if array is None or (divide and (array == 0).any()):
        return None
    return AffineMap(affine.scale * (1 / array if divide else array), affine.shift)


def past_constant_sum(
    affine: AffineMap,
    constant: npt.ArrayLike,
    shape: Shape,
    *,
    signs: tuple[int, int] = (1, 1),
) -> AffineMap | None:
    """Return the map of y = a x + b c that has the effect of `affine` on x; `signs` are (a, b).

    a (scale x + shift) + b c  ==  scale y + (a shift + (1 - scale) b c)
    """
    array = _as_part_of_map(constant, affine.rank, shape)
    if array is None:
        return None
    of_value, of_constant = signs
    moved = of_value * affine.shift + (1 - affine.scale) * (of_constant * array)
    return AffineMap(affine.scale, moved)


def past_constant_factor(
    affine: AffineMap, constant: npt.ArrayLike, shape: Shape, *, divide: bool = False
) -> AffineMap | None:
    """Return the map of y = c x, or x / c, that has the effect of `affine` on x.

    c (scale x + shift)  ==  scale y + c shift
    """
    array = _as_part_of_map(constant, affine.rank, shape)
    if array is None or (divide and (array == 0).any()):
        return None
    return AffineMap(affine.scale, affine.shift * (1 / array if divide else array))


def _as_part_of_map(constant: npt.ArrayLike, rank: int, shape: Shape) -> ExtendedArray | None:
    """Return a constant as an array of `rank`, None if it does more than act on a value of `shape`.

    It does more if it has a value for each sample, or makes the value larger; a number that is not
    finite has no inverse and no place in a weight.
    """
    array = np.asarray(constant, np.longdouble)
    if len(shape) != rank or array.ndim > rank or not np.isfinite(array).all():
        return None
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    fits = all(a in (1, b) for a, b in zip(array.shape, shape, strict=True))
    return array if fits and array.ndim and array.shape[0] == 1 else None


def _are_ints(shape: Shape) -> bool:
    return all(isinstance(length, int) for length in shape)
