"""ResNet-8, the image classification network of MLPerf Tiny.

Banbury et al. 2021, arXiv 2106.07597, after its Keras reference model: a convolution, three stacks
of one residual block with 16, 32 and 64 channels, average pooling and a classifier. The second and
third stacks halve the image, and their shortcut is a 1x1 convolution without a norm of its own.

As in the reference every convolution has a bias, also in front of a BatchNorm, where it is
redundant: the parameters are then the reference's 78,666 (of which 480 are running statistics),
and a fold has to carry the bias along.

Not as in the reference: its padding with stride 2 is on the right and bottom alone ("same" of
Keras), here it is on all sides, as everywhere in PyTorch; and eps and momentum of BatchNorm are
PyTorch's (Keras: 1e-3, and 0.01 in PyTorch's sense). Its weights thus do not carry over.

In shape comments N is the batch, (H, W) the size of the input image and C is `width`.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from resdeploy.networks.cifar_resnet import BasicBlock
from resdeploy.networks.heads import make_head
from resdeploy.networks.norms import NormKind, NormSpec, init_he, make_norm2d, zero_last_scale

__all__ = ["ResNet8Tiny"]


class ResNet8Tiny(nn.Module):
    """A convolution, three residual blocks, global average pooling and a linear classifier."""

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        width: int = 16,
        norm: NormKind = "batch",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        zero_init_last_gamma: bool = False,
    ) -> None:
        super().__init__()
        spec = NormSpec(kind=norm, eps=norm_eps, momentum=norm_momentum)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.bn1 = make_norm2d(spec, width)
        make_block = partial(BasicBlock, bias=True, norm=spec, make_shortcut=_make_shortcut)
        self.stack1 = make_block(width, width, stride=1)
        self.stack2 = make_block(width, 2 * width, stride=2)
        self.stack3 = make_block(2 * width, 4 * width, stride=2)
        self.fc = make_head(4 * width, num_classes)
        init_he(module for module in self.modules() if isinstance(module, nn.Conv2d))
        if zero_init_last_gamma:
            for block in (self.stack1, self.stack2, self.stack3):
                zero_last_scale(block.conv2, block.bn2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of the images x (N, in_channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))  # (N, C, H, W)
        x = self.stack1(x)  # (N, C, H, W)
        x = self.stack2(x)  # (N, 2 C, H/2, W/2)
        x = self.stack3(x)  # (N, 4 C, H/4, W/4)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 4 C)
        logits: Tensor = self.fc(x)
        return logits


def _make_shortcut(in_channels: int, out_channels: int, *, stride: int) -> nn.Module:
    if stride == 1:
        return nn.Identity()
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride)
