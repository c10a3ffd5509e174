"""The ImageNet ResNets, with the parameter names of torchvision and timm, so that weights load.

He et al. 2015, arXiv 1512.03385 (resnet18 to resnet152); Zagoruyko & Komodakis 2016, arXiv
1605.07146 (wide_resnet50_2: the 3x3 convolution of each bottleneck twice as wide); Xie et al.
2017, arXiv 1611.05431 (resnext50_32x4d: that convolution in 32 groups of 4 channels each).

Bottlenecks are "v1.5", as torchvision's: the stride is in the 3x3 convolution and not, as in the
paper, in the 1x1 before it, which would skip three of every four positions.

Variants are options, with timm's parameter names:

stem        "imagenet": a 7x7 convolution with stride 2, then pooling. "cifar": a 3x3 convolution
            that keeps the size of a small image, and no pooling. "deep": three 3x3 convolutions in
            place of the 7x7, the first two `stem_width` wide and the last twice that. "tiered": the
            same with three quarters of `stem_width` in the first.
avg_down    a shortcut that averages before its 1x1 convolution, in place of a stride, which skips
            (He et al. 2018, arXiv 1812.01187: with a deep stem, ResNet-D).
attention   squeeze-and-excitation or ECA at the end of each residual branch.
blur_pool   a blur before each stride of the trunk (Zhang 2019, arXiv 1904.11486).

In shape comments N is the batch, (H, W) the size of the input image and e the block's expansion,
1 for a BasicBlock and 4 for a Bottleneck.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from resdeploy.networks.attention import Attention, BlurPool, make_attention
from resdeploy.networks.cifar_resnet import make_shortcut
from resdeploy.networks.heads import HeadKind, make_head
from resdeploy.networks.norms import NormKind, NormSpec, init_he, make_norm2d, zero_last_scale

__all__ = ["RESNET_LAYOUTS", "ResNet", "ResNetLayout", "Stem"]

Stem = Literal["imagenet", "cifar", "deep", "tiered"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockForm:
    """Form that all blocks of a network have in common: see the module's docstring."""

    norm: NormSpec
    groups: int
    avg_down: bool
    attention: Attention
    blur_pool: bool


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, global average pooling and a head.

    The norms are called bn1, bn2, ... whatever their kind, as those names are in every file of
    published weights.
    """

    def __init__(
        self,
        layout: ResNetLayout,
        *,
        num_classes: int,
        in_channels: int = 3,
        stem: Stem = "imagenet",
        stem_width: int = 32,
        avg_down: bool = False,
        attention: Attention = "none",
        blur_pool: bool = False,
        head: HeadKind = "linear",
        head_width: int = 512,
        dropout: float = 0.0,
        norm: NormKind = "batch",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        zero_init_last_gamma: bool = False,
    ) -> None:
        super().__init__()
        spec = NormSpec(kind=norm, eps=norm_eps, momentum=norm_momentum)
        form = BlockForm(
            norm=spec,
            groups=layout.groups,
            avg_down=avg_down,
            attention=attention,
            blur_pool=blur_pool,
        )
        self.conv1, width = _make_stem(stem, in_channels, stem_width, norm=spec)
        self.bn1 = make_norm2d(spec, width)
        self.maxpool = _make_pooling(stem, blur_pool=blur_pool)
        self.layer1 = _make_stage(layout, form, stage=0, in_channels=width)
        expansion = layout.block.expansion
        self.layer2 = _make_stage(layout, form, stage=1, in_channels=64 * expansion)
        self.layer3 = _make_stage(layout, form, stage=2, in_channels=128 * expansion)
        self.layer4 = _make_stage(layout, form, stage=3, in_channels=256 * expansion)
        self.fc = make_head(
            512 * expansion, num_classes, kind=head, width=head_width, dropout=dropout
        )

        init_he(module for module in self.modules() if isinstance(module, nn.Conv2d))
        if zero_init_last_gamma:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    zero_last_scale(module.conv2, module.bn2)
                elif isinstance(module, Bottleneck):
                    zero_last_scale(module.conv3, module.bn3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of the images x (N, in_channels, H, W).

        Sizes are those with the "imagenet" stem; the "cifar" stem keeps H and W.
        """
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 64, H/2, W/2)
        x = self.maxpool(x)  # (N, 64, H/4, W/4)
        x = self.layer1(x)  # (N, 64 e, H/4, W/4)
        x = self.layer2(x)  # (N, 128 e, H/8, W/8)
        x = self.layer3(x)  # (N, 256 e, H/16, W/16)
        x = self.layer4(x)  # (N, 512 e, H/32, W/32)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 512 e)
        logits: Tensor = self.fc(x)
        return logits


def _make_stem(
    stem: Stem, in_channels: int, stem_width: int, *, norm: NormSpec
) -> tuple[nn.Module, int]:
    """Return the convolutions before bn1, and how many channels they give."""
    bias = norm.is_none  # the norm that follows would subtract one again
    if stem == "imagenet":
        return nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=bias), 64
    if stem == "cifar":
        return nn.Conv2d(in_channels, 64, 3, padding=1, bias=bias), 64
    first = 3 * (stem_width // 4) if stem == "tiered" else stem_width
    convolutions = nn.Sequential(
        nn.Conv2d(in_channels, first, 3, stride=2, padding=1, bias=bias),
        make_norm2d(norm, first),
        nn.ReLU(),
        nn.Conv2d(first, stem_width, 3, padding=1, bias=bias),
        make_norm2d(norm, stem_width),
        nn.ReLU(),
        nn.Conv2d(stem_width, 2 * stem_width, 3, padding=1, bias=bias),
    )
    return convolutions, 2 * stem_width


def _make_pooling(stem: Stem, *, blur_pool: bool) -> nn.Module:
    if stem == "cifar":
        return nn.Identity()
    if blur_pool:
        return nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BlurPool())
    return nn.MaxPool2d(3, stride=2, padding=1)


