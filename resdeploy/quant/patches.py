"""What a layer multiplies its weights with: the patches of its input, as rows.

Shapes: N samples, P patches, C input channels of a group, K values of a patch.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from resdeploy.quant.onnx_graph import attribute

__all__ = ["mean_patch", "sample_patches", "supports"]

Array = NDArray[Any]


def supports(node: onnx.NodeProto) -> bool:
    """Whether a layer's patches can be had: Gemm, and Conv of images with explicit padding."""
    if node.op_type == "Gemm":
        return bool(attribute(node, "transA", 0) == 0 and attribute(node, "alpha", 1.0) == 1.0)
    explicit = attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    return explicit and len(attribute(node, "kernel_shape", ())) == 2


def sample_patches(
    node: onnx.NodeProto, values: Array, random: np.random.Generator, *, num: int
) -> Array:
    """Return (groups, P, K): at most `num` patches a sample, at places drawn for each batch."""
    if node.op_type == "Gemm":
        return values[np.newaxis]
    windows = _windows(node, values)
    height, width = windows.shape[2:4]
    places = random.permutation(height * width)[:num]
    chosen = windows[:, :, places // width, places % width]  # N, channels, P, kh, kw
    num_groups = attribute(node, "group", 1)
    n, channels, p, kh, kw = chosen.shape
    grouped = chosen.reshape(n, num_groups, channels // num_groups, p, kh * kw)
    return np.ascontiguousarray(grouped.transpose(1, 0, 3, 2, 4)).reshape(
        num_groups, n * p, channels // num_groups * kh * kw
    )


def mean_patch(node: onnx.NodeProto, values: Array) -> NDArray[np.float64]:
    """Return (groups, K): the mean over all patches of all samples."""
    if node.op_type == "Gemm":
        return np.asarray(values.mean(axis=0, dtype=np.float64))[np.newaxis]
    mean = np.stack([tap.mean(axis=(0, 2, 3), dtype=np.float64) for tap in _taps(node, values)])
    num_groups = attribute(node, "group", 1)  # (taps, channels)
    by_channel = mean.T.reshape(num_groups, -1, len(mean))
    return np.ascontiguousarray(by_channel).reshape(num_groups, -1)


def _windows(node: onnx.NodeProto, values: Array) -> Array:
    kernel_h, kernel_w = attribute(node, "kernel_shape")
    dilation_h, dilation_w = attribute(node, "dilations", [1, 1])
    stride_h, stride_w = attribute(node, "strides", [1, 1])
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = (dilation_h * (kernel_h - 1) + 1, dilation_w * (kernel_w - 1) + 1)
    windows = sliding_window_view(padded, reach, axis=(2, 3))
    return windows[:, :, ::stride_h, ::stride_w, ::dilation_h, ::dilation_w]


def _taps(node: onnx.NodeProto, values: Array) -> Iterator[Array]:
    windows = _windows(node, values)
    for row in range(windows.shape[4]):
        for column in range(windows.shape[5]):
            yield windows[..., row, column]
