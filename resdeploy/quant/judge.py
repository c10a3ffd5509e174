"""Quality of a quantised model: the relative error of its outputs, and predictions that changed.

The error is e = |y' - y| / |y| over all outputs; as SQNR, it is -20 log10(e) decibels. The
prediction is the largest output; of a single one, its sign.
"""

import numpy as np
from numpy.typing import NDArray

from resdeploy.schema.quants import QuantQuality, QuantSpec
from resdeploy.verify.compare import predictions

__all__ = ["judge", "why_not"]


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
    lead_N = _lead(reference_NK)
    return QuantQuality(
        error=float(error),
        num_inputs=len(reference_NK),
        num_flips=int(flipped_N.sum()),
        largest_flip_margin=float(lead_N[flipped_N].max(initial=0.0)),
        median_margin=float(np.median(lead_N)),
    )


def why_not(quality: QuantQuality, budget: QuantSpec) -> tuple[str, ...]:
    """Return the reasons why a budget does not hold; empty if it holds."""
    max_flips, max_error = budget.max_flips, budget.max_error
    reasons = []
    if not quality.num_flips <= max_flips * quality.num_inputs:  # NaN is no budget
        reasons.append(
            f"{quality.num_flips} of {quality.num_inputs} predictions changed; "
            f"at most {max_flips:.2%} may"
        )
    limit = np.inf if max_error is None else max_error
    if not (np.isfinite(quality.error) and quality.error <= limit):
        reasons.append(
            f"the relative error is {quality.error:.3g}"
            + ("" if max_error is None else f"; at most {max_error:g} is asked for")
        )
    return tuple(reasons)


def _lead(outputs_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    if outputs_NK.shape[1] < 2:  # its sign is the prediction
        return np.abs(outputs_NK[:, 0])
    two = np.sort(outputs_NK, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0])
