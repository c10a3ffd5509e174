"""Normalisation layers, the one place that makes them, and He initialisation.

Each network takes its normalisation as a `NormSpec` of one of three kinds:

batch   BatchNorm, statistics over batch and space, fixed at inference (Ioffe & Szegedy 2015,
        arXiv 1502.03167). Directly after a convolution or a linear layer it folds into that layer.
layer   LayerNorm over the channels of each position (Ba et al. 2016, arXiv 1607.06450), computed
        anew for every sample, so that it never folds.
none    no layer at all: the form a network has after its BatchNorms were folded. The layer in
        front then has a bias (`NormSpec.is_none`), since that is where beta and the mean went.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from resdeploy.errors import ResdeployError

__all__ = [
    "LayerNorm2d",
    "NormKind",
    "NormSpec",
    "init_he",
    "make_norm1d",
    "make_norm2d",
    "make_norm3d",
    "zero_last_scale",
]

NormKind = Literal["batch", "layer", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormSpec:
    """Normalisation of a network, of a kind in the module's docstring.

    `eps` is added to the variance; `momentum` is the weight of the newest batch in BatchNorm's
    running statistics.
    """

    kind: NormKind
    eps: float
    momentum: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values for which the layer divides by zero or its statistics diverge."""
        if not 0 < self.eps < math.inf:
            raise ResdeployError(
                f"norm_eps must be positive, not {self.eps}.",
                fix="leave it out for the usual 1e-5",
            )
        if not 0 <= self.momentum <= 1:
            raise ResdeployError(
                f"norm_momentum must be between 0 and 1, not {self.momentum}.",
                fix="leave it out for the usual 0.1",
            )

    @property
    def is_none(self) -> bool:
        """True where the layer in front of the norm needs a bias of its own."""
        return self.kind == "none"

    def require_kept(self, *, arch: str) -> None:
        """Refuse "none" where the norms read the residual stream.

        Such a norm is followed by a ReLU and has a stream with other readers in front, so that
        there is no layer it could have been folded into; without it, it is another network.

        Raises:
            ResdeployError: the kind is "none".
        """
        if self.is_none:
            raise ResdeployError(
                f'{arch} has no form with norm="none": its norms read the residual stream, which '
                "the shortcut reads too, and so cannot be folded into the layer in front.",
                fix='use norm="batch" or norm="layer", or an architecture with post-norm blocks',
            )


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of an (N, C, H, W) tensor, at each position by itself.

        y[n, :, h, w] = weight * (x - mean_C x) / sqrt(var_C x + eps) + bias

    as in ConvNeXt (Liu et al. 2022, arXiv 2201.03545). `var` is the biased variance.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, of the same shape (N, C, H, W)."""
        # The operator normalises the last axis, so that C goes there and back: (N, H, W, C).
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_norm2d(spec: NormSpec, num_channels: int) -> nn.Module:
    """Return the norm of an (N, C, H, W) tensor."""
    match spec.kind:
        case "batch":
            return nn.BatchNorm2d(num_channels, eps=spec.eps, momentum=spec.momentum)
        case "layer":
            return LayerNorm2d(num_channels, eps=spec.eps)
        case "none":
            return nn.Identity()


def make_norm1d(spec: NormSpec, num_features: int) -> nn.Module:
    """Return the norm of an (N, F) tensor; a BatchNorm is one of (N, F, L) too."""
    match spec.kind:
        case "batch":
            return nn.BatchNorm1d(num_features, eps=spec.eps, momentum=spec.momentum)
        case "layer":
            return nn.LayerNorm(num_features, eps=spec.eps)
        case "none":
            return nn.Identity()


def make_norm3d(spec: NormSpec, num_channels: int) -> nn.Module:
    """Return the BatchNorm of an (N, C, T, H, W) tensor."""
    return nn.BatchNorm3d(num_channels, eps=spec.eps, momentum=spec.momentum)


def init_he(layers: Iterable[nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear]) -> None:
    """Initialise the weights normally with variance 2 / fan_out, and the biases with zero.

    He et al. 2015, arXiv 1502.01852: a layer followed by a ReLU then keeps the variance of what
    flows back through it. As in torchvision, the fan_out of a grouped convolution is counted as if
    it had one group.
    """
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def zero_last_scale(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Zero the scale of a residual branch that ends in `conv`, then `norm`.

    The branch then starts as zero and its block as the shortcut (Goyal et al. 2017, arXiv
    1706.02677, section 5.1). Where the norm is folded away its scale lives in the weight of the
    convolution, so that is what becomes zero: the fold of a zero gamma.
    """
    match norm:
        case nn.BatchNorm2d() | LayerNorm2d():
            nn.init.zeros_(norm.weight)
        case _:
            nn.init.zeros_(conv.weight)
