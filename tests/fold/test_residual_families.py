"""Every family of residual network, small: how many BatchNorms fold, derived by hand.

Written out here rather than taken from a library, so that each number has its derivation beside it
and no release of a library can change what is tested. Unless said otherwise, a layer is a
convolution without bias and the BatchNorm that alone reads it: one fold.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import fold_judge as judge
import fold_suite as suite
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STREAM = "it is the residual stream"
IMAGES = (2, 3, 12, 12)


@dataclass(frozen=True)
class Family:
    """A network, what folds in it, and for each BatchNorm that stays a part of the reason."""

    name: str
    build: Callable[[], nn.Module]
    folded: int
    reason: str
    refused: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] = IMAGES


FAMILIES: list[Family] = []


def family(folded: int, reason: str, **more) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def add(network: type[nn.Module]) -> type[nn.Module]:
        FAMILIES.append(Family(network.__name__, network, folded, reason, **more))
        return network

    return add


def conv(i: int, o: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)


def layer(*args: int, act: bool = True, **options: int) -> nn.Sequential:
    """Convolution, BatchNorm, and ReLU unless it stands before an addition."""
    convolution = conv(*args, **options)
    parts = [convolution, nn.BatchNorm2d(convolution.out_channels)]
    return nn.Sequential(*parts, nn.ReLU(inplace=True)) if act else nn.Sequential(*parts)


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x))."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.branch(x) + self.shortcut(x)).relu()


class Classifier(nn.Module):
    """A body, the global average and a linear layer."""

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.body, self.fc = body, nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))


def basic(i: int, o: int, stride: int = 1, extra: nn.Module | None = None) -> Residual:
    branch = [layer(i, o, 3, stride), layer(o, o, 3, act=False)]
    shortcut = layer(i, o, 1, stride, act=False) if (i, stride) != (o, 1) else None
    return Residual(nn.Sequential(*branch, extra or nn.Identity()), shortcut)


def bottleneck(i: int, width: int, o: int, stride: int = 1, groups: int = 1) -> Residual:
    branch = nn.Sequential(
        layer(i, width),
        layer(width, width, 3, stride, groups=groups),
        layer(width, o, act=False),
    )
    shortcut = layer(i, o, 1, stride, act=False) if (i, stride) != (o, 1) else None
    return Residual(branch, shortcut)


@family(6, "stem 1, block with projection 2 + 1, block 2")
class Basic(Classifier):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(layer(3, 4, 3), basic(4, 8, 2), basic(8, 8)), 8)


@family(8, "stem 1, block with projection 3 + 1, block 3")
class Bottleneck(Classifier):
    def __init__(self) -> None:
        body = (layer(3, 4, 3), bottleneck(4, 4, 8, 2), bottleneck(8, 4, 8))
        super().__init__(nn.Sequential(*body), 8)


@family(8, "as Bottleneck: groups change no count")
class ResNeXt(Classifier):
    def __init__(self) -> None:
        body = (layer(3, 4, 3), bottleneck(4, 8, 8, 2, groups=4), bottleneck(8, 8, 8, groups=4))
        super().__init__(nn.Sequential(*body), 8)


@family(8, "as Bottleneck: width changes no count")
class Wide(Classifier):
    def __init__(self) -> None:
        body = (layer(3, 4, 3), bottleneck(4, 16, 8, 2), bottleneck(8, 16, 8))
        super().__init__(nn.Sequential(*body), 8)


class PreActivationBlock(nn.Module):
    """x + conv2(relu(bn2(conv1(relu(bn1(x)))))), the projection after the first activation."""

    def __init__(self, i: int, o: int, drop: float = 0.0) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), conv(i, o, 3)
        self.drop = nn.Dropout(drop)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), conv(o, o, 3)
        self.projection = conv(i, o) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x).relu()
        shortcut = x if self.projection is None else self.projection(h)
        return shortcut + self.conv2(self.drop(self.bn2(self.conv1(h)).relu()))


@family(
    3,
    "bn2 of both blocks; bn1 of the first, which alone reads the stem since its block projects",
    refused={"b.bn1": STREAM, "bn": STREAM},  # the first sum, and through the second sum the first
)
class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (
            conv(3, 4, 3),
            PreActivationBlock(4, 8),
            PreActivationBlock(8, 8),
        )
        self.bn, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.b(self.a(self.stem(x)))).relu().mean((2, 3)))


@family(
    1,
    "bn2; a dropout between its ReLU and the convolution is of no concern",
    refused={"body.1.bn1": STREAM},
)
class WideWithDropout(Classifier):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(conv(3, 8, 3), PreActivationBlock(8, 8, drop=0.3)), 8)


class SqueezeExcitation(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(features, 2, 1), nn.Conv2d(2, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


@family(6, "as Basic: the gate reads bn2, not what bn2 reads")
class SE(Classifier):
    def __init__(self) -> None:
        blocks = (basic(4, 8, 2, SqueezeExcitation(8)), basic(8, 8, 1, SqueezeExcitation(8)))
        super().__init__(nn.Sequential(layer(3, 4, 3), *blocks), 8)


class EfficientChannelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * y.view(-1, x.shape[1], 1, 1)


@family(6, "as Basic: the attention has no BatchNorm and reads bn2")
class ECA(Classifier):
    def __init__(self) -> None:
        attention = EfficientChannelAttention
        blocks = (basic(4, 8, 2, attention()), basic(8, 8, 1, attention()))
        super().__init__(nn.Sequential(layer(3, 4, 3), *blocks), 8)


@family(10, "deep stem 3, block 3 + 1 behind the average pool of its shortcut, block 3")
class ResNetD(Classifier):
    def __init__(self) -> None:
        stem = (layer(3, 4, 3, 2), layer(4, 4, 3), layer(4, 8, 3), nn.MaxPool2d(3, 1, 1))
        down = bottleneck(8, 4, 16, 2)
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        down.shortcut = nn.Sequential(pool, layer(8, 16, act=False))
        super().__init__(nn.Sequential(*stem, down, bottleneck(16, 4, 16)), 16)


class DenseLayer(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(features), conv(features, 8)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), conv(8, 4, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = torch.cat(features, 1)
        return self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())


@family(
    4,
    "norm0 of the stem, norm2 of each of three layers",
    refused={  # each reads a concatenation whose parts the following ones read too
        "a.norm1": "is read",
        "b.norm1": "is read",
        "norm": "is read",
        "c.norm1": "is read",
        "norm5": "is read",
    },
)
class DenselyConnected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.norm0 = conv(3, 4, 3), nn.BatchNorm2d(4)
        self.a, self.b = DenseLayer(4), DenseLayer(8)
        self.norm, self.conv, self.pool = nn.BatchNorm2d(12), conv(12, 6), nn.AvgPool2d(2)
        self.c, self.norm5, self.fc = DenseLayer(6), nn.BatchNorm2d(10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.norm0(self.conv0(x)).relu()]
        for dense in (self.a, self.b):
            features.append(dense(features))
        y = self.pool(self.conv(self.norm(torch.cat(features, 1)).relu()))
        y = self.norm5(torch.cat([y, self.c([y])], 1)).relu()
        return self.fc(y.mean((2, 3)))


@family(
    1,
    "the BatchNorm alone reads the pooled output of the transition's convolution",
    refused={"norm": "not from a convolution"},  # it reads ReLU
)
class DenseTransition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = conv(3, 6, 3), nn.BatchNorm2d(6), conv(6, 4)
        self.pool, self.next = nn.AvgPool2d(2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.next(self.pool(self.conv(self.norm(self.stem(x).relu()).relu()))).relu()


class Res2NetBranch(nn.Module):
    """Channels in four parts; each after the first adds what the one before it made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = layer(8, 8), layer(8, 8, act=False)
        self.parts = nn.ModuleList(layer(2, 2, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        whole, *rest = torch.split(self.first(x), 2, 1)
        made = [whole]
        for part, value in zip(self.parts, rest, strict=True):
            made.append(part(value if len(made) == 1 else value + made[-1]))
        return self.last(torch.cat(made, 1))


@family(6, "stem 1, the outer layers of the block 2, its parts 3")
class Res2Net(Classifier):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(layer(3, 8, 3), Residual(Res2NetBranch())), 8)


class SelectiveKernel(nn.Module):
    """Two branches, weighed by attention over their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = layer(8, 8, 3), layer(8, 8, 5, groups=8)
        self.reduce, self.expand = layer(8, 4), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        paths = torch.stack([self.small(x), self.large(x)], 1)
        attention = self.expand(self.reduce(paths.sum(1).mean((2, 3), keepdim=True)))
        return (paths * attention.view(-1, 2, 8, 1, 1).softmax(1)).sum(1)


@family(5, "stem 1, branches 2, attention 1, the layer behind it 1")
class SK(Classifier):
    def __init__(self) -> None:
        branch = nn.Sequential(SelectiveKernel(), layer(8, 8, act=False))
        super().__init__(nn.Sequential(layer(3, 8, 3), Residual(branch)), 8)


class SplitAttention(nn.Module):
    """ResNeSt: one grouped convolution makes all splits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = layer(8, 16, 3, groups=2)
        self.fc1, self.bn1, self.fc2 = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        splits = y.reshape(-1, 2, 8, *y.shape[2:])
        gap = splits.sum(1).mean((2, 3), keepdim=True)
        attention = self.fc2(self.bn1(self.fc1(gap)).relu())
        return (splits * attention.view(-1, 2, 8, 1, 1).softmax(1)).sum(1)


@family(4, "stem 1, splits 1, attention 1, the layer behind it 1")
class ResNeSt(Classifier):
    def __init__(self) -> None:
        branch = nn.Sequential(SplitAttention(), layer(8, 8, act=False))
        super().__init__(nn.Sequential(layer(3, 8, 3), Residual(branch)), 8)


class BlurPool(nn.Module):
    """A depthwise convolution with a constant kernel, at stride 2, over reflected borders."""

    def __init__(self, features: int) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(row, row)[None, None], persistent=False)
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(self.features, -1, -1, -1)
        return F.conv2d(F.pad(x, (1,) * 4, "reflect"), kernel, stride=2, groups=self.features)


