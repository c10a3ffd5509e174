"""Fold a BatchNorm, or any affine map per channel, into the affine layer before or after it.

At inference a BatchNorm is one fixed affine map per channel c (Ioffe & Szegedy 2015, Alg. 2):

    BN(y)[c] = gamma[c] * (y[c] - mean[c]) / sqrt(var[c] + eps) + beta[c]
             = scale[c] * y[c] + shift[c]

Let y = W x + b be a convolution or a linear layer. A map after it, and a map before it, each leave
one affine layer:

    scale * (W x + b) + shift      ==  (scale W) x + (scale * b + shift)
    W (scale * x + shift) + b      ==  (W scale) x + (W shift + b)

Zero padding does no harm to the first: the zeros enter x, before W. The second does not hold for a
padded convolution unless shift is 0, since the map makes those zeros shift.

Any number of such maps leaves the form (out_scale W in_scale) x + bias, held by an `AffineEdit`.
Scales and biases are kept in extended precision, products are formed in float64, and every weight
is rounded once, at the end, to the type it is stored in. Rounding the scale first, as the usual
float32 fold does, makes an error common to all weights of a channel, which does not average out: it
doubles the error of the outputs.

Below the normal numbers of a type, a weight loses its digits, and can make a convolution 50 times
slower. It becomes zero where that changes no bit: in a channel whose bias b is so large that
b + w x rounds to b for every |x| < 2^60. Else it is kept; and a channel that the fold takes below
the normal numbers as a whole is refused, as is every such number in a model with constants so large
that a layer may make it matter.

Suffixes: C = channels of the map, O and I = output and input channels of the layer, G = groups, R =
all but the first axis, K = taps of the kernel.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.graph.affine_layer import LayerShape

__all__ = [
    "AffineEdit",
    "BatchNormParams",
    "FoldedAffine",
    "NonFiniteFoldError",
    "apply_edit",
    "fold_batchnorm",
    "map_after",
    "map_before",
    "no_edit",
    "round_once",
    "scale_and_shift",
    "smallest_normal",
    "ulp",
]

FloatArray = npt.NDArray[np.floating[Any]]
Float64Array = npt.NDArray[np.float64]
# Extended where the machine has it (64 or 113 bits of precision), float64 where not.
ExtendedArray = npt.NDArray[np.longdouble]

_PLAIN = LayerShape()

# Smallest normal number, and bits of precision, of each storage type.
_FORMATS = {
    "float64": (2.0**-1022, 53),
    "float32": (2.0**-126, 24),
    "float16": (2.0**-14, 11),
    "bfloat16": (2.0**-126, 8),
}

# Inputs of a layer are taken to be smaller, in a model without large constants.
_REACH = 2.0**60
# A number below the normal ones that has fewer digits than this has lost too many.
_DIGITS = 2.0**-12

_EXPONENT_BITS = np.uint64(0x7FF0_0000_0000_0000)
_BLOCK = 1 << 16


class NonFiniteFoldError(ValueError):
    """A folded value would be NaN or infinite, in float64 or in the type of the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormParams:
    """The statistics and parameters of one BatchNorm, each of shape (C,); gamma None is 1, beta 0.

    `eps` is the exact value of the artefact at hand: a Python float in PyTorch, a float32 in ONNX.
    """

    gamma: FloatArray | None
    beta: FloatArray | None
    mean: FloatArray
    var: FloatArray
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedAffine:
    """A folded layer, each value one that its storage type can hold.

    Attributes:
        weight: as the layer's own weight; of the storage type, or float32 for bfloat16, which
            numpy lacks.
        bias: (C,), likewise, or of the shape of the edit's.
        max_ulp: largest distance from the exact value, in units in the last place of the storage
            type, before subnormal values became zero.
        num_flushed: weights that were subnormal in the storage type and are now zero, as they
            change no output (float16 keeps its subnormals).
    """

    weight: FloatArray
    bias: FloatArray
    max_ulp: float
    num_flushed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AffineEdit:
    """The maps folded into a layer so far: (out_scale W in_scale) x + bias.

    Attributes:
        out_scale: (O,).
        in_scale: (I,), or None where nothing was folded from before the layer.
        bias: (O,), or (..., O) where it differs by row.
    """

    out_scale: ExtendedArray
    in_scale: ExtendedArray | None
    bias: ExtendedArray


