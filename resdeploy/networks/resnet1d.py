"""ResNet-18 and -34 for signals: the ImageNet networks with every convolution along one axis.

He et al. 2015, arXiv 1512.03385; for time series, Wang et al. 2016, arXiv 1611.06455. Parameter
names are those of torchvision's ResNet.

In shape comments N is the batch and L the length of the signal.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from resdeploy.networks.heads import HeadKind, make_head
from resdeploy.networks.norms import NormSpec, init_he, make_norm1d

__all__ = ["RESNET1D_LAYOUTS", "ResNet1d"]

# Blocks of each stage.
RESNET1D_LAYOUTS: Mapping[str, tuple[int, int, int, int]] = {
    "resnet1d18": (2, 2, 2, 2),
    "resnet1d34": (3, 4, 6, 3),
}


class ResNet1d(nn.Module):
    """A stem, four stages of residual blocks, global average pooling and a head.

    `kernel_size` is that of the convolutions in the blocks, an odd number.
    """

    def __init__(
        self,
        num_blocks: tuple[int, int, int, int],
        *,
        num_classes: int,
        in_channels: int = 12,
        kernel_size: int = 3,
        head: HeadKind = "linear",
        head_width: int = 512,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        norm = NormSpec(kind="batch", eps=norm_eps, momentum=norm_momentum)
        self.conv1 = nn.Conv1d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm1d(norm, 64)
        self.layer1 = _make_stage(64, 64, num_blocks[0], stride=1, size=kernel_size, norm=norm)
        self.layer2 = _make_stage(64, 128, num_blocks[1], stride=2, size=kernel_size, norm=norm)
        self.layer3 = _make_stage(128, 256, num_blocks[2], stride=2, size=kernel_size, norm=norm)
        self.layer4 = _make_stage(256, 512, num_blocks[3], stride=2, size=kernel_size, norm=norm)
        self.fc = make_head(512, num_classes, kind=head, width=head_width, dropout=dropout)
        init_he(module for module in self.modules() if isinstance(module, nn.Conv1d))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of the signals x (N, in_channels, L)."""
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 64, L/2)
        x = F.max_pool1d(x, 3, stride=2, padding=1)  # (N, 64, L/4)
        x = self.layer1(x)  # (N, 64, L/4)
        x = self.layer2(x)  # (N, 128, L/8)
        x = self.layer3(x)  # (N, 256, L/16)
        x = self.layer4(x)  # (N, 512, L/32)
        logits: Tensor = self.fc(x.mean(2))  # of (N, 512)
        return logits


class Block(nn.Module):
    """Two convolutions: y = relu(x' + bn2(conv2(relu(bn1(conv1(x)))))).

    x' is x, or its projection by `downsample` where the shape changes.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, size: int, norm: NormSpec
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(
            in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False
        )
        self.bn1 = make_norm1d(norm, out_channels)
        self.conv2 = nn.Conv1d(out_channels, out_channels, size, padding=size // 2, bias=False)
        self.bn2 = make_norm1d(norm, out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv1d(in_channels, out_channels, 1, stride=stride, bias=False),
                make_norm1d(norm, out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, L) to (N, out_channels, L/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


def _make_stage(
    in_channels: int, out_channels: int, num_blocks: int, *, stride: int, size: int, norm: NormSpec
) -> nn.Sequential:
    first = Block(in_channels, out_channels, stride=stride, size=size, norm=norm)
    others = (
        Block(out_channels, out_channels, stride=1, size=size, norm=norm)
        for _ in range(num_blocks - 1)
    )
    return nn.Sequential(first, *others)