def _make_stage(
    layout: ResNetLayout, form: BlockForm, *, stage: int, in_channels: int
) -> nn.Sequential:
    block = layout.block
    planes = 64 * 2**stage
    out_channels = planes * block.expansion
    # Width of the bottleneck's 3x3 convolution; a BasicBlock has no such width (it is 64 there).
    width = planes * layout.width_per_group // 64 * layout.groups
    blocks = [
        block(
            in_channels if i == 0 else out_channels,
            out_channels,
            width=width,
            # The max pooling has just halved the image, so that the first stage does not.
            stride=2 if i == 0 and stage > 0 else 1,
            form=form,
        )
        for i in range(layout.num_blocks[stage])
    ]
    return nn.Sequential(*blocks)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: y = relu(x' + se(bn2(conv2(aa(relu(bn1(conv1(x)))))))).

    x' is x, or its projection by `downsample` where the shape changes (option B of the paper). se
    is the attention and aa the blur, which takes over the stride; each is the identity without.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, out_channels: int, *, width: int, stride: int, form: BlockForm
    ) -> None:
        super().__init__()
        bias = form.norm.is_none  # the norm that follows would subtract one again
        blurred = form.blur_pool and stride > 1
        self.conv1 = nn.Conv2d(
            in_channels,
            width,
            3,
            stride=1 if blurred else stride,
            padding=1,
            groups=form.groups,
            bias=bias,
        )
        self.bn1 = make_norm2d(form.norm, width)
        self.aa = BlurPool() if blurred else nn.Identity()
        self.conv2 = nn.Conv2d(width, out_channels, 3, padding=1, bias=bias)
        self.bn2 = make_norm2d(form.norm, out_channels)
        self.se = make_attention(form.attention, out_channels)
        self.downsample = _make_downsample(in_channels, out_channels, stride=stride, form=form)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        y = self.aa(F.relu(self.bn1(self.conv1(x))))
        y = self.se(self.bn2(self.conv2(y)))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions: y = relu(x' + se(bn3(conv3(aa(relu(bn2(conv2(...)))))))).

    x' is x, or its projection by `downsample` where the shape changes (option B of the paper). se
    is the attention and aa the blur, which takes over the stride; each is the identity without.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, out_channels: int, *, width: int, stride: int, form: BlockForm
    ) -> None:
        super().__init__()
        bias = form.norm.is_none  # the norm that follows would subtract one again
        blurred = form.blur_pool and stride > 1
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=bias)
        self.bn1 = make_norm2d(form.norm, width)
        self.conv2 = nn.Conv2d(
            width,
            width,
            3,
            stride=1 if blurred else stride,
            padding=1,
            groups=form.groups,
            bias=bias,
        )
        self.bn2 = make_norm2d(form.norm, width)
        self.aa = BlurPool() if blurred else nn.Identity()
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=bias)
        self.bn3 = make_norm2d(form.norm, out_channels)
        self.se = make_attention(form.attention, out_channels)
        self.downsample = _make_downsample(in_channels, out_channels, stride=stride, form=form)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.aa(F.relu(self.bn2(self.conv2(y))))
        y = self.se(self.bn3(self.conv3(y)))
        return F.relu(y + self.downsample(x))


def _make_downsample(
    in_channels: int, out_channels: int, *, stride: int, form: BlockForm
) -> nn.Module:
    if not form.avg_down or (stride == 1 and in_channels == out_channels):
        return make_shortcut(in_channels, out_channels, stride=stride, option="B", norm=form.norm)
    # A size that is odd ends in a mean of fewer.
    pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
    return nn.Sequential(
        pool,
        nn.Conv2d(in_channels, out_channels, 1, bias=form.norm.is_none),
        make_norm2d(form.norm, out_channels),
    )


RESNET_LAYOUTS: Mapping[str, ResNetLayout] = {
    "resnet18": ResNetLayout(block=BasicBlock, num_blocks=(2, 2, 2, 2)),
    "resnet34": ResNetLayout(block=BasicBlock, num_blocks=(3, 4, 6, 3)),
    "resnet50": ResNetLayout(block=Bottleneck, num_blocks=(3, 4, 6, 3)),
    "resnet101": ResNetLayout(block=Bottleneck, num_blocks=(3, 4, 23, 3)),
    "resnet152": ResNetLayout(block=Bottleneck, num_blocks=(3, 8, 36, 3)),
    "wide_resnet50_2": ResNetLayout(block=Bottleneck, num_blocks=(3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": ResNetLayout(
        block=Bottleneck, num_blocks=(3, 4, 23, 3), width_per_group=128
    ),
    "resnext50_32x4d": ResNetLayout(
        block=Bottleneck, num_blocks=(3, 4, 6, 3), groups=32, width_per_group=4
    ),
    "resnext101_32x8d": ResNetLayout(
        block=Bottleneck, num_blocks=(3, 4, 23, 3), groups=32, width_per_group=8
    ),
    "resnext101_64x4d": ResNetLayout(
        block=Bottleneck, num_blocks=(3, 4, 23, 3), groups=64, width_per_group=4
    ),
}
