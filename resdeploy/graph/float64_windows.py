"""Convolutions and pools in float64: one step for each tap of the kernel, over all places at once.

onnx's own Conv copies each window of the input, its ConvTranspose fails with groups, and its pools
misplace windows or count padding wrongly where sizes are rounded up (`ceil_mode`).

Shapes: N samples, C channels, G groups, I and O channels of a group, K taps of the kernel.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from resdeploy.graph.affine_layer import Array

__all__ = ["AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Windows:
    """Places of a kernel along each spatial axis.

    Attributes:
        kernel: taps.
        steps: strides.
        gaps: dilations.
        begins: padding before.
        ends: padding after, as asked for.
        sizes: places.
        extras: what the last window reads beyond the padding, where sizes are rounded up.
    """

    kernel: tuple[int, ...]
    steps: tuple[int, ...]
    gaps: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    sizes: tuple[int, ...]
    extras: tuple[int, ...]

    def pad(self, x: Array, value: Any) -> Array:
        """Return x with all that its windows read."""
        zipped = zip(self.begins, self.ends, self.extras, strict=True)
        spatial = [(begin, end + extra) for begin, end, extra in zipped]
        return np.pad(x, [(0, 0), (0, 0), *spatial], constant_values=value)

    def counts(self, spatial: tuple[int, ...], *, padding: bool) -> Array:
        """Return how many taps of each window lie in the input, or also in the padding."""
        inside = []
        for axis, size in enumerate(spatial):
            begin, end = self.begins[axis], self.ends[axis]
            places = np.arange(self.sizes[axis])[:, None] * self.steps[axis]
            places = places + np.arange(self.kernel[axis]) * self.gaps[axis] - begin
            low, high = (-begin, size + end) if padding else (0, size)
            inside.append(((low <= places) & (places < high)).sum(axis=1))
        return np.asarray(functools.reduce(np.multiply.outer, inside))

    def taps(self, padded: Array) -> Iterator[Array]:
        """Yield what each tap reads, of the sizes of the output."""
        for tap in itertools.product(*map(range, self.kernel)):
            yield padded[..., *_window(tap, self.gaps, self.steps, self.sizes)]


def _windows(
    spatial: tuple[int, ...],
    kernel: Any,
    *,
    auto_pad: str = "NOTSET",
    pads: Any = None,
    strides: Any = None,
    dilations: Any = None,
    ceil_mode: int = 0,
) -> _Windows:
    """Return the places of a kernel, as the specification has them.

    With `ceil_mode` the number of places is rounded up, but no window begins beyond the input and
    the padding before it.
    """
    dims = len(spatial)
    steps, gaps = tuple(strides or (1,) * dims), tuple(dilations or (1,) * dims)
    spans = [gap * (taps - 1) + 1 for gap, taps in zip(gaps, kernel, strict=True)]
    begins, ends = _padding(auto_pad, pads, spatial, spans, steps)
    sizes, extras = [], []
    for size, begin, end, span, step in zip(spatial, begins, ends, spans, steps, strict=True):
        free = size + begin + end - span
        count = (-(-free // step) if ceil_mode else free // step) + 1
        if ceil_mode and (count - 1) * step >= size + begin:
            count -= 1
        sizes.append(count)
        extras.append(max(0, (count - 1) * step - free))
    return _Windows(
        kernel=tuple(kernel),
        steps=steps,
        gaps=gaps,
        begins=tuple(begins),
        ends=tuple(ends),
        sizes=tuple(sizes),
        extras=tuple(extras),
    )


class Conv(OpRun):
    """One matrix product for each tap of the kernel."""

    def _run(self, x, w, b=None, group=1, kernel_shape=None, **places) -> tuple[Array]:  # type: ignore[no-untyped-def]
        windows = _windows(x.shape[2:], w.shape[2:], **places)
        padded = windows.pad(x, 0)
        x_NGIK = padded.reshape(len(x), group, -1, *padded.shape[2:])
        w_GOIK = w.reshape(group, -1, *w.shape[1:])
        y_NGOK = np.zeros((len(x), group, w_GOIK.shape[1], int(np.prod(windows.sizes))))
        taps = itertools.product(*map(range, windows.kernel))
        for tap, read in zip(taps, windows.taps(x_NGIK), strict=True):
            y_NGOK += w_GOIK[..., *tap] @ read.reshape(*x_NGIK.shape[:3], -1)
        return (_with_bias(y_NGOK.reshape(len(x), len(w), *windows.sizes), b),)


class ConvTranspose(OpRun):
    """Each tap of the kernel adds its product to the places that it reaches."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, w, b=None, dilations=None, group=1, output_padding=None, pads=None, strides=None,
        **_,
    ) -> tuple[Array]:  # fmt: skip
        dims = x.ndim - 2
        kernel, steps, gaps = w.shape[2:], strides or [1] * dims, dilations or [1] * dims
        extra, pads = output_padding or [0] * dims, pads or [0] * 2 * dims
        sizes = [
            step * (size - 1) + gap * (taps - 1) + 1 + more
            for step, size, gap, taps, more in zip(
                steps, x.shape[2:], gaps, kernel, extra, strict=True
            )
        ]
        x_NGIP = x.reshape(len(x), group, x.shape[1] // group, -1)
        w_GIOK = w.reshape(group, -1, *w.shape[1:])
        y_NGOK = np.zeros((len(x), group, w.shape[1], *sizes))
        for tap in itertools.product(*map(range, kernel)):
            product = w_GIOK[..., *tap].swapaxes(1, 2) @ x_NGIP
            window = _window(tap, gaps, steps, x.shape[2:])
            y_NGOK[..., *window] += product.reshape(*y_NGOK.shape[:3], *x.shape[2:])
        kept: Any = [
            slice(begin, size - end)
            for begin, end, size in zip(pads[:dims], pads[dims:], sizes, strict=True)
        ]
        return (_with_bias(y_NGOK.reshape(len(x), -1, *sizes)[..., *kept], b),)


class MaxPool(OpRun):
    """The largest value of each window; padding is below all."""

    def _run(self, x, kernel_shape, storage_order=0, **places) -> tuple[Array]:  # type: ignore[no-untyped-def]
        windows = _windows(x.shape[2:], kernel_shape, **places)
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        taps = windows.taps(windows.pad(x, lowest))
        y = next(taps).copy()
        for read in taps:
            np.maximum(y, read, out=y)
        return (y,)


class AveragePool(OpRun):
    """The mean of each window: of what lies in the input, or also in the padding asked for."""

    def _run(self, x, kernel_shape, count_include_pad=0, **places) -> tuple[Array]:  # type: ignore[no-untyped-def]
        windows = _windows(x.shape[2:], kernel_shape, **places)
        total = sum(windows.taps(windows.pad(x, 0)))
        return (np.asarray(total / windows.counts(x.shape[2:], padding=count_include_pad)),)


class LpPool(OpRun):
    """The p-norm of each window."""

    def _run(self, x, kernel_shape, p=2, **places) -> tuple[Array]:  # type: ignore[no-untyped-def]
        windows = _windows(x.shape[2:], kernel_shape, **places)
        powers = windows.pad(np.abs(x) ** p, 0)
        return (np.asarray(sum(windows.taps(powers)) ** (1 / p)),)


def _window(tap: Any, gaps: Any, steps: Any, sizes: Any) -> Any:
    """Return the places that one tap of a kernel reads or writes, one for each of `sizes`."""
    return tuple(
        slice(at * gap, at * gap + (size - 1) * step + 1, step)
        for at, gap, step, size in zip(tap, gaps, steps, sizes, strict=True)
    )


def _padding(
    auto_pad: str, pads: Any, sizes: Any, spans: Any, steps: Any
) -> tuple[list[int], list[int]]:
    """Return the zeros before and after each axis."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max(0, (-(-size // step) - 1) * step + span - size)
            for size, span, step in zip(sizes, spans, steps, strict=True)
        ]
        smaller = [total // 2 for total in totals]
        larger = [total - half for total, half in zip(totals, smaller, strict=True)]
        return (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)
    if auto_pad == "VALID" or not pads:
        return [0] * len(sizes), [0] * len(sizes)
    return list(pads[: len(sizes)]), list(pads[len(sizes) :])


def _with_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.reshape(-1, *[1] * (y.ndim - 2))
