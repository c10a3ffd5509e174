"""im2col: a layer's input unfolded into rows, the patches that its weights are multiplied with.

Shapes: N samples, P patches, C input channels of a group, K values of a patch, G groups.
"""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from resdeploy.graph.affine_layer import AffineLayer, Array

__all__ = ["can_unfold", "mean_patch", "unfold"]


def can_unfold(layer: AffineLayer) -> bool:
    """True for a layer known to im2col: Gemm, and Conv of images with explicit padding."""
    if layer.is_linear:
        return not layer.reads_columns and layer.alpha == 1.0
    return layer.auto_pad == "NOTSET" and len(layer.kernel) == 2


def unfold(layer: AffineLayer, values: Array, random: np.random.Generator, *, num: int) -> Array:
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


def mean_patch(layer: AffineLayer, values: Array) -> NDArray[np.float64]:
    """Return (G, K): the mean over all patches of all samples."""
    if layer.is_linear:
        return np.asarray(values.mean(axis=0, dtype=np.float64))[np.newaxis]
    mean = np.stack([tap.mean(axis=(0, 2, 3), dtype=np.float64) for tap in _taps(layer, values)])
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


def _taps(layer: AffineLayer, values: Array) -> Iterator[Array]:
    windows = _windows(layer, values)
    for row in range(windows.shape[4]):
        for column in range(windows.shape[5]):
            yield windows[..., row, column]
