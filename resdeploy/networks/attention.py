"""Channel attention and anti-aliasing: the parts that variants of the ResNet add to its blocks.

In shape comments N is the batch, C the channels and (H, W) the size of the map.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Attention",
    "BlurPool",
    "EfficientChannelAttention",
    "SqueezeExcite",
    "make_attention",
]

Attention = Literal["none", "se", "eca"]


def make_attention(kind: Attention, num_channels: int) -> nn.Module:
    """Return the attention over a block's output channels, of the widths that timm gives it."""
    match kind:
        case "se":
            # A sixteenth of the channels, in whole eights.
            return SqueezeExcite(num_channels, max(8, (num_channels // 16 + 4) // 8 * 8))
        case "eca":
            return EfficientChannelAttention(num_channels)
        case "none":
            return nn.Identity()


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: each channel times a factor computed from the means of all.

    Hu et al. 2017, arXiv 1709.01507. Parameter names are those of timm and torchvision.
    """

    def __init__(self, num_channels: int, num_squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(num_channels, num_squeezed, 1)
        self.fc2 = nn.Conv2d(num_squeezed, num_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted map (N, C, H, W)."""
        s = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        s = torch.sigmoid(self.fc2(F.relu(self.fc1(s))))
        return x * s


class EfficientChannelAttention(nn.Module):
    """ECA: each channel times a factor computed from the means of its neighbours.

    Wang et al. 2019, arXiv 1910.03151: one convolution along the channels, whose kernel grows with
    the logarithm of their number (gamma = 2, b = 1). Parameter names are timm's.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        size = int((math.log2(num_channels) + 1) / 2)
        size = max(3, size + (size + 1) % 2)  # the next odd number
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted map (N, C, H, W)."""
        s = self.conv(x.mean((2, 3)).unsqueeze(1))  # (N, 1, C)
        s = torch.sigmoid(s.squeeze(1))[:, :, None, None]  # (N, C, 1, 1)
        return x * s


class BlurPool(nn.Module):
    """Every second pixel of a map blurred with the binomial filter (1, 2, 1) / 4 along each axis.

    Zhang 2019, arXiv 1904.11486. The filter is two means of two neighbours, one after the other,
    and so needs no weights; the border is mirrored.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H/2, W/2), rounded up."""
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1), 2, stride=2)