@family(4, "stem 1, and 1, before the blur; branch 1 behind it; projection 1, the blur before it")
class AntiAliased(Classifier):
    def __init__(self) -> None:
        branch = nn.Sequential(layer(8, 8, 3), BlurPool(8), layer(8, 8, act=False))
        shortcut = nn.Sequential(BlurPool(8), layer(8, 8, act=False))
        super().__init__(nn.Sequential(layer(3, 8, 3), Residual(branch, shortcut)), 8)


@family(1, "the blur is itself a convolution: the BatchNorm goes into its kernel, per channel")
class BlurBeforeBatchNorm(Classifier):
    def __init__(self) -> None:
        body = (conv(3, 8, 3), BlurPool(8), nn.BatchNorm2d(8), nn.ReLU())
        super().__init__(nn.Sequential(*body), 8)


class CrossStage(nn.Module):
    """Half of the channels go through a block; one BatchNorm reads both halves joined."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = layer(8, 8)
        self.block = nn.Sequential(layer(4, 4), layer(4, 4, 3))
        self.left, self.right = conv(4, 4), conv(4, 4)
        self.bn, self.leave = nn.BatchNorm2d(8), layer(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.enter(x).chunk(2, 1)
        joined = torch.cat([self.left(self.block(a) + a), self.right(b)], 1)
        return self.leave(F.leaky_relu(self.bn(joined)))


@family(6, "stem 1, entry 1, block 2, the joint BatchNorm in two parts 1, exit 1")
class CSP(Classifier):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(layer(3, 8, 3), CrossStage()), 8)


class RepVggBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.dense, self.point = layer(i, o, 3, act=False), layer(i, o, act=False)
        self.identity = nn.BatchNorm2d(o) if i == o else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        return (y if self.identity is None else y + self.identity(x)).relu()


@family(
    4,
    "two branches of each block; a convolution beside the identity is no fold but a merge",
    refused={"body.1.identity": "is read 3 times"},
)
class RepVGG(Classifier):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(RepVggBlock(3, 8), RepVggBlock(8, 8)), 8)


class InvertedResidual(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        hidden = 2 * features
        self.expand, self.depthwise = conv(features, hidden), conv(hidden, hidden, 3, groups=hidden)
        self.bn1, self.bn2 = nn.BatchNorm2d(hidden), nn.BatchNorm2d(hidden)
        self.project = layer(hidden, features, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn2(self.depthwise(F.relu6(self.bn1(self.expand(x))))))
        return x + self.project(y)


@family(8, "stem 1, two blocks of 3, last layer 1; the linear ends are convolutions all the same")
class MobileNetV2(Classifier):
    def __init__(self) -> None:
        blocks = (InvertedResidual(4), InvertedResidual(4), layer(4, 8))
        super().__init__(nn.Sequential(layer(3, 4, 3), *blocks), 8)


class DropPath(nn.Module):
    """Drops a whole sample's branch, in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.empty(x.shape[0], 1, 1, 1).bernoulli_(0.8)
        return x * keep / 0.8


