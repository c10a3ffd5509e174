"""Saturation: layers with other results on an x86 CPU without VNNI.

Such a CPU multiplies 8-bit numbers with VPMADDUBSW, which adds each two neighbouring products in
16 bits and cuts the sum off at 32767: 255 * (127 + 127) is 64770. With 7-bit weights the largest
sum is 255 * (64 + 64) = 32640, and nothing is cut off.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from resdeploy.quant.onnx_graph import Constants, layers, read_layer
from resdeploy.quant.qdq import LayerNames

__all__ = ["lacks_vnni", "saturating_layers"]

_LARGEST_SUM = 2**15 - 1
_LARGEST_INPUT = 255
_WITHOUT_SATURATION = ("avx512_vnni", "avx_vnni", "amx_int8")


def lacks_vnni(cpu_features: Mapping[str, bool]) -> bool:
    """True for an x86 CPU that adds products in 16 bits, by `read_cpu_features`."""
    is_x86 = "avx2" in cpu_features
    return is_x86 and not any(cpu_features.get(name, False) for name in _WITHOUT_SATURATION)


def saturating_layers(model: onnx.ModelProto, quantized: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the layers with two neighbouring weights whose products could overflow.

    Neighbours are those of adjacent input channels at one place of the kernel, the order in which
    the runtime lays out images.
    """
    constants, integers = Constants(model), Constants(quantized)
    found = []
    for node in layers(model, constants):
        name = LayerNames(node).weight
        if name not in integers:
            continue
        weight = integers[name].astype(np.int64)
        weight_OIK = read_layer(node, constants).by_output(weight)
        rows = np.moveaxis(weight_OIK, 1, -1).reshape(len(weight_OIK), -1)
        even = rows[:, : rows.shape[1] // 2 * 2]
        sums = np.abs(even[:, 0::2] + even[:, 1::2]).max(initial=0)
        # Of opposite signs, either product may be alone: it is never too large by itself.
        if sums * _LARGEST_INPUT > _LARGEST_SUM:
            found.append(node.name)
    return tuple(found)
