"""Weights gone wrong: channels exchanged, bits flipped, biases lost, too few bits."""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from onnx import helper

from resdeploy.verify.faults.fault_model import (
    Array,
    Edit,
    Fault,
    UnfoldedLayer,
    Workpiece,
    in_one_layer,
)

__all__ = ["FAULTS"]


def _channel_scaled(by: float, weight: Array, bias: Array, _: UnfoldedLayer) -> None:
    weight[0] *= 1 + by
    bias[0] *= 1 + by


def _outputs_swapped(weight: Array, bias: Array, _: UnfoldedLayer) -> None:
    weight[[0, -1]], bias[[0, -1]] = weight[[-1, 0]], bias[[-1, 0]]


def _inputs_swapped(weight: Array, _bias: Array, _: UnfoldedLayer) -> None:
    weight[:, [0, -1]] = weight[:, [-1, 0]]


def _kernel_transposed(weight: Array, _bias: Array, _: UnfoldedLayer) -> None:
    if weight.ndim == 4 and weight.shape[2] == weight.shape[3]:
        weight[:] = weight.swapaxes(2, 3).copy()


def _bit_flipped(power: int, weight: Array, _bias: Array, _: UnfoldedLayer) -> None:
    """Flip the bit that is 2^power of the largest weight, or next to it."""
    flat = weight.reshape(-1)
    flat.view(np.uint32)[np.abs(flat).argmax()] ^= np.uint32(1 << (23 + power))


def _sign_flipped(weight: Array, _bias: Array, _: UnfoldedLayer) -> None:
    weight.reshape(-1)[np.abs(weight).argmax()] *= -1


def _not_a_number(weight: Array, _bias: Array, _: UnfoldedLayer) -> None:
    weight.reshape(-1)[0] = np.nan


def _no_bias(_weight: Array, bias: Array, _: UnfoldedLayer) -> None:
    bias[:] = 0


def _no_bias_in_one_channel(_weight: Array, bias: Array, _: UnfoldedLayer) -> None:
    bias[np.abs(bias).argmax()] = 0


def _bias_off_by_ulps(_weight: Array, bias: Array, _: UnfoldedLayer) -> None:
    place = np.abs(bias).argmax()
    bias[place] += 64 * np.spacing(bias[place])


def _rounded(bits: int, array: Array) -> Array:
    """Round to so many significant bits, ties to even."""
    mantissa, exponent = np.frexp(array.astype(np.float64))
    return np.asarray(np.ldexp(np.round(mantissa * 2.0**bits) / 2.0**bits, exponent))


def _int8(array: Array) -> Array:
    rows = array.reshape(len(array), -1)
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    step[step == 0] = 1
    return np.asarray((np.round(rows / step) * step).reshape(array.shape))


def _weights_as(
    change: Callable[[Array], Array],
    work: Workpiece,
    *,
    activations: int | None = None,
) -> onnx.ModelProto:
    """Store every weight in fewer bits; cast the inputs of layers to the type `activations`."""
    edit = Edit(work.model)
    nodes = list(edit.affine_nodes())
    for node in {node.input[1]: node for node in nodes}.values():
        edit.set_weight(node, change(edit.weight(node)))
    if activations is None:
        return edit.model
    for k, node in enumerate(nodes):
        narrow, wide = f"fault_narrow_{k}", f"fault_wide_{k}"
        edit.insert_before(
            node,
            [
                helper.make_node("Cast", [node.input[0]], [narrow], to=activations),
                helper.make_node("Cast", [narrow], [wide], to=onnx.TensorProto.FLOAT),
            ],
        )
        node.input[0] = wide
    return edit.model


FAULTS: tuple[Fault, ...] = (
    in_one_layer("one channel scaled by 1 + 1e-3", partial(_channel_scaled, 1e-3)),
    in_one_layer("one channel scaled by 1 + 1e-4", partial(_channel_scaled, 1e-4)),
    in_one_layer("one channel scaled by 1 + 1e-5", partial(_channel_scaled, 1e-5)),
    in_one_layer("two output channels swapped", _outputs_swapped),
    in_one_layer("two input channels swapped", _inputs_swapped),
    in_one_layer("kernels transposed", _kernel_transposed),
    in_one_layer("one weight: bit 2^-4 flipped", partial(_bit_flipped, -4)),
    in_one_layer("one weight: bit 2^-10 flipped", partial(_bit_flipped, -10)),
    in_one_layer("one weight: bit 2^-18 flipped", partial(_bit_flipped, -18)),
    in_one_layer("one weight: sign flipped", _sign_flipped),
    in_one_layer("one weight: not a number", _not_a_number),
    in_one_layer("bias dropped, one layer", _no_bias),
    in_one_layer("bias dropped, one channel", _no_bias_in_one_channel),
    in_one_layer("bias of one channel off by 64 ulp", _bias_off_by_ulps),
    Fault(
        name="TF32: 10 bits of layers' weights and inputs",
        plant=partial(_weights_as, partial(_rounded, 11), activations=onnx.TensorProto.FLOAT16),
    ),
    Fault(name="weights in float16", plant=partial(_weights_as, lambda a: a.astype(np.float16))),
    Fault(
        name="bfloat16: layers' weights and inputs",
        plant=partial(_weights_as, partial(_rounded, 8), activations=onnx.TensorProto.BFLOAT16),
    ),
    Fault(name="weights in int8, per channel", plant=partial(_weights_as, _int8)),
)
