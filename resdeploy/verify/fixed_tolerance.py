"""The verdicts of fixed tolerances, as other tools have them: beside ours, never part of it.

Each rule takes the candidate's outputs and those of PyTorch in float32, (N, K), and tells if it
would have accepted.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from resdeploy.graph.affine_layer import Array

__all__ = ["FIXED_TOLERANCES"]


def _allclose(rtol: float, atol: float) -> Callable[[Array, Array], bool]:
    def rule(candidate_NK: Array, expected_NK: Array) -> bool:
        return bool(np.allclose(candidate_NK, expected_NK, rtol=rtol, atol=atol))

    return rule


def _cosine(candidate_NK: Array, expected_NK: Array) -> bool:
    a, b = candidate_NK.ravel().astype(float), expected_NK.ravel().astype(float)
    with np.errstate(invalid="ignore"):
        return bool(a @ b >= 0.9999 * np.linalg.norm(a) * np.linalg.norm(b))


def _top1(candidate_NK: Array, expected_NK: Array) -> bool:
    same = candidate_NK.argmax(axis=1) == expected_NK.argmax(axis=1)
    return bool(same.all() and np.isfinite(candidate_NK).all())


FIXED_TOLERANCES: Mapping[str, Callable[[Array, Array], bool]] = MappingProxyType(
    {
        "assert_close": _allclose(1.3e-6, 1e-5),  # torch.testing's defaults for float32
        "atol 1e-5": _allclose(1e-5, 1e-5),  # optimum's; the relative part is numpy's default
        "atol 1e-3": _allclose(0.0, 1e-3),
        "cosine": _cosine,  # at least 0.9999
        "top-1": _top1,  # every prediction the same
    }
)
