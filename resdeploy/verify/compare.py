"""Distances between a candidate's outputs and the float64 reference. Verdicts are elsewhere.

Shapes: N inputs, K outputs of one input.
"""

import numpy as np
import numpy.typing as npt

from resdeploy.graph.affine_layer import Array
from resdeploy.schema.verdicts import TensorDiff

__all__ = [
    "accuracy",
    "error_norms",
    "level_infinities",
    "predictions",
    "tensor_diff",
    "top1_agreement",
]


def level_infinities(candidate_NK: Array, reference_NK: Array) -> tuple[Array, Array]:
    """Return both with 0 where both are the same infinity, such as a mask's.

    Where the reference alone is infinite, it is 0 and the candidate infinite: any other value is
    infinitely far off.
    """
    infinite = np.isinf(reference_NK)
    if not infinite.any():
        return candidate_NK, reference_NK
    distance = np.where(candidate_NK == reference_NK, 0.0, np.inf)
    return np.where(infinite, distance, candidate_NK), np.where(infinite, 0.0, reference_NK)


def predictions(outputs_NK: Array) -> npt.NDArray[np.intp]:
    """Return the class of each input, (N,): the largest output; of a single one, its sign."""
    if outputs_NK.shape[1] > 1:
        return np.asarray(outputs_NK.argmax(axis=1))
    return np.asarray((outputs_NK > 0).any(axis=1).astype(np.intp))


def tensor_diff(candidate_NK: Array, reference_NK: Array) -> TensorDiff:
    """Return the distance of a candidate from the reference; both (N, K), finite or not."""
    num_nonfinite = int(np.count_nonzero(~np.isfinite(candidate_NK) & np.isfinite(reference_NK)))
    if num_nonfinite:
        return TensorDiff(max_abs=np.inf, rel_l2=np.inf, num_nonfinite=num_nonfinite)
    difference = candidate_NK.astype(np.float64) - reference_NK
    norm = float(np.linalg.norm(reference_NK))
    return TensorDiff(
        max_abs=float(np.max(np.abs(difference), initial=0.0)),
        rel_l2=float(np.linalg.norm(difference)) / norm if norm else float(difference.any()),
        num_nonfinite=0,
    )


def error_norms(candidate_NK: Array, reference_NK: Array) -> npt.NDArray[np.float64]:
    """Return, per input, the Euclidean norm of the candidate's error: (N,); inf if not finite."""
    finite_N = _finite_rows(candidate_NK)
    safe_NK = np.where(finite_N[:, None], candidate_NK, 0.0).astype(np.float64)
    norms_N = np.linalg.norm(safe_NK - reference_NK, axis=1)
    return np.where(finite_N, norms_N, np.inf)


def top1_agreement(candidate_NK: Array, reference_NK: Array) -> float:
    """Return the fraction of inputs of which the prediction is the same one."""
    return accuracy(candidate_NK, predictions(reference_NK))


def accuracy(candidate_NK: Array, labels_N: Array) -> float:
    """Return the fraction of inputs of which the prediction is the label; of NaN it never is."""
    known_N = ~np.isnan(candidate_NK).any(axis=1)
    return float(np.mean((predictions(candidate_NK) == labels_N) & known_N))


def _finite_rows(values_NK: Array) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(values_NK).all(axis=1))