@family(6, "as Basic: in eval mode nothing is dropped")
class StochasticDepth(Classifier):
    def __init__(self) -> None:
        blocks = (basic(4, 8, 2, DropPath()), basic(8, 8, 1, DropPath()))
        super().__init__(nn.Sequential(layer(3, 4, 3), *blocks), 8)


class LinearNorm(nn.Module):
    """LeViT's linear layer over tokens, its BatchNorm over the flattened ones."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(i, o, bias=False), nn.BatchNorm1d(o)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.bn(y.flatten(0, 1)).reshape(y.shape)


@family(
    5,
    "qkv 1, projection 1, mlp 2, and the head's BatchNorm, forward into its linear layer",
    shape=(2, 6, 8),
)
class LeViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.projection = LinearNorm(8, 24), LinearNorm(8, 8)
        self.up, self.down = LinearNorm(8, 16), LinearNorm(16, 8)
        self.bn, self.head = nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, 2)
        x = x + self.projection(F.hardswish((q @ k.mT).softmax(2) @ v))
        x = x + self.down(F.hardswish(self.up(x)))
        return self.head(self.bn(x.mean(1)))


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_a_family_folds_as_derived(case):
    torch.manual_seed(0)
    network = case.build()
    with torch.no_grad():
        suite.lively(network)
    network.eval()
    inputs = (torch.randn(case.shape),)

    model, report = judge.fold(network, inputs)

    refused = {refusal.site: refusal.reason for refusal in report.refused}
    assert len(report.folded) == case.folded, (case.reason, refused)
    assert set(refused) == set(case.refused)
    for site, reason in case.refused.items():
        assert reason in refused[site]
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert case.folded + len(case.refused) == len(norms)
    for batch in (1, 3):
        judge.assert_same_function(model, network, (torch.randn(batch, *case.shape[1:]),))
