"""Heads: what turns the features of a network into its outputs, with the names files have for them.

linear  one linear layer: `fc.weight`; with dropout `nn.Sequential(Dropout, Linear)`: `fc.1.weight`.
mlp     a hidden layer between: `nn.Sequential(Linear, ReLU, Linear)`: `fc.0.weight`, `fc.2.weight`;
        with dropout, which comes before the last layer, `fc.0.weight` and `fc.3.weight`.

Without classes there is no head: the outputs are the features, as of timm's `num_classes=0`.
"""

from typing import Literal

from torch import nn

from resdeploy.errors import ResdeployError

__all__ = ["HeadKind", "make_head"]

HeadKind = Literal["linear", "mlp"]


def make_head(
    num_features: int,
    num_classes: int,
    *,
    kind: HeadKind = "linear",
    width: int = 512,
    dropout: float = 0.0,
) -> nn.Module:
    """Return the head for (N, num_features); `width` is of the hidden layer of an "mlp".

    Raises:
        ResdeployError: `dropout` is no probability below 1.
    """
    if not 0 <= dropout < 1:
        raise ResdeployError(
            f"dropout must be at least 0 and below 1, not {dropout}.",
            fix="leave it out for a head without dropout",
        )
    if num_classes == 0:
        return nn.Identity()
    hidden = [nn.Linear(num_features, width), nn.ReLU()] if kind == "mlp" else []
    last = nn.Linear(width if hidden else num_features, num_classes)
    layers = [*hidden, *([nn.Dropout(dropout)] if dropout else []), last]
    return nn.Sequential(*layers) if len(layers) > 1 else last
