"""Fold a BatchNorm into the affine layer before it.

At inference a BatchNorm is one fixed affine map per channel c (Ioffe & Szegedy 2015, Alg. 2):

    BN(y)[c] = gamma[c] * (y[c] - mean[c]) / sqrt(var[c] + eps) + beta[c]

Let y = W x + b be a convolution or a linear layer, and scale[c] = gamma[c] / sqrt(var[c] + eps).
Then BN(W x + b) is again one affine layer W' x + b':

    W'[c] = scale[c] * W[c]
    b'[c] = scale[c] * (b[c] - mean[c]) + beta[c]

Zero padding does no harm: the zeros enter x, before W. The other order, BN then conv, does not fold
into a padded conv, since BN makes those zeros beta - scale * mean.

Everything is computed in float64 and rounded once to the type of the weights. Rounding the scale
first, as the usual float32 fold does, makes an error common to all weights of a channel, which does
not average out: it doubles the error of the outputs.

Suffixes: C = channels of the BatchNorm.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BatchNormParams", "FoldedAffine", "NonFiniteFoldError", "fold_batchnorm", "round_once"]

FloatArray = npt.NDArray[np.floating[Any]]
Float64Array = npt.NDArray[np.float64]

# Smallest normal number, and bits of precision, of each storage type.
_FORMATS = {
    "float64": (2.0**-1022, 53),
    "float32": (2.0**-126, 24),
    "float16": (2.0**-14, 11),
    "bfloat16": (2.0**-126, 8),
}

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
        bias: (C,), likewise.
        max_ulp: largest distance from the exact value, in units in the last place of the storage
            type, before subnormal values became zero.
        num_flushed: values that were subnormal in the storage type and are now zero (float16
            keeps its subnormals).
    """

    weight: FloatArray
    bias: FloatArray
    max_ulp: float
    num_flushed: int


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
            overflows `dtype`.
        ValueError: the channels do not match, or `dtype` is not one of the four.
    """
    if dtype not in _FORMATS:
        raise ValueError(f"cannot store folded weights as {dtype}")
    if weight.shape[channel_axis] != bn.mean.shape[0]:
        raise ValueError(
            f"the layer has {weight.shape[channel_axis]} output channels, "
            f"the BatchNorm {bn.mean.shape[0]}"
        )
    scale_C, beta_C = _scale_and_beta(bn)
    bias_C = np.zeros_like(scale_C) if bias is None else np.asarray(bias, np.float64)
    exact_bias_C = scale_C * (bias_C - np.asarray(bn.mean, np.float64)) + beta_C
    folded_bias, bias_ulp, bias_flushed = _store(exact_bias_C, dtype)
    folded_weight, weight_ulp, weight_flushed = _scale_and_store(
        np.moveaxis(weight, channel_axis, 0), scale_C, dtype
    )
    return FoldedAffine(
        weight=np.ascontiguousarray(np.moveaxis(folded_weight, 0, channel_axis)),
        bias=folded_bias,
        max_ulp=max(weight_ulp, bias_ulp),
        num_flushed=weight_flushed + bias_flushed,
    )


def round_once(exact: Float64Array, dtype: str) -> Float64Array:
    """Return `exact` rounded to the nearest number of `dtype`, ties to even, held in float64.

    float64 -> bfloat16 by way of float32 would round twice. The detour is harmless if the first
    step rounds to odd (Boldo & Melquiond 2008), which is what is done here.
    """
    with np.errstate(over="ignore"):
        if dtype == "float64":
            return exact
        if dtype in ("float32", "float16"):
            return exact.astype(dtype).astype(np.float64)
        if dtype == "bfloat16":
            return _float32_to_bfloat16(_round_to_odd_float32(exact))
    raise ValueError(f"cannot store folded weights as {dtype}")


def _scale_and_beta(bn: BatchNormParams) -> tuple[Float64Array, Float64Array]:
    """Return (scale, beta), each (C,), with BN(y) == scale * (y - mean) + beta.

    Raises:
        NonFiniteFoldError: any of them, or the mean, is NaN or infinite; the message names the
            first such channel.
    """
    mean_C = np.asarray(bn.mean, np.float64)
    var_C = np.asarray(bn.var, np.float64)
    gamma_C = np.ones_like(mean_C) if bn.gamma is None else np.asarray(bn.gamma, np.float64)
    beta_C = np.zeros_like(mean_C) if bn.beta is None else np.asarray(bn.beta, np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale_C = gamma_C / np.sqrt(var_C + bn.eps)
        shift_C = beta_C - mean_C * scale_C
    bad = np.flatnonzero(~(np.isfinite(scale_C) & np.isfinite(shift_C)))
    if bad.size:
        c = int(bad[0])
        raise NonFiniteFoldError(
            f"channel {c} has no finite scale and shift (gamma {gamma_C[c]:g}, beta {beta_C[c]:g}, "
            f"mean {mean_C[c]:g}, var {var_C[c]:g}, eps {bn.eps:g})"
        )
    return scale_C, beta_C


def _scale_and_store(
    weight: FloatArray, scale_C: Float64Array, dtype: str
) -> tuple[FloatArray, float, int]:
    """Return `_store` of the weight, (C, ...), times the scale of its channel."""
    weight_CR = weight.reshape(len(scale_C), -1)
    stored_CR = np.empty(weight_CR.shape, _numpy_type(dtype))
    max_ulp, num_flushed = 0.0, 0
    # A few channels at a time: whole weights in float64 would pass through the cache a dozen times.
    step = max(1, _BLOCK // max(1, weight_CR.shape[1]))
    for start in range(0, len(scale_C), step):
        rows = slice(start, start + step)
        exact = weight_CR[rows].astype(np.float64) * scale_C[rows, None]
        stored_CR[rows], ulp, flushed = _store(exact, dtype)
        max_ulp, num_flushed = max(max_ulp, ulp), num_flushed + flushed
    return stored_CR.reshape(weight.shape), max_ulp, num_flushed


def _store(exact: Float64Array, dtype: str) -> tuple[FloatArray, float, int]:
    """Return (rounded, largest error in ulp, number of subnormals flushed to zero)."""
    stored = round_once(exact, dtype)
    if not np.isfinite(stored).all():
        largest = float(np.max(np.abs(exact)))
        raise NonFiniteFoldError(f"a folded value overflows {dtype} (largest {largest:g})")
    smallest_normal, precision = _FORMATS[dtype]
    # The exponent bits alone are the power of two below; times 2^(1 - precision) that is the ulp.
    power_of_two = (exact.view(np.uint64) & _EXPONENT_BITS).view(np.float64)
    ulp = np.maximum(power_of_two, smallest_normal) * 2.0 ** (1 - precision)
    max_ulp = float(np.max(np.abs(stored - exact) / ulp, initial=0.0))
    if dtype == "float16":  # its subnormals reach up to 6e-5: they carry weight, and run at speed
        return stored.astype(np.float16), max_ulp, 0
    # Elsewhere a subnormal can make a convolution 50 times slower and is worth less than 1.2e-38.
    subnormal = (stored != 0) & (np.abs(stored) < smallest_normal)
    num_flushed = int(np.count_nonzero(subnormal))
    kept = np.where(subnormal, 0.0, stored) if num_flushed else stored
    return kept.astype(_numpy_type(dtype)), max_ulp, num_flushed


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