def scale_and_shift(bn: BatchNormParams) -> tuple[ExtendedArray, ExtendedArray]:
    """Return (scale, shift), each (C,), with BN(y) == scale * y + shift.

    Raises:
        NonFiniteFoldError: either is NaN or infinite; the message names the first such channel.
    """
    mean_C, var_C = np.asarray(bn.mean, np.longdouble), np.asarray(bn.var, np.longdouble)
    gamma_C = np.ones_like(mean_C) if bn.gamma is None else np.asarray(bn.gamma, np.longdouble)
    beta_C = np.zeros_like(mean_C) if bn.beta is None else np.asarray(bn.beta, np.longdouble)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale_C = gamma_C / np.sqrt(var_C + np.longdouble(bn.eps))
        shift_C = beta_C - mean_C * scale_C
    bad = np.flatnonzero(~(np.isfinite(scale_C) & np.isfinite(shift_C)))
    if bad.size:
        c = int(bad[0])
        raise NonFiniteFoldError(
            f"channel {c} has no finite scale and shift (gamma {gamma_C[c]:g}, beta {beta_C[c]:g}, "
            f"mean {mean_C[c]:g}, var {var_C[c]:g}, eps {bn.eps:g})"
        )
    return scale_C, shift_C


def no_edit(
    num_outputs: int, bias: FloatArray | None, *, factors: tuple[float, float] = (1.0, 1.0)
) -> AffineEdit:
    """Return the edit of a layer into which nothing was folded.

    Args:
        num_outputs: O.
        bias: (O,), or fewer where it is broadcast, or None.
        factors: of its product and its bias (Gemm's alpha and beta).
    """
    ones = np.ones(num_outputs, np.longdouble)
    own = np.zeros_like(ones) if bias is None else np.asarray(bias, np.longdouble)
    return AffineEdit(
        out_scale=np.longdouble(factors[0]) * ones,
        in_scale=None,
        bias=np.longdouble(factors[1]) * np.broadcast_to(own, ones.shape),
    )


def map_after(edit: AffineEdit, scale_O: ExtendedArray, shift_O: ExtendedArray) -> AffineEdit:
    """Return the edit with the map scale * y + shift folded in after the layer."""
    return replace(edit, out_scale=scale_O * edit.out_scale, bias=scale_O * edit.bias + shift_O)


def map_before(
    edit: AffineEdit,
    weight: FloatArray,
    shape: LayerShape,
    scale_I: ExtendedArray,
    shift_I: ExtendedArray,
) -> AffineEdit:
    """Return the edit with the map scale * x + shift folded in before the layer.

    Every tap of a kernel must see the map's shift: no zero padding, unless shift is 0.
    """
    already_I = np.ones_like(scale_I) if edit.in_scale is None else edit.in_scale
    weight_OIK = shape.by_output(weight)
    moved_O = np.zeros_like(edit.bias)
    inputs_GI = (already_I * shift_I).astype(np.float64).reshape(shape.groups, -1)
    outputs_per_group = len(moved_O) // shape.groups
    for group in range(shape.groups):
        rows = slice(group * outputs_per_group, (group + 1) * outputs_per_group)
        taps_OI = weight_OIK[rows].astype(np.float64).sum(axis=2)
        moved_O[rows] = taps_OI @ inputs_GI[group]
    return replace(edit, in_scale=already_I * scale_I, bias=edit.bias + edit.out_scale * moved_O)


