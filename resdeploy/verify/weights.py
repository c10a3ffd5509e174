"""L1: every number of the candidate against its exact value, without any data.

The exact value is the fold of the original checkpoint in float64. A number that was rounded once is
within 0.5 ulp of it. Other tools fold in float32: they round the scale of a channel, so that all
its weights are off by one common factor, and round each weight up to twice more. A channel may
therefore be off by a factor r, within `FOLD_LIMIT_ULP` ulp of one, that leaves every one of its
weights within 1 ulp of r times its exact value: a single weight that was moved has no such r beside
the others. A bias is a sum of several terms that may cancel, so its unit is the ulp of the largest
of them, and in a layer so folded it may be off by as many of these.

This sees faults that no input shows: a wrong bias of a channel that is never active, a single wrong
bit.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from resdeploy.fold.algebra import smallest_normal, ulp
from resdeploy.schema.verdicts import StaticLayer, StaticResult
from resdeploy.verify.compare_structure import Affine, Numbers, SkeletonNode

__all__ = ["FOLD_LIMIT_ULP", "ROUNDED_ONCE_ULP", "judge_static"]

# With the rounding of the exact values themselves, which are held in float64.
ROUNDED_ONCE_ULP = 0.5 + 2.0**-20
# An ONNX file holds its epsilons in float32, which moves a folded weight by up to a quarter.
INEXACT_ULP = 0.25
FOLD_LIMIT_ULP = 4.0
# So few weights may all be rounded right by chance, in float32 too.
_FEW_WEIGHTS = 32

Float64Array = NDArray[np.float64]


def judge_static(
    pairs: Iterable[tuple[SkeletonNode, SkeletonNode]],
    *,
    is_exact: bool = True,
    dtype: str | None = None,
) -> StaticResult:
    """Return the distance of each operator's numbers from their exact values.

    Args:
        pairs: (reference, candidate) operators; of numbers of other shapes they are left out, as
            the structure already differs there.
        is_exact: whether the reference's numbers are exact.
        dtype: the type whose ulp it is; by default the one that the numbers are stored in.
    """
    layers = []
    reasons = []
    once = ROUNDED_ONCE_ULP + (0.0 if is_exact else INEXACT_ULP)
    for reference, candidate in pairs:
        exact, stored = reference.affine, candidate.affine
        if exact is not None and stored is not None:
            if exact.weight.shape != stored.weight.shape or exact.bias.shape != stored.bias.shape:
                continue
            layer, limit = _distance(
                reference, candidate, exact, stored, dtype or stored.dtype, once
            )
        elif _shapes(reference.numbers) == _shapes(candidate.numbers):
            layer, limit = _of_numbers(candidate.name, reference, candidate, dtype, once)
        else:
            continue
        layers.append(layer)
        worst = max(layer.weight_ulp, layer.bias_ulp)
        if not worst <= limit:
            what = "a weight" if layer.weight_ulp >= layer.bias_ulp else "a bias"
            reasons.append(
                f"{what} of `{candidate.name}` is {worst:.3g} ulp from its exact value "
                f"(at most {limit:.3g})"
            )
    limit = max(
        (FOLD_LIMIT_ULP if max(x.weight_ulp, x.bias_ulp) > once else once for x in layers),
        default=once,
    )
    return StaticResult(layers=tuple(layers), limit_ulp=limit, reasons=tuple(reasons))


def _shapes(numbers: Iterable[Numbers]) -> list[tuple[int, ...]]:
    return [n.values.shape for n in numbers]


def _distance(
    reference: SkeletonNode,
    candidate: SkeletonNode,
    exact: Affine,
    stored: Affine,
    dtype: str,
    once: float,
) -> tuple[StaticLayer, float]:
    """Return the largest distances of a layer's weights and biases, and the limit."""
    magnitude = np.maximum(np.abs(exact.bias), exact.bias_magnitude)
    layer = StaticLayer(
        layer=candidate.name,
        weight_ulp=_max_ulp(stored.weight, exact.weight, np.abs(exact.weight), dtype),
        bias_ulp=_max_ulp(stored.bias, exact.bias, magnitude, dtype),
    )
    exact_OP, stored_OP = (_by_output(reference, affine.weight) for affine in (exact, stored))
    rounded_once = layer.weight_ulp <= once and exact.weight.size >= _FEW_WEIGHTS
    if rounded_once or not _folded_in_float32(exact_OP, stored_OP, dtype):
        return layer, once
    return layer, FOLD_LIMIT_ULP


def _by_output(node: SkeletonNode, weight: Float64Array) -> Float64Array:
    """Return a weight as (O, products): one row for what one scale multiplies."""
    if node.op != "ConvTranspose":
        return weight.reshape(len(weight), -1)
    groups = int(dict(node.attributes)["group"])
    by_group = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return by_group.swapaxes(1, 2).reshape(groups * weight.shape[1], -1)


def _folded_in_float32(exact_OP: Float64Array, stored_OP: Float64Array, dtype: str) -> bool:
    """True if each row is the exact one times a common factor near one, within an ulp."""
    unit_OP = ulp(np.abs(exact_OP), dtype)
    size_OP = np.abs(exact_OP)
    normal = size_OP >= smallest_normal(dtype)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        middle_OP = np.where(normal, stored_OP / exact_OP, 1.0)
        width_OP = np.where(normal, unit_OP / size_OP, np.inf)
    low_O = np.max(middle_OP - width_OP, axis=1, initial=1 - _factor_limit(dtype))
    high_O = np.min(middle_OP + width_OP, axis=1, initial=1 + _factor_limit(dtype))
    return bool((low_O <= high_O).all())


def _factor_limit(dtype: str) -> float:
    """Return `FOLD_LIMIT_ULP` - 1 ulp of a number between one and two, the factor's own share."""
    return float((FOLD_LIMIT_ULP - 1) * ulp(np.ones(1), dtype)[0])


def _of_numbers(
    name: str, reference: SkeletonNode, candidate: SkeletonNode, dtype: str | None, once: float
) -> tuple[StaticLayer, float]:
    """Return the largest distance of an operator's constants, and the limit by their roundings."""
    worst, limit = 0.0, once
    for exact, stored in zip(reference.numbers, candidate.numbers, strict=True):
        magnitude = np.maximum(exact.magnitude, stored.magnitude)
        same = exact.values == stored.values  # such as open bounds
        with np.errstate(invalid="ignore"):
            found = _max_ulp(
                np.where(same, 0.0, stored.values),
                np.where(same, 0.0, exact.values),
                np.where(same, 1.0, magnitude),
                dtype or stored.dtype,
            )
        own = once * max(1, stored.roundings)
        if found / own > worst / limit:
            worst, limit = found, own
    return StaticLayer(layer=name, weight_ulp=worst, bias_ulp=0.0), limit


def _max_ulp(
    stored: Float64Array, exact: Float64Array, magnitude: Float64Array, dtype: str
) -> float:
    if not (np.isfinite(stored).all() and np.isfinite(exact).all()):
        return float("inf")
    # A subnormal number may have been set to zero.
    flushed = (stored == 0) & (np.abs(exact) < smallest_normal(dtype))
    distance = np.where(flushed, 0.0, np.abs(stored - exact) / ulp(magnitude, dtype))
    return float(np.max(distance, initial=0.0))
