"""RegNet: ResNets of bottlenecks whose widths follow one line, with torchvision's parameter names.

Radosavovic et al. 2020, arXiv 2003.13678. The width of block j is w_0 + w_a j, moved to the nearest
of w_0 w_m^k, k = 0, 1, …, and to whole eights; blocks of one width are a stage, which halves the
image. The 3x3 convolution has groups of `group_width` channels, and all widths are multiples of it.
RegNetY has squeeze-and-excitation before the last convolution, RegNetX has not.

In shape comments N is the batch, (H, W) the size of the input image and C the width of the last
stage.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from resdeploy.networks.attention import SqueezeExcite
from resdeploy.networks.heads import HeadKind, make_head
from resdeploy.networks.norms import NormSpec, init_he, make_norm2d

__all__ = ["REGNET_LAYOUTS", "RegNet", "RegNetLayout"]

_STEM_WIDTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RegNetLayout:
    """Layout of a RegNet: the paper's parameters, and whether it is a RegNetY."""

    depth: int
    w_0: int
    w_a: float
    w_m: float
    group_width: int
    has_attention: bool

    @property
    def stages(self) -> list[tuple[int, int]]:
        """Width and number of blocks of each stage."""
        widths = []
        for j in range(self.depth):
            power = round(math.log((self.w_0 + self.w_a * j) / self.w_0) / math.log(self.w_m))
            widths.append(round(self.w_0 * self.w_m**power / 8) * 8)
        return [(self._whole_groups(width), count) for width, count in Counter(widths).items()]

    def _whole_groups(self, width: int) -> int:
        """Return the multiple of the group width nearest to `width`, at least 0.9 of it."""
        group = min(self.group_width, width)
        nearest = max(group, (width + group // 2) // group * group)
        return nearest if nearest >= 0.9 * width else nearest + group


class RegNet(nn.Module):
    """A 3x3 convolution, stages of bottlenecks, global average pooling and a head."""

    def __init__(
        self,
        layout: RegNetLayout,
        *,
        num_classes: int,
        in_channels: int = 3,
        head: HeadKind = "linear",
        head_width: int = 512,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        norm = NormSpec(kind="batch", eps=norm_eps, momentum=norm_momentum)
        self.stem = _conv_norm(in_channels, _STEM_WIDTH, kernel=3, stride=2, norm=norm)
        self.stem.append(nn.ReLU())
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        old = _STEM_WIDTH
        for k, (new, num_blocks) in enumerate(layout.stages, start=1):
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(num_blocks):
                blocks[f"block{k}-{i}"] = Block(
                    new if i else old, new, stride=1 if i else 2, layout=layout, norm=norm
                )
            stages[f"block{k}"] = nn.Sequential(blocks)
            old = new
        self.trunk_output = nn.Sequential(stages)
        self.fc = make_head(old, num_classes, kind=head, width=head_width, dropout=dropout)
        init_he(module for module in self.modules() if isinstance(module, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of the images x (N, in_channels, H, W)."""
        x = self.stem(x)  # (N, 32, H/2, W/2)
        x = self.trunk_output(x)  # (N, C, H/32, W/32)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, C)
        logits: Tensor = self.fc(x)
        return logits


class Block(nn.Module):
    """1x1, 3x3 and 1x1 convolutions: y = relu(x' + c(se(b(a(x))))).

    a and b end in norm and ReLU, c in a norm; x' is x, or its projection where the shape changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        layout: RegNetLayout,
        norm: NormSpec,
    ) -> None:
        super().__init__()
        self.proj: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.proj = _conv_norm(in_channels, out_channels, kernel=1, stride=stride, norm=norm)
        groups = out_channels // min(layout.group_width, out_channels)
        a = _conv_norm(in_channels, out_channels, kernel=1, stride=1, norm=norm)
        b = _conv_norm(
            out_channels, out_channels, kernel=3, stride=stride, groups=groups, norm=norm
        )
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["a"], parts["b"] = a.append(nn.ReLU()), b.append(nn.ReLU())
        if layout.has_attention:
            # A quarter of what enters the block, not of what is weighted.
            parts["se"] = SqueezeExcite(out_channels, round(in_channels / 4))
        parts["c"] = _conv_norm(out_channels, out_channels, kernel=1, stride=1, norm=norm)
        self.f = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        return F.relu(self.proj(x) + self.f(x))


def _conv_norm(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int,
    stride: int,
    norm: NormSpec,
    groups: int = 1,
) -> nn.Sequential:
    convolution = nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=False,
    )
    return nn.Sequential(convolution, make_norm2d(norm, out_channels))


# depth, w_0, w_a, w_m and group width, of the paper's tables 4 and 5 as torchvision has them.
_X = {
    "400mf": (22, 24, 24.48, 2.54, 16),
    "800mf": (16, 56, 35.73, 2.28, 16),
    "1_6gf": (18, 80, 34.01, 2.25, 24),
    "3_2gf": (25, 88, 26.31, 2.25, 48),
    "8gf": (23, 80, 49.56, 2.88, 120),
    "16gf": (22, 216, 55.59, 2.1, 128),
    "32gf": (23, 320, 69.86, 2.0, 168),
}
_Y = {
    "400mf": (16, 48, 27.89, 2.09, 8),
    "800mf": (14, 56, 38.84, 2.4, 16),
    "1_6gf": (27, 48, 20.71, 2.65, 24),
    "3_2gf": (21, 80, 42.63, 2.66, 24),
    "8gf": (17, 192, 76.82, 2.19, 56),
    "16gf": (18, 200, 106.23, 2.48, 112),
    "32gf": (20, 232, 115.89, 2.53, 232),
}
REGNET_LAYOUTS: Mapping[str, RegNetLayout] = {
    f"regnet_{letter}_{size}": RegNetLayout(
        depth=depth, w_0=w_0, w_a=w_a, w_m=w_m, group_width=width, has_attention=letter == "y"
    )
    for letter, table in (("x", _X), ("y", _Y))
    for size, (depth, w_0, w_a, w_m, width) in table.items()
}
