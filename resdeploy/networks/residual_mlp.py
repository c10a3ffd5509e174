"""Residual networks of linear layers, for vectors.

`linear1` gives the residual stream h; each further hidden layer is one block on it; the last layer
classifies. With six hidden layers, in the two forms of a block:

post   h = h' + relu(norm(linear(h)))     the first layer's output enters the first block without
                                          a norm: linear1 ... linear6 and five norms, each right
                                          after a linear layer, into which it folds
pre    h = h' + linear(relu(norm(h)))     Prince, "Understanding Deep Learning" (2023), section
                                          11.4 and notebook 11.3: the norms read the stream
                                          itself, and none of them folds

h' is h where the width stays. Where it changes, h' is W_s h, a learned projection without a bias
(He et al. 2015, arXiv 1512.03385, equation 2), or h followed by zeros (option A there).

Every linear layer has a bias, as in the notebook. There is no `zero_init_last_gamma`: in both
forms the norm is followed by a ReLU, and a ReLU whose input is zero passes no gradient, so that
the branch would stay zero for good.

In shape comments N is the batch and F the width of the stream at that point.
"""

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from resdeploy.errors import ResdeployError
from resdeploy.networks.heads import make_head
from resdeploy.networks.norms import NormKind, NormSpec, init_he, make_norm1d

__all__ = ["BlockForm", "ResidualMlp", "Widening", "ZeroPad"]

BlockForm = Literal["post", "pre"]
Widening = Literal["projection", "pad"]


class ResidualMlp(nn.Module):
    """linear1, one residual block for each further width, and a linear classifier.

    Block i is made of linear{i}, norm{i} and shortcut{i}; blocks count from 2, so that the linear
    layers have the notebook's names linear1, linear2, ...

    There are `hidden_layers` linear layers of `width` features before the classifier, or one for
    each of `widths`, as in "64,64,128,128". `widen` is the shortcut where the width changes, and
    `block` the form of a block, see the module's docstring.

    Raises:
        ResdeployError: `widths` is not a list of positive numbers, or gets narrower with
            widen="pad"; or the blocks are "pre" and `norm` is "none".
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_features: int = 40,
        hidden_layers: int = 6,
        width: int = 100,
        widths: str = "",
        widen: Widening = "projection",
        block: BlockForm = "post",
        norm: NormKind = "batch",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        spec = NormSpec(kind=norm, eps=norm_eps, momentum=norm_momentum)
        if block == "pre":
            spec.require_kept(arch='residual_mlp with block="pre"')
        sizes = _parse_widths(widths) if widths else (width,) * hidden_layers
        self.block = block
        self.num_hidden = len(sizes)
        hidden = [nn.Linear(in_features, sizes[0])]
        self.add_module("linear1", hidden[0])
        for i, (old, new) in enumerate(pairwise(sizes), start=2):
            hidden.append(nn.Linear(old, new))
            self.add_module(f"linear{i}", hidden[-1])
            self.add_module(f"norm{i}", make_norm1d(spec, new if block == "post" else old))
            self.add_module(f"shortcut{i}", _make_shortcut(old, new, widen=widen))
        self.add_module(f"linear{self.num_hidden + 1}", make_head(sizes[-1], num_classes))
        init_he(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of the vectors x (N, in_features)."""
        h = self.get_submodule("linear1")(x)  # (N, F)
        for i in range(2, self.num_hidden + 1):
            linear = self.get_submodule(f"linear{i}")
            norm = self.get_submodule(f"norm{i}")
            shortcut = self.get_submodule(f"shortcut{i}")
            if self.block == "post":
                h = shortcut(h) + F.relu(norm(linear(h)))
            else:
                h = shortcut(h) + linear(F.relu(norm(h)))
        logits: Tensor = self.get_submodule(f"linear{self.num_hidden + 1}")(h)
        return logits


class ZeroPad(nn.Module):
    """Append zeros to each vector: (N, F) to (N, F + num_zeros)."""

    def __init__(self, num_zeros: int) -> None:
        super().__init__()
        self.num_zeros = num_zeros

    def forward(self, x: Tensor) -> Tensor:
        """Return the longer vectors."""
        return F.pad(x, (0, self.num_zeros))


def _make_shortcut(old: int, new: int, *, widen: Widening) -> nn.Module:
    if new == old:
        return nn.Identity()
    if widen == "projection":
        return nn.Linear(old, new, bias=False)
    if new > old:
        return ZeroPad(new - old)
    raise ResdeployError(
        f"Zeros can only widen a shortcut, and here it narrows from {old} to {new} features.",
        where="residual_mlp, option widths",
        fix='use widen="projection", or widths that never get smaller',
    )


def _parse_widths(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ResdeployError(
            f"widths must be positive whole numbers with commas between them, not {text!r}.",
            where="residual_mlp, option widths",
            fix='write one width per hidden layer, as in widths="64,64,128,128"',
        )
    return tuple(int(part) for part in parts)
