"""The architectures as parameters of a test: one of each kind always, the others where slow."""

from collections.abc import Iterable
from typing import Any

import pytest

from resdeploy.networks import ARCHITECTURES

__all__ = ["FIRST", "each"]

# One for each way in which a network is built; the others are more, or wider, of the same blocks.
FIRST = (
    *("resnet18", "resnet50", "resnext50_32x4d", "resnet18_layernorm"),
    *("resnet18d", "seresnet18", "ecaresnet50d"),
    *("regnet_x_400mf", "regnet_y_400mf", "iresnet18", "cifar_resnet18"),
    *("cifar_resnet20", "cifar_plain20", "cifar_preact_resnet20", "resnet8_tiny"),
    *("r3d_18", "mc3_18", "r2plus1d_18", "resnet1d18", "residual_mlp"),
)


def each(names: Iterable[str] = ARCHITECTURES) -> list[Any]:
    """Return `names` as parameters, those that are not `FIRST` marked as slow."""
    return [pytest.param(name, marks=[] if name in FIRST else [pytest.mark.slow]) for name in names]
