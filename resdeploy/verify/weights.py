"""L1: every folded weight against its exact value, without any data.

The exact value is the fold of the original checkpoint in float64. A weight that was
rounded once is within 0.5 ulp of it; folds in float32, as other tools make them, were seen up to
2.8 ulp away, and are allowed 4. A bias is a sum of several terms that may cancel, so its
unit is the ulp of the largest of them.

This sees faults that no input shows: a wrong bias of a channel that is never active, a single wrong
bit.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from resdeploy.fold.algebra import smallest_normal, ulp
from resdeploy.schema.verdicts import StaticLayer, StaticResult
from resdeploy.verify.compare_structure import Affine, SkeletonNode

__all__ = ["ROUNDED_ONCE_ULP", "STATIC_LIMIT_ULP", "judge_static"]

# With the rounding of the exact values themselves, which are held in float64.
ROUNDED_ONCE_ULP = 0.5 + 2.0**-20
STATIC_LIMIT_ULP = 4.0

Float64Array = NDArray[np.float64]


def judge_static(
    pairs: Iterable[tuple[SkeletonNode, SkeletonNode]],
    *,
    limit_ulp: float = STATIC_LIMIT_ULP,
    dtype: str | None = None,
) -> StaticResult:
    """Return the distance of each layer's weights from their exact values.

    Args:
        pairs: (reference, candidate) affine layers of equal shapes; others are left out, as the
            structure already differs there.
        limit_ulp: the most that is allowed.
        dtype: the type whose ulp it is; by default the one that the weights are stored in.
    """
    layers = []
    reasons = []
    for reference, candidate in pairs:
        exact, stored = reference.affine, candidate.affine
        assert exact is not None
        assert stored is not None
        if exact.weight.shape != stored.weight.shape or exact.bias.shape != stored.bias.shape:
            continue
        layer = _distance(candidate.name, exact, stored, dtype or stored.dtype)
        layers.append(layer)
        worst = max(layer.weight_ulp, layer.bias_ulp)
        if not worst <= limit_ulp:
            what = "a weight" if layer.weight_ulp >= layer.bias_ulp else "a bias"
            reasons.append(
                f"{what} of `{candidate.name}` is {worst:.3g} ulp from its exact value "
                f"(at most {limit_ulp:g})"
            )
    return StaticResult(layers=tuple(layers), limit_ulp=limit_ulp, reasons=tuple(reasons))


def _distance(name: str, exact: Affine, stored: Affine, dtype: str) -> StaticLayer:
    magnitude = np.maximum(np.abs(exact.bias), exact.bias_magnitude)
    return StaticLayer(
        layer=name,
        weight_ulp=_max_ulp(stored.weight, exact.weight, np.abs(exact.weight), dtype),
        bias_ulp=_max_ulp(stored.bias, exact.bias, magnitude, dtype),
    )


def _max_ulp(
    stored: Float64Array, exact: Float64Array, magnitude: Float64Array, dtype: str
) -> float:
    if not np.isfinite(stored).all():
        return float("inf")
    # A subnormal number may have been set to zero.
    flushed = (stored == 0) & (np.abs(exact) < smallest_normal(dtype))
    distance = np.where(flushed, 0.0, np.abs(stored - exact) / ulp(magnitude, dtype))
    return float(np.max(distance, initial=0.0))
