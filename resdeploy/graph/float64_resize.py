"""Resize and Upsample in float64: one matrix for each axis.

    y[r] = sum over o of weight(o - c(r)) x[o]

with c(r) the place in the input that place r of the output stands for. onnx's own evaluator visits
each element of the output in Python, and takes a size that is no whole number for that of the
output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from resdeploy.graph.affine_layer import Array

__all__ = ["Axis", "Resize", "Upsample", "nearest", "places", "resized_axes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis that is resized.

    Attributes:
        axis: its number.
        length: before.
        resized: after.
        scale: of a place in the output to one in the input; resized / length, or as given.
    """

    axis: int
    length: int
    resized: int
    scale: float


def resized_axes(
    shape: tuple[int, ...], scales: Array | None, sizes: Array | None, axes: Any, policy: str
) -> list[Axis]:
    """Return the resized axes, without those that stay as they are."""
    numbers = [axis % len(shape) for axis in axes or range(len(shape))]
    if sizes is not None and sizes.size:
        factors = [float(size / shape[axis]) for axis, size in zip(numbers, sizes, strict=True)]
        results = [int(size) for size in sizes]
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(numbers)
            results = [math.floor(factor * shape[axis] + 0.5) for axis in numbers]
    else:
        assert scales is not None
        factors = [float(scale) for scale in scales]
        results = [int(shape[axis] * scale) for axis, scale in zip(numbers, factors, strict=True)]
    found = [
        Axis(axis=axis, length=shape[axis], resized=result, scale=factor)
        for axis, result, factor in zip(numbers, results, factors, strict=True)
    ]
    return [axis for axis in found if axis.scale != 1 or axis.length != axis.resized]


class Resize(OpRun):
    """To the nearest value, linear or cubic, each axis by itself."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, *inputs, mode="nearest", coordinate_transformation_mode="half_pixel",
        nearest_mode="round_prefer_floor", cubic_coeff_a=-0.75, exclude_outside=0, antialias=0,
        axes=None, keep_aspect_ratio_policy="stretch", scales=None, **_,
    ) -> tuple[Array]:  # fmt: skip
        if len(inputs) < 2:  # before opset 11: no modes but these
            coordinate_transformation_mode, nearest_mode = "asymmetric", "floor"
            scales = inputs[0] if inputs else scales
        else:
            scales = inputs[1]
        sizes = inputs[2] if len(inputs) > 2 else None
        for axis in resized_axes(x.shape, scales, sizes, axes, keep_aspect_ratio_policy):
            at = places(axis, coordinate_transformation_mode, np.dtype(np.float64))
            if mode == "nearest":
                x = np.take(x, nearest(at, axis, nearest_mode), axis=axis.axis)
                continue
            stretch = min(1.0, axis.scale) if antialias else 1.0
            matrix = _matrix(
                at, axis, stretch, mode == "cubic", float(cubic_coeff_a), exclude_outside
            )
            x = np.moveaxis(np.moveaxis(x, axis.axis, -1) @ matrix.T, -1, axis.axis)
        return (x,)


class Upsample(Resize):
    """Resize as it was before opset 10."""


def nearest(at: Array, axis: Axis, rounding: str) -> Array:
    """Return which values of the input are taken at these places."""
    rounded = {
        "round_prefer_floor": lambda: np.ceil(at - 0.5),
        "round_prefer_ceil": lambda: np.floor(at + 0.5),
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
    }[rounding]()
    return np.asarray(rounded.clip(0, axis.length - 1).astype(np.int64))


def places(axis: Axis, transformation: str, dtype: np.dtype[Any]) -> Array:
    """Return the place in the input of each place of the output, computed in `dtype`."""
    at = np.arange(axis.resized, dtype=dtype)
    half, scale = dtype.type(0.5), dtype.type(axis.scale)
    if transformation == "asymmetric":
        return np.asarray(at / scale)
    if transformation == "align_corners":
        steps = dtype.type(max(1, axis.resized - 1))
        return np.asarray(at * dtype.type(axis.length - 1) / steps)
    if transformation == "pytorch_half_pixel" and axis.resized == 1:
        return np.zeros_like(at)
    middles = (at + half) / scale - half
    if transformation == "half_pixel_symmetric":
        adjustment = dtype.type(axis.resized) / (scale * dtype.type(axis.length))
        return np.asarray(dtype.type(axis.length / 2) * (1 - adjustment) + middles)
    return np.asarray(middles)


def _matrix(
    at: Array, axis: Axis, stretch: float, is_cubic: bool, a: float, exclude_outside: bool
) -> Array:
    """Return the weights (resized, length); what lies outside is the nearest value inside."""
    reach = math.ceil((2 if is_cubic else 1) / stretch)
    matrix = np.zeros((axis.resized, axis.length))
    rows: Sequence[int] = range(axis.resized)
    firsts = np.floor(at).astype(np.int64)
    for offset in range(-reach, reach + 1):
        columns = firsts + offset
        weights = _weight(np.abs(columns - at) * stretch, is_cubic, a)
        if exclude_outside:
            weights = np.where((columns >= 0) & (columns < axis.length), weights, 0)
        matrix[rows, columns.clip(0, axis.length - 1)] += weights
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))


def _weight(distance: Array, is_cubic: bool, a: float) -> Array:
    if not is_cubic:
        return np.asarray(np.maximum(0, 1 - distance))
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
