"""Operators that onnx's evaluator gets wrong, or computes in float32, written out in float64.

Each is as the specification of the model's opset has it. What was wrong (onnx 1.23):
BatchNormalization fails before opset 9; Softmax and LogSoftmax before opset 13 are one row over all
axes from `axis` on; LRN computes as many channels as there are samples; LpNormalization with p = 1
sums without absolute values; Erf, Gelu, HardSwish and GroupNormalization (opset 21) round to
float32; Mean does not broadcast; Unsqueeze before opset 13 takes its axes in turn; Pad does not
crop; ConstantOfShape makes a float32.
"""

import math

import numpy as np
from onnx.reference.op_run import OpRun

from resdeploy.graph.affine_layer import Array
from resdeploy.graph.float64_resize import Resize, Upsample
from resdeploy.graph.float64_windows import AveragePool, Conv, ConvTranspose, LpPool, MaxPool

__all__ = ["WRITTEN_OUT"]


class BatchNormalization(OpRun):
    """With running statistics, as every opset from 7 on defines it at inference."""

    def _run(self, x, gamma, beta, mean, var, epsilon=1e-5, **_) -> tuple[Array]:  # type: ignore[no-untyped-def]
        gamma_C, beta_C, mean_C, var_C = (
            value.reshape(-1, *[1] * (x.ndim - 2)) for value in (gamma, beta, mean, var)
        )
        return (gamma_C * (x - mean_C) / np.sqrt(var_C + epsilon) + beta_C,)


class GroupNormalization(OpRun):
    """A scale for each group before opset 21, for each channel from then on."""

    def _run(self, x, scale, bias, epsilon=1e-5, num_groups=1, **_) -> tuple[Array]:  # type: ignore[no-untyped-def]
        rows = x.reshape(len(x), num_groups, -1)
        centred = rows - rows.mean(axis=2, keepdims=True)
        y = (centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + epsilon)).reshape(x.shape)
        if self.run_params["opsets"][""] < 21:
            scale, bias = (np.repeat(v, x.shape[1] // num_groups) for v in (scale, bias))
        along = (-1,) + (1,) * (x.ndim - 2)
        return (y * scale.reshape(along) + bias.reshape(along),)


class LRN(OpRun):
    """Over `size` channels, of which the larger half lies behind."""

    def _run(self, x, size, alpha=1e-4, beta=0.75, bias=1.0) -> tuple[Array]:  # type: ignore[no-untyped-def]
        before, behind = (size - 1) // 2, size // 2
        padded = np.pad(x**2, [(0, 0), (before, behind), *[(0, 0)] * (x.ndim - 2)])
        squares = sum(padded[:, at : at + x.shape[1]] for at in range(size))
        return (x / (bias + float(alpha) / size * squares) ** float(beta),)


class LpNormalization(OpRun):
    """A norm of zero leaves zeros."""

    def _run(self, x, axis=-1, p=2) -> tuple[Array]:  # type: ignore[no-untyped-def]
        norm = np.linalg.norm(x, ord=p, axis=axis, keepdims=True)
        return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)


class LogSoftmax(OpRun):
    """Before opset 13, over all axes from `axis` on."""

    def _run(self, x, axis=-1) -> tuple[Array]:  # type: ignore[no-untyped-def]
        rows = x
        if self.run_params["opsets"][""] < 13:
            rows, axis = x.reshape(math.prod(x.shape[: axis % x.ndim]), -1), 1
        shifted = rows - rows.max(axis=axis, keepdims=True, initial=-np.inf)
        y = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
        return (y.reshape(x.shape),)


class Softmax(LogSoftmax):
    """Before opset 13, over all axes from `axis` on."""

    def _run(self, x, axis=-1) -> tuple[Array]:  # type: ignore[no-untyped-def]
        return (np.exp(super()._run(x, axis)[0]),)


class Erf(OpRun):
    """The error function of the C library."""

    def _run(self, x) -> tuple[Array]:  # type: ignore[no-untyped-def]
        return (_erf(x),)


class Gelu(OpRun):
    """With the error function, or with tanh."""

    def _run(self, x, approximate="none") -> tuple[Array]:  # type: ignore[no-untyped-def]
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + _erf(x / math.sqrt(2))),)


class HardSwish(OpRun):
    """The input times its own clipped sixth, which onnx has in float32."""

    def _run(self, x) -> tuple[Array]:  # type: ignore[no-untyped-def]
        return (x * np.clip(x / 6 + 0.5, 0, 1),)


def _erf(x: Array) -> Array:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), np.float64)


class Mean(OpRun):
    """Of inputs that broadcast."""

    def _run(self, *inputs) -> tuple[Array]:  # type: ignore[no-untyped-def]
        return (np.asarray(sum(inputs[1:], inputs[0]) / len(inputs)),)


class Unsqueeze(OpRun):
    """Axes of the result, in any order."""

    def _run(self, x, axes_input=None, axes=None) -> tuple[Array]:  # type: ignore[no-untyped-def]
        places = axes if axes_input is None else axes_input
        return (np.expand_dims(x, tuple(int(place) for place in places)),)


class Pad(OpRun):
    """Negative pads crop, before the others are added."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, pads_input=None, value_input=None, axes=None, mode="constant", pads=None, value=0.0
    ) -> tuple[Array]:
        numbers = pads if pads_input is None else [int(pad) for pad in pads_input]
        fill = value if value_input is None else value_input
        spans = [(0, 0)] * x.ndim
        places = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
        for place, begin, end in zip(places, numbers, numbers[len(places) :], strict=False):
            spans[place] = (begin, end)
        kept = tuple(
            slice(max(0, -begin), size - max(0, -end))
            for size, (begin, end) in zip(x.shape, spans, strict=True)
        )
        added = [(max(0, begin), max(0, end)) for begin, end in spans]
        given = {"constant_values": np.asarray(fill).item()} if mode == "constant" else {}
        return (np.pad(x[kept], added, mode=mode, **given),)


class ConstantOfShape(OpRun):
    """Zeros of float64, or as many of the value given."""

    def _run(self, shape, value=None) -> tuple[Array]:  # type: ignore[no-untyped-def]
        one = np.zeros(1) if value is None else value
        return (np.full(tuple(shape), one[0], one.dtype),)


WRITTEN_OUT: dict[str, type[OpRun]] = {
    operator.__name__: operator
    for operator in (
        *(AveragePool, BatchNormalization, ConstantOfShape, Conv, ConvTranspose, Erf, Gelu),
        *(
            GroupNormalization,
            HardSwish,
            LogSoftmax,
            LpNormalization,
            LpPool,
            LRN,
            MaxPool,
            Mean,
            Pad,
        ),
        *(Resize, Softmax, Unsqueeze, Upsample),
    )
}
