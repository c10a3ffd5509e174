"""The small ResNets for CIFAR, and the plain networks they are compared with.

He et al. 2015, arXiv 1512.03385, section 4.2. A 3x3 convolution, then three stages of n blocks of
two 3x3 convolutions with `width`, 2 `width` and 4 `width` channels (16, 32, 64 in the paper), then
the classifier: 6n + 2 layers with weights, n = 3, 5, 7, 9, 18. Parameter names are those of the
widely used weights of akamaster/pytorch_resnet_cifar10.

A plain network has the same layers and no shortcuts. It is there to show the degradation that
residual learning cures: more layers, higher *training* error.

In shape comments N is the batch, (H, W) the size of the input image and C is `width`. Any image
size will do with a quarter of at least one pixel.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from resdeploy.networks.heads import make_head
from resdeploy.networks.norms import NormKind, NormSpec, init_he, make_norm2d, zero_last_scale

__all__ = [
    "CIFAR_DEPTHS",
    "BasicBlock",
    "CifarResNet",
    "ShortcutOption",
    "ZeroPadShortcut",
    "make_shortcut",
    "make_stages",
]

CIFAR_DEPTHS = (20, 32, 44, 56, 110)

# The paper's three options, section 4.1:
# A  no parameters: where the shape changes every second pixel, and zeros for the new channels;
# B  projections, 1x1 convolutions, where the shape changes;
# C  projections everywhere.
ShortcutOption = Literal["A", "B", "C"]


class CifarResNet(nn.Module):
    """A stem, three stages of basic blocks, global average pooling and a linear classifier.

    The norms are called bn1 and bn2 whatever their kind. A `plain` network has no shortcuts, and
    thus no use for `zero_init_last_gamma`: a block that starts as zero would stay zero.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        in_channels: int = 3,
        width: int = 16,
        plain: bool,
        shortcut: ShortcutOption = "A",
        norm: NormKind = "batch",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        zero_init_last_gamma: bool = False,
    ) -> None:
        super().__init__()
        spec = NormSpec(kind=norm, eps=norm_eps, momentum=norm_momentum)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=spec.is_none)
        self.bn1 = make_norm2d(spec, width)
        make_block = partial(
            BasicBlock,
            # The norm that follows a convolution would subtract a bias again.
            bias=spec.is_none,
            norm=spec,
            make_shortcut=None if plain else partial(make_shortcut, option=shortcut, norm=spec),
        )
        self.layer1, self.layer2, self.layer3 = make_stages(make_block, depth, width)
        self.linear = make_head(4 * width, num_classes)
        init_he(module for module in self.modules() if isinstance(module, nn.Conv2d))
        if zero_init_last_gamma:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    zero_last_scale(module.conv2, module.bn2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of the images x (N, in_channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))  # (N, C, H, W)
        x = self.layer1(x)  # (N, C, H, W)
        x = self.layer2(x)  # (N, 2 C, H/2, W/2)
        x = self.layer3(x)  # (N, 4 C, H/4, W/4)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 4 C)
        logits: Tensor = self.linear(x)
        return logits


def make_stages(
    make_block: Callable[..., nn.Module], depth: int, width: int
) -> list[nn.Sequential]:
    """Return the three stages of a network with 6n + 2 layers, n blocks each."""
    stages = []
    in_channels = width
    for stride, out_channels in ((1, width), (2, 2 * width), (2, 4 * width)):
        first = make_block(in_channels, out_channels, stride=stride)
        others = (
            make_block(out_channels, out_channels, stride=1) for _ in range((depth - 2) // 6 - 1)
        )
        stages.append(nn.Sequential(first, *others))
        in_channels = out_channels
    return stages


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: y = relu(x' + bn2(conv2(relu(bn1(conv1(x)))))).

    x' is the shortcut of x, and 0 without one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        bias: bool,
        norm: NormSpec,
        make_shortcut: Callable[..., nn.Module] | None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)
        self.bn1 = make_norm2d(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.bn2 = make_norm2d(norm, out_channels)
        self.shortcut = make_shortcut and make_shortcut(in_channels, out_channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        y: Tensor = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return F.relu(y)


class ZeroPadShortcut(nn.Module):
    """Option A: keep every `stride`-th pixel and put the channels in the middle of zeros.

    The paper does not say on which side the zeros go. They are split evenly, as in the published
    weights' network; an odd one goes last.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.num_before = (out_channels - in_channels) // 2
        self.num_after = out_channels - in_channels - self.num_before

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        x = x[:, :, :: self.stride, :: self.stride]
        # F.pad counts from the last axis: none along W, none along H, then along C.
        return F.pad(x, (0, 0, 0, 0, self.num_before, self.num_after))


def make_shortcut(
    in_channels: int, out_channels: int, *, stride: int, option: ShortcutOption, norm: NormSpec
) -> nn.Module:
    """Return the shortcut of a block; a projection is followed by a norm."""
    changes_shape = stride != 1 or in_channels != out_channels
    if option == "C" or (option == "B" and changes_shape):
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=norm.is_none),
            make_norm2d(norm, out_channels),
        )
    if changes_shape:
        return ZeroPadShortcut(in_channels, out_channels, stride=stride)
    return nn.Identity()
