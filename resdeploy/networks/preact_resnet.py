"""The pre-activation ResNets ("v2") for CIFAR.

He et al. 2016, arXiv 1603.05027: the norm and the ReLU move in front of each convolution,

    y = x + conv2(relu(bn2(conv1(relu(bn1(x))))))

so that nothing but additions lies on the residual stream. Depths and widths are those of
`cifar_resnet`: 6n + 2 layers with weights.

For folding this is the hard case. bn1 reads the stream, which the shortcut reads too, and a ReLU
parts it from conv1, so that there is no layer it folds into; bn2 follows conv1 alone and folds.
So does bn1 of the first block, as there the shortcut starts after bn1 (see `PreactBlock`).

In shape comments N is the batch, (H, W) the size of the input image and C is `width`.
"""

from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from resdeploy.networks.cifar_resnet import ZeroPadShortcut, make_stages
from resdeploy.networks.heads import make_head
from resdeploy.networks.norms import NormKind, NormSpec, init_he, make_norm2d

__all__ = ["CifarPreactResNet", "PreactBlock", "PreactShortcutOption"]

# Options A and B of `cifar_resnet`. There is no C: an identity wherever the shape allows is what
# the architecture is about.
PreactShortcutOption = Literal["A", "B"]


class CifarPreactResNet(nn.Module):
    """A convolution, three stages of pre-activation blocks, a last norm, pooling, a classifier.

    There is no `zero_init_last_gamma`: the last norm of a branch is followed by a ReLU, and a ReLU
    with input zero passes no gradient, so that the branch would stay zero for good.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        in_channels: int = 3,
        width: int = 16,
        shortcut: PreactShortcutOption = "A",
        norm: NormKind = "batch",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        spec = NormSpec(kind=norm, eps=norm_eps, momentum=norm_momentum)
        spec.require_kept(arch=f"cifar_preact_resnet{depth}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        make_block = partial(PreactBlock, shortcut=shortcut, norm=spec)
        self.layer1, self.layer2, self.layer3 = make_stages(make_block, depth, width)
        first_block = self.layer1[0]
        assert isinstance(first_block, PreactBlock)
        first_block.shortcut_is_activated = True
        # The blocks end in an addition, so that the activation of the last one is still due.
        self.bn = make_norm2d(spec, 4 * width)
        self.linear = make_head(4 * width, num_classes)
        init_he(module for module in self.modules() if isinstance(module, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of the images x (N, in_channels, H, W)."""
        x = self.conv1(x)  # (N, C, H, W)
        x = self.layer1(x)  # (N, C, H, W)
        x = self.layer2(x)  # (N, 2 C, H/2, W/2)
        x = self.layer3(x)  # (N, 4 C, H/4, W/4)
        x = F.relu(self.bn(x))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 4 C)
        logits: Tensor = self.linear(x)
        return logits


class PreactBlock(nn.Module):
    """Full pre-activation: y = x' + conv2(relu(bn2(conv1(a)))) with a = relu(bn1(x)).

    x' is x where the shape allows. In three places it is not:

    1. in the network's first block it is a, as conv1 of the stem has no activation yet (the
       paper's appendix);
    2. with option A, where the shape changes, it is x with fewer pixels and more channels;
    3. with option B, there, it is the 1x1 projection of a (the paper's appendix again).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        shortcut: PreactShortcutOption,
        norm: NormSpec,
    ) -> None:
        super().__init__()
        changes_shape = stride != 1 or in_channels != out_channels
        projects = changes_shape and shortcut == "B"
        self.bn1 = make_norm2d(norm, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = make_norm2d(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module
        if projects:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        elif changes_shape:
            self.shortcut = ZeroPadShortcut(in_channels, out_channels, stride=stride)
        else:
            self.shortcut = nn.Identity()
        self.shortcut_is_activated = projects

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        activated = F.relu(self.bn1(x))
        branch: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        kept: Tensor = self.shortcut(activated if self.shortcut_is_activated else x)
        return kept + branch
