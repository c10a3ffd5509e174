"""The ResNets of ArcFace for faces, with the parameter names of insightface's iresnet.

Deng et al. 2018, arXiv 1801.07698, after Han et al. 2016, arXiv 1610.02915: a block begins with a
norm, has a PReLU between its convolutions and none after the sum. The stem keeps the size of the
image; in place of pooling there is a linear layer over the last map, 7 by 7 for images of 112 by
112, and a norm gives the embedding. `num_classes` is the length of the embedding, mostly 512.

In shape comments N is the batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from resdeploy.errors import ResdeployError
from resdeploy.networks.cifar_resnet import make_shortcut
from resdeploy.networks.norms import NormSpec, init_he, make_norm1d, make_norm2d

__all__ = ["IRESNET_LAYOUTS", "IResNet"]

# Blocks of each stage.
IRESNET_LAYOUTS: Mapping[str, tuple[int, int, int, int]] = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}


class IResNet(nn.Module):
    """A stem, four stages of blocks that each halve the image, and a linear layer over the map.

    Raises:
        ResdeployError: `num_classes` is zero: the embedding is what the network is for.
    """

    def __init__(
        self,
        num_blocks: tuple[int, int, int, int],
        *,
        num_classes: int,
        in_channels: int = 3,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if num_classes == 0:
            raise ResdeployError(
                "An iresnet has no form without its last layer, which gives the embedding.",
                fix="num_classes is the length of the embedding, such as 512",
            )
        norm = NormSpec(kind="batch", eps=norm_eps, momentum=norm_momentum)
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = make_norm2d(norm, 64)
        self.prelu = nn.PReLU(64)
        self.layer1 = _make_stage(64, 64, num_blocks[0], norm=norm)
        self.layer2 = _make_stage(64, 128, num_blocks[1], norm=norm)
        self.layer3 = _make_stage(128, 256, num_blocks[2], norm=norm)
        self.layer4 = _make_stage(256, 512, num_blocks[3], norm=norm)
        self.bn2 = make_norm2d(norm, 512)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512 * 7 * 7, num_classes)
        self.features = make_norm1d(norm, num_classes)
        init_he(module for module in self.modules() if isinstance(module, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings (N, num_classes) of the faces x (N, in_channels, 112, 112)."""
        x = self.prelu(self.bn1(self.conv1(x)))  # (N, 64, 112, 112)
        x = self.layer1(x)  # (N, 64, 56, 56)
        x = self.layer2(x)  # (N, 128, 28, 28)
        x = self.layer3(x)  # (N, 256, 14, 14)
        x = self.layer4(x)  # (N, 512, 7, 7)
        x = self.dropout(self.bn2(x).flatten(1))  # (N, 512 * 7 * 7)
        embeddings: Tensor = self.features(self.fc(x))
        return embeddings


class Block(nn.Module):
    """Two 3x3 convolutions: y = x' + bn3(conv2(prelu(bn2(conv1(bn1(x)))))).

    x' is x, or its projection by `downsample` where the shape changes.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: NormSpec) -> None:
        super().__init__()
        self.bn1 = make_norm2d(norm, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = make_norm2d(norm, out_channels)
        self.prelu = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = make_norm2d(norm, out_channels)
        self.downsample = make_shortcut(
            in_channels, out_channels, stride=stride, option="B", norm=norm
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return torch.add(self.bn3(self.conv2(y)), self.downsample(x))


def _make_stage(
    in_channels: int, out_channels: int, num_blocks: int, *, norm: NormSpec
) -> nn.Sequential:
    first = Block(in_channels, out_channels, stride=2, norm=norm)
    others = (Block(out_channels, out_channels, stride=1, norm=norm) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *others)
