"""Quality of a quantised model, and the layers left in float32 where a budget needs it.

The quality is the predictions that changed, and the relative error of all outputs together,
e = |y' - y| / |y|; as SQNR, that is -20 log10(e) decibels. The prediction is the largest output; of
a single one, its sign.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.schema.quants import KeptFloat, QuantQuality, QuantSpec
from resdeploy.verify.compare import predictions

__all__ = ["judge", "keep_sensitive", "why_not"]

# The quality with the layers of these names in float32, of all held-out samples or of the first.
QualityOf = Callable[[tuple[str, ...], slice], QuantQuality]
_ALL = slice(None)


def judge(reference_NK: NDArray[np.float64], candidate_NK: NDArray[np.float64]) -> QuantQuality:
    """Return the error of outputs, and the changed predictions with their lead.

    An output that is not finite makes the error infinite.
    """
    if not np.isfinite(candidate_NK).all():
        return QuantQuality(
            error=float("inf"), num_inputs=len(reference_NK), num_flips=len(reference_NK)
        )
    error = np.linalg.norm(candidate_NK - reference_NK) / max(
        float(np.linalg.norm(reference_NK)), np.finfo(np.float64).tiny
    )
    flipped_N = predictions(reference_NK) != predictions(candidate_NK)
    lead_N = np.abs(reference_NK[:, 0])
    if reference_NK.shape[1] > 1:
        lead_N = np.diff(np.sort(reference_NK, axis=1)[:, -2:])[:, 0]
    return QuantQuality(
        error=float(error),
        num_inputs=len(reference_NK),
        num_flips=int(flipped_N.sum()),
        largest_flip_margin=float(lead_N[flipped_N].max(initial=0.0)),
        median_margin=float(np.median(lead_N)),
    )


def why_not(quality: QuantQuality, budget: QuantSpec) -> tuple[str, ...]:
    """Return the reasons why a budget does not hold; empty if it holds."""
    reasons = []
    if not quality.num_flips <= budget.max_flips * quality.num_inputs:  # NaN is no budget
        reasons.append(
            f"{quality.num_flips} of {quality.num_inputs} predictions changed; "
            f"at most {budget.max_flips:.2%} may"
        )
    limit = budget.max_error
    if not (np.isfinite(quality.error) and (limit is None or quality.error <= limit)):
        reasons.append(
            f"the relative error is {quality.error:.3g}"
            + ("" if limit is None else f"; at most {limit:g} is asked for")
        )
    return tuple(reasons)


def keep_sensitive(
    nodes: Sequence[onnx.NodeProto],
    quality_of: QualityOf,
    budget: QuantSpec,
    *,
    ranked_with: int,
    always: tuple[str, ...] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
) -> tuple[KeptFloat, ...]:
    """Return the layers to leave in float32, those that help most by themselves first.

    None if the budget holds as it is. A layer that does not lower the error is not kept; where the
    budget holds with none, all that help are. The first `ranked_with` samples rank the layers, each
    in float32 by itself; those named in `always` are so in any case.
    """
    quality = quality_of(always, _ALL)
    if not why_not(quality, budget):
        return ()
    errors = {}
    for node in nodes:
        on_stage(f"what costs most: {node.name}")
        errors[node.name] = quality_of((*always, node.name), slice(ranked_with)).error
    kept: list[KeptFloat] = []
    for node in sorted(nodes, key=lambda node: errors[node.name]):
        on_stage(f"keep in float32: {node.name}")
        better = quality_of((*always, *(layer.node for layer in kept), node.name), _ALL)
        if better.error >= quality.error:
            continue
        reason = f"the error is {better.error:.3g} with it in float32, {quality.error:.3g} without"
        kept.append(KeptFloat(node=node.name, op=node.op_type, reason=reason))
        quality = better
        if not why_not(quality, budget):
            break
    return tuple(kept)
