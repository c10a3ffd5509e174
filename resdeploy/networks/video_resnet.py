"""ResNets for video, with the parameter names of torchvision.models.video.

Tran et al. 2017, arXiv 1711.11248: a ResNet-18 whose convolutions go along time too.

r3d_18       every convolution is 3x3x3;
mc3_18       from the second stage on they are 1x3x3, within a frame ("mixed convolutions");
r2plus1d_18  each is a 1x3x3 and then a 3x1x1, of as many parameters together as the 3x3x3.

In shape comments N is the batch, T the number of frames and (H, W) the size of a frame. Where the
convolutions stay within a frame, so do the strides: T is then the stem's to the end.
"""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from resdeploy.networks.heads import HeadKind, make_head
from resdeploy.networks.norms import NormSpec, init_he, make_norm3d

__all__ = ["VIDEO_LAYOUTS", "VideoResNet"]

# Convolution of a stage: over time and space, over space alone, or over space and then time.
Convolution = Literal["3d", "2d", "2d+1d"]

VIDEO_LAYOUTS: Mapping[str, tuple[Convolution, Convolution, Convolution, Convolution]] = {
    "r3d_18": ("3d", "3d", "3d", "3d"),
    "mc3_18": ("3d", "2d", "2d", "2d"),
    "r2plus1d_18": ("2d+1d", "2d+1d", "2d+1d", "2d+1d"),
}


class VideoResNet(nn.Module):
    """A stem, four stages of two residual blocks each, global average pooling and a head."""

    def __init__(
        self,
        layout: tuple[Convolution, Convolution, Convolution, Convolution],
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
        self.stem = _make_stem(in_channels, layout[0], norm=norm)
        self.layer1 = _make_stage(64, 64, layout[0], stride=1, norm=norm)
        self.layer2 = _make_stage(64, 128, layout[1], stride=2, norm=norm)
        self.layer3 = _make_stage(128, 256, layout[2], stride=2, norm=norm)
        self.layer4 = _make_stage(256, 512, layout[3], stride=2, norm=norm)
        self.fc = make_head(512, num_classes, kind=head, width=head_width, dropout=dropout)
        init_he(module for module in self.modules() if isinstance(module, nn.Conv3d))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of the clips x (N, in_channels, T, H, W)."""
        x = self.stem(x)  # (N, 64, T, H/2, W/2)
        x = self.layer1(x)  # (N, 64, T, H/2, W/2)
        x = self.layer2(x)  # (N, 128, T/2, H/4, W/4)
        x = self.layer3(x)  # (N, 256, T/4, H/8, W/8)
        x = self.layer4(x)  # (N, 512, T/8, H/16, W/16)
        x = F.adaptive_avg_pool3d(x, 1).flatten(1)  # (N, 512)
        logits: Tensor = self.fc(x)
        return logits


class Block(nn.Module):
    """Two convolutions, each with its norm: y = relu(x' + conv2(relu(conv1(x)))).

    x' is x, or its projection by `downsample` where the shape changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kind: Convolution,
        *,
        stride: int,
        norm: NormSpec,
    ) -> None:
        super().__init__()
        # Both convolutions of the block have the inner width of the first.
        between = in_channels * out_channels * 27 // (in_channels * 9 + 3 * out_channels)
        self.conv1 = nn.Sequential(
            _convolution(in_channels, out_channels, kind, between, stride=stride, norm=norm),
            make_norm3d(norm, out_channels),
            nn.ReLU(),
        )
        self.conv2 = nn.Sequential(
            _convolution(out_channels, out_channels, kind, between, stride=1, norm=norm),
            make_norm3d(norm, out_channels),
        )
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            strides = (1 if kind == "2d" else stride, stride, stride)
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride=strides, bias=False),
                make_norm3d(norm, out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, T, H, W) to (N, out_channels, T/stride, H/stride, W/stride)."""
        return F.relu(self.conv2(self.conv1(x)) + self.downsample(x))


def _make_stem(in_channels: int, kind: Convolution, *, norm: NormSpec) -> nn.Sequential:
    """Return the first convolution, 7x7 within a frame, of 3 frames or followed by one of them."""
    if kind == "2d+1d":
        return nn.Sequential(
            nn.Conv3d(in_channels, 45, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
            make_norm3d(norm, 45),
            nn.ReLU(),
            nn.Conv3d(45, 64, (3, 1, 1), padding=(1, 0, 0), bias=False),
            make_norm3d(norm, 64),
            nn.ReLU(),
        )
    return nn.Sequential(
        nn.Conv3d(in_channels, 64, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
        make_norm3d(norm, 64),
        nn.ReLU(),
    )


def _convolution(
    in_channels: int,
    out_channels: int,
    kind: Convolution,
    between: int,
    *,
    stride: int,
    norm: NormSpec,
) -> nn.Module:
    """Return a convolution of the kind; `between` are the channels within one of "2d+1d"."""
    if kind == "3d":
        return nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    within = nn.Conv3d(
        in_channels,
        out_channels if kind == "2d" else between,
        (1, 3, 3),
        stride=(1, stride, stride),
        padding=(0, 1, 1),
        bias=False,
    )
    if kind == "2d":
        return within
    return nn.Sequential(
        within,
        make_norm3d(norm, between),
        nn.ReLU(),
        nn.Conv3d(
            between, out_channels, (3, 1, 1), stride=(stride, 1, 1), padding=(1, 0, 0), bias=False
        ),
    )


def _make_stage(
    in_channels: int, out_channels: int, kind: Convolution, *, stride: int, norm: NormSpec
) -> nn.Sequential:
    return nn.Sequential(
        Block(in_channels, out_channels, kind, stride=stride, norm=norm),
        Block(out_channels, out_channels, kind, stride=1, norm=norm),
    )
