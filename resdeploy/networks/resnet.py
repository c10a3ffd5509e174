"""The ImageNet ResNets, with the parameter names of torchvision, so that its weights load.

He et al. 2015, arXiv 1512.03385 (resnet18 to resnet152); Zagoruyko & Komodakis 2016, arXiv
1605.07146 (wide_resnet50_2: the 3x3 convolution of each bottleneck twice as wide); Xie et al.
2017, arXiv 1611.05431 (resnext50_32x4d: that convolution in 32 groups of 4 channels each).

Bottlenecks are "v1.5", as torchvision's: the stride is in the 3x3 convolution and not, as in the
paper, in the 1x1 before it, which would skip three of every four positions.

In shape comments N is the batch, (H, W) the size of the input image and e the block's expansion,
1 for a BasicBlock and 4 for a Bottleneck.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from resdeploy.networks.cifar_resnet import make_shortcut
from resdeploy.networks.norms import NormKind, NormSpec, init_he, make_norm2d, zero_last_scale

__all__ = ["RESNET_LAYOUTS", "ResNet", "ResNetLayout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetLayout:
    """Layout of a ResNet: its kind of block, and their number in each of the four stages.

    `groups` are of the 3x3 convolution in a bottleneck; `width_per_group` are channels of one such
    group in the first stage, and double with each stage.
    """

    block: type["BasicBlock"] | type["Bottleneck"]
    num_blocks: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, global average pooling and a linear classifier.

    The norms are called bn1, bn2, ... whatever their kind, as those names are in every file of
    published weights.
    """

    def __init__(
        self,
        layout: ResNetLayout,
        *,
        num_classes: int,
        in_channels: int = 3,
        norm: NormKind = "batch",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        zero_init_last_gamma: bool = False,
    ) -> None:
        super().__init__()
        spec = NormSpec(kind=norm, eps=norm_eps, momentum=norm_momentum)
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=spec.is_none)
        self.bn1 = make_norm2d(spec, 64)
        self.layer1 = _make_stage(layout, stage=0, norm=spec)
        self.layer2 = _make_stage(layout, stage=1, norm=spec)
        self.layer3 = _make_stage(layout, stage=2, norm=spec)
        self.layer4 = _make_stage(layout, stage=3, norm=spec)
        self.fc = nn.Linear(512 * layout.block.expansion, num_classes)

        init_he(module for module in self.modules() if isinstance(module, nn.Conv2d))
        if zero_init_last_gamma:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    zero_last_scale(module.conv2, module.bn2)
                elif isinstance(module, Bottleneck):
                    zero_last_scale(module.conv3, module.bn3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of the images x (N, in_channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 64, H/2, W/2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)  # (N, 64, H/4, W/4)
        x = self.layer1(x)  # (N, 64 e, H/4, W/4)
        x = self.layer2(x)  # (N, 128 e, H/8, W/8)
        x = self.layer3(x)  # (N, 256 e, H/16, W/16)
        x = self.layer4(x)  # (N, 512 e, H/32, W/32)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 512 e)
        logits: Tensor = self.fc(x)
        return logits


def _make_stage(layout: ResNetLayout, *, stage: int, norm: NormSpec) -> nn.Sequential:
    block = layout.block
    planes = 64 * 2**stage
    out_channels = planes * block.expansion
    # The stem gives 64 channels; each stage gives half of what the next one does.
    in_channels = 64 if stage == 0 else out_channels // 2
    # Width of the bottleneck's 3x3 convolution; a BasicBlock has no such width (it is 64 there).
    width = planes * layout.width_per_group // 64 * layout.groups
    blocks = [
        block(
            in_channels if i == 0 else out_channels,
            out_channels,
            width=width,
            # The max pooling has just halved the image, so that the first stage does not.
            stride=2 if i == 0 and stage > 0 else 1,
            groups=layout.groups,
            norm=norm,
        )
        for i in range(layout.num_blocks[stage])
    ]
    return nn.Sequential(*blocks)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: y = relu(x' + bn2(conv2(relu(bn1(conv1(x)))))).

    x' is x, or its projection by `downsample` where the shape changes (option B of the paper).
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        stride: int,
        groups: int,
        norm: NormSpec,
    ) -> None:
        super().__init__()
        bias = norm.is_none  # the norm that follows would subtract one again
        self.conv1 = nn.Conv2d(
            in_channels, width, 3, stride=stride, padding=1, groups=groups, bias=bias
        )
        self.bn1 = make_norm2d(norm, width)
        self.conv2 = nn.Conv2d(width, out_channels, 3, padding=1, bias=bias)
        self.bn2 = make_norm2d(norm, out_channels)
        self.downsample = make_shortcut(
            in_channels, out_channels, stride=stride, option="B", norm=norm
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions: y = relu(x' + bn3(conv3(relu(bn2(conv2(relu(...))))))).

    x' is x, or its projection by `downsample` where the shape changes (option B of the paper).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        stride: int,
        groups: int,
        norm: NormSpec,
    ) -> None:
        super().__init__()
        bias = norm.is_none  # the norm that follows would subtract one again
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=bias)
        self.bn1 = make_norm2d(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=bias)
        self.bn2 = make_norm2d(norm, width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=bias)
        self.bn3 = make_norm2d(norm, out_channels)
        self.downsample = make_shortcut(
            in_channels, out_channels, stride=stride, option="B", norm=norm
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x))


RESNET_LAYOUTS: Mapping[str, ResNetLayout] = {
    "resnet18": ResNetLayout(block=BasicBlock, num_blocks=(2, 2, 2, 2)),
    "resnet34": ResNetLayout(block=BasicBlock, num_blocks=(3, 4, 6, 3)),
    "resnet50": ResNetLayout(block=Bottleneck, num_blocks=(3, 4, 6, 3)),
    "resnet101": ResNetLayout(block=Bottleneck, num_blocks=(3, 4, 23, 3)),
    "resnet152": ResNetLayout(block=Bottleneck, num_blocks=(3, 8, 36, 3)),
    "wide_resnet50_2": ResNetLayout(block=Bottleneck, num_blocks=(3, 4, 6, 3), width_per_group=128),
    "resnext50_32x4d": ResNetLayout(
        block=Bottleneck, num_blocks=(3, 4, 6, 3), groups=32, width_per_group=4
    ),
}