def apply_edit(
    weight: FloatArray,
    edit: AffineEdit,
    *,
    dtype: str,
    shape: LayerShape = _PLAIN,
    is_calm: bool = True,
) -> FoldedAffine:
    """Return the layer that an edit describes, each weight and bias rounded once to `dtype`.

    Args:
        weight: the layer's own, laid out as `shape` says.
        edit: the maps to be folded into it.
        dtype: the type the result will be stored in: float64, float32, float16 or bfloat16.
        shape: the layout of the weight.
        is_calm: whether the model has no large numbers that could make a subnormal one matter.

    Raises:
        NonFiniteFoldError: a value overflows `dtype`, or a channel underflows it.
        ValueError: `dtype` is not one of the four.
    """
    if dtype not in _FORMATS:
        raise ValueError(f"cannot store folded weights as {dtype}")
    weight_OIK = shape.by_output(weight)
    num_outputs, inputs_per_group, _ = weight_OIK.shape
    exact_type: type[np.floating[Any]] = np.longdouble if dtype == "float64" else np.float64
    scale_O: FloatArray = edit.out_scale.astype(exact_type)
    bias, max_ulp = _store(edit.bias, dtype)
    # The least that a channel adds to its products, in any row.
    least_O = np.abs(bias).reshape(-1, num_outputs).min(axis=0, initial=np.inf)
    stored_OIK = np.empty(weight_OIK.shape, _numpy_type(dtype))
    # Where the bias is all that a channel has, or may be made large.
    must_last_O = np.full(num_outputs, not is_calm)
    num_flushed = 0
    # A few channels at a time: whole weights in float64 would pass through the cache a dozen times.
    step = max(1, _BLOCK // max(1, weight_OIK[:1].size))
    for start in range(0, num_outputs, step):
        rows = slice(start, min(start + step, num_outputs))
        exact: FloatArray = weight_OIK[rows].astype(exact_type) * scale_O[rows, None, None]
        if edit.in_scale is not None:
            groups = np.arange(rows.start, rows.stop) * shape.groups // num_outputs
            in_scale_GI = edit.in_scale.astype(exact_type).reshape(-1, inputs_per_group)
            exact = exact * in_scale_GI[groups][:, :, None]
        stored_OIK[rows], ulp = _store(exact, dtype)
        max_ulp = max(max_ulp, ulp)
        below = np.abs(stored_OIK[rows]) < smallest_normal(dtype)
        small = below & (exact != 0)
        must_last_O[rows] |= below.all(axis=(1, 2))
        if dtype == "float16":  # its subnormals reach up to 6e-5: they carry weight
            _refuse_underflow(exact, dtype, np.ones(len(exact), bool), first_channel=start)
        elif small.any():
            absorbed_O = is_calm & _absorbs(least_O[rows], np.where(small, exact, 0), dtype)
            flushed = small & absorbed_O[:, None, None]
            num_flushed += int(np.count_nonzero(stored_OIK[rows][flushed]))
            stored_OIK[rows][flushed] = 0
            own_O = np.abs(weight_OIK[rows]).reshape(len(exact), -1).max(axis=1, initial=0.0)
            by_fold = (own_O >= smallest_normal(dtype)) & ~absorbed_O
            _refuse_underflow(exact, dtype, by_fold, first_channel=start)
            if not is_calm:
                lost = _has_lost_digits(stored_OIK[rows], exact)
                _refuse_channels(np.logical_or.reduce(lost, axis=(1, 2)), exact, dtype, start)
    lost_O = _has_lost_digits(bias, edit.bias).reshape(-1, num_outputs).any(axis=0)
    _refuse_channels(
        np.logical_and(must_last_O, lost_O), edit.bias.reshape(-1, num_outputs).T, dtype, 0
    )
    return FoldedAffine(
        weight=shape.from_output(stored_OIK, weight.shape),
        bias=bias,
        max_ulp=max_ulp,
        num_flushed=num_flushed,
    )


def fold_batchnorm(
    weight: FloatArray,
    bias: FloatArray | None,
    bn: BatchNormParams,
    *,
    dtype: str,
    channel_axis: int = 0,
) -> FoldedAffine:
    """Return (W', b') such that W' x + b' == BN(W x + b), rounded once to `dtype`.

    Args:
        weight: any shape with C along `channel_axis`.
        bias: (C,), or None for no bias.
        bn: the BatchNorm that follows.
        dtype: the type the result will be stored in: float64, float32, float16 or bfloat16.
        channel_axis: the axis of `weight` that is the layer's output channel.

    Raises:
        NonFiniteFoldError: a folded value is NaN or infinite (var + eps <= 0, NaN statistics), or
            overflows `dtype`, or a channel underflows it.
        ValueError: the channels do not match, or `dtype` is not one of the four.
    """
    if weight.shape[channel_axis] != bn.mean.shape[0]:
        raise ValueError(
            f"the layer has {weight.shape[channel_axis]} output channels, "
            f"the BatchNorm {bn.mean.shape[0]}"
        )
    rows = np.moveaxis(weight, channel_axis, 0)
    edit = map_after(no_edit(len(rows), bias), *scale_and_shift(bn))
    folded = apply_edit(rows, edit, dtype=dtype)
    return replace(folded, weight=np.ascontiguousarray(np.moveaxis(folded.weight, 0, channel_axis)))


def round_once(exact: Float64Array, dtype: str) -> Float64Array:
    """Return `exact` rounded to the nearest number of `dtype`, ties to even, held in float64.

    float64 -> bfloat16 by way of float32 would round twice. The detour is harmless if the first
    step rounds to odd (Boldo & Melquiond 2008), as it does here.
    """
    with np.errstate(over="ignore"):
        if dtype == "float64":
            return exact
        if dtype in ("float32", "float16"):
            return exact.astype(dtype).astype(np.float64)
        if dtype == "bfloat16":
            return _float32_to_bfloat16(_round_to_odd_float32(exact))
    raise ValueError(f"cannot store folded weights as {dtype}")


def smallest_normal(dtype: str) -> float:
    """Return the smallest normal number of a storage type."""
    return _FORMATS[dtype][0]


def ulp(exact: FloatArray, dtype: str) -> Float64Array:
    """Return the unit in the last place of `dtype` at each value: the gap between its numbers."""
    smallest, precision = _FORMATS[dtype]
    # The exponent bits alone are the power of two below; times 2^(1 - precision) that is the ulp.
    bits = np.ascontiguousarray(exact, np.float64).view(np.uint64)
    power_of_two = (bits & _EXPONENT_BITS).view(np.float64)
    return np.maximum(power_of_two, smallest) * 2.0 ** (1 - precision)


def _absorbs(least_O: FloatArray, small_OIK: FloatArray, dtype: str) -> npt.NDArray[np.bool_]:
    """Return True for each channel to which products with these weights add nothing."""
    _, precision = _FORMATS[dtype]
    most_O = np.abs(small_OIK).sum(axis=(1, 2)).astype(np.float64) * _REACH
    absorbs: npt.NDArray[np.bool_] = least_O * 2.0 ** -(precision + 1) >= most_O
    return absorbs


def _has_lost_digits(stored: FloatArray, exact: FloatArray) -> npt.NDArray[np.bool_]:
    lost: npt.NDArray[np.bool_] = np.abs(stored - exact) > _DIGITS * np.abs(exact)
    return lost


def _refuse_underflow(
    exact: FloatArray, dtype: str, may_be: npt.NDArray[np.bool_], *, first_channel: int
) -> None:
    """Raise if all of a channel's weights fall below the normal numbers, of those that may not.

    There they lose precision together, which nothing averages out.
    """
    largest_O = np.abs(exact).reshape(len(exact), -1).max(axis=1, initial=0.0)
    is_small = (largest_O > 0) & (largest_O < smallest_normal(dtype))
    _refuse_channels(is_small & may_be, exact, dtype, first_channel)


def _refuse_channels(
    chosen_O: npt.NDArray[np.bool_], exact: FloatArray, dtype: str, first_channel: int
) -> None:
    """Raise for the first of these channels."""
    for channel in np.flatnonzero(chosen_O)[:1]:
        largest = np.abs(exact[channel]).max(initial=0.0)
        raise NonFiniteFoldError(
            f"channel {first_channel + channel} underflows {dtype} "
            f"(its largest number would be {largest:.1e})"
        )


def _store(exact: FloatArray, dtype: str) -> tuple[FloatArray, float]:
    """Return (rounded, largest error in ulp)."""
    if dtype != "float64":
        exact = exact.astype(np.float64)
    stored = round_once(exact.astype(np.float64), dtype)
    if not np.isfinite(stored).all():
        largest = float(np.max(np.abs(exact)))
        raise NonFiniteFoldError(f"a folded value overflows {dtype} (largest {largest:g})")
    max_ulp = float(np.max(np.abs(stored - exact) / ulp(exact, dtype), initial=0.0))
    return stored.astype(_numpy_type(dtype)), max_ulp


def _numpy_type(dtype: str) -> str:
    """Return the numpy type that holds every number of a storage type."""
    return "float32" if dtype == "bfloat16" else dtype


def _round_to_odd_float32(exact: Float64Array) -> npt.NDArray[np.float32]:
    nearest = exact.astype(np.float32)
    inexact_and_even = (nearest.astype(np.float64) != exact) & (nearest.view(np.uint32) & 1 == 0)
    direction = np.where(exact > nearest, np.float32(np.inf), np.float32(-np.inf))
    other_neighbour = np.nextafter(nearest, direction)
    return np.where(inexact_and_even, other_neighbour, nearest)


def _float32_to_bfloat16(values: npt.NDArray[np.float32]) -> Float64Array:
    """Round float32 to bfloat16, ties to even, by adding half a unit to the bit pattern."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded_bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    rounded = rounded_bits.astype(np.uint32).view(np.float32).astype(np.float64)
    return np.where(np.isfinite(values), rounded, values.astype(np.float64))
