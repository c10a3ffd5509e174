"""The networks that people deploy, small: `--arch` of every family, and what else is common.

Those that are no architecture of ours have the operators of the published network, in its order,
with fewer and narrower blocks.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resdeploy.networks import build_network
from resdeploy.schema.recipes import ModelSpec

__all__ = ["NETWORKS", "build"]


def _conv(i: int, o: int, k: int = 3, s: int = 1, act: Any = nn.ReLU, **options: Any) -> Any:
    """A convolution, a BatchNorm and an activation: the unit of nearly all."""
    convolution = nn.Conv2d(i, o, k, s, k // 2, bias=False, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(o), act())


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


class _Head(nn.Sequential):
    def __init__(self, features: int, *before: nn.Module) -> None:
        super().__init__(
            *before, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(features, 10)
        )


# --- mobile --------------------------------------------------------------------------------------


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int, act: Any, gate: Any) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        s = F.adaptive_avg_pool2d(x, 1)
        y: Tensor = x * self.gate(self.up(self.act(self.down(s))))
        return y


def _inverted(i: int, o: int, stride: int, act: Any, attention: Any = nn.Identity) -> nn.Module:
    wide = 4 * i
    body = nn.Sequential(
        _conv(i, wide, 1, act=act),
        _conv(wide, wide, 3, stride, act, groups=wide),
        attention(wide),
        _conv(wide, o, 1, act=nn.Identity),
    )
    return _Residual(body) if stride == 1 and i == o else body


def _mobilenet_v2() -> nn.Module:
    body = [_inverted(8, 8, 1, nn.ReLU6), _inverted(8, 16, 2, nn.ReLU6)]
    return nn.Sequential(_conv(3, 8, 3, 2, nn.ReLU6), *body, _conv(16, 32, 1), _Head(32))


def _mobilenet_v3() -> nn.Module:
    attention = partial(_SqueezeExcite, act=nn.ReLU, gate=nn.Hardsigmoid)
    body = [
        _inverted(8, 8, 1, nn.ReLU, attention),
        _inverted(8, 16, 2, nn.Hardswish, attention),
        _inverted(16, 16, 1, nn.Hardswish),
    ]
    last = nn.Sequential(nn.Linear(32, 16), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(16, 10))
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    stem, top = _conv(3, 8, 3, 2, nn.Hardswish), _conv(16, 32, 1, act=nn.Hardswish)
    return nn.Sequential(stem, *body, top, *pool)


def _efficientnet() -> nn.Module:
    attention = partial(_SqueezeExcite, act=nn.SiLU, gate=nn.Sigmoid)
    body = [_inverted(8, 8, 1, nn.SiLU, attention), _inverted(8, 16, 2, nn.SiLU, attention)]
    return nn.Sequential(_conv(3, 8, 3, 2, nn.SiLU), *body, _conv(16, 32, 1, 1, nn.SiLU), _Head(32))


class _Shuffle(nn.Module):
    """A unit of ShuffleNetV2: half of the channels pass, and the halves are dealt out in turn."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.body = nn.Sequential(
            _conv(half, half, 1),
            _conv(half, half, act=nn.Identity, groups=half),
            _conv(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        y = torch.cat((kept, self.body(changed)), dim=1)
        n, c, h, w = y.size()
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def _shufflenet() -> nn.Module:
    return nn.Sequential(
        _conv(3, 16, 3, 2), nn.MaxPool2d(3, 2, 1), _Shuffle(16), _Shuffle(16), _Head(16)
    )


def _mobilefacenet() -> nn.Module:
    """Faces: PReLU, and a depthwise convolution over the whole map in place of pooling."""

    def prelu(width: int) -> Any:
        return partial(nn.PReLU, width)

    return nn.Sequential(
        _conv(3, 16, 3, 2, prelu(16)),
        _Residual(nn.Sequential(_conv(16, 16, 3, 1, prelu(16), groups=16), nn.Conv2d(16, 16, 1))),
        _conv(16, 32, 3, 2, prelu(32)),
        nn.Conv2d(32, 32, 8, groups=32, bias=False),
        nn.BatchNorm2d(32),
        nn.Flatten(),
        nn.Linear(32, 12, bias=False),
        nn.BatchNorm1d(12),
    )


# --- plain and dense -----------------------------------------------------------------------------


def _vgg_bn() -> nn.Module:
    widths = (3, 8, 16, 16)
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(True), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(True)]
    return nn.Sequential(*layers, *head, nn.Dropout(), nn.Linear(32, 10))


class _DenseLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.n1, self.c1 = nn.BatchNorm2d(width), nn.Conv2d(width, 16, 1, bias=False)
        self.n2, self.c2 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c2(F.relu(self.n2(self.c1(F.relu(self.n1(x))))))
        return torch.cat((x, y), 1)


def _densenet() -> nn.Module:
    between = (nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 8, 1, bias=False), nn.AvgPool2d(2))
    body = (_DenseLayer(8), _DenseLayer(16), *between, _DenseLayer(8))
    last = (nn.BatchNorm2d(16), nn.ReLU(), _Head(16))
    return nn.Sequential(_conv(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1), *body, *last)


class _Fire(nn.Module):
    def __init__(self, i: int, squeezed: int, o: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(i, squeezed, 1)
        self.e1, self.e3 = nn.Conv2d(squeezed, o, 1), nn.Conv2d(squeezed, o, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat((F.relu(self.e1(x)), F.relu(self.e3(x))), 1)


def _squeezenet() -> nn.Module:
    """Pooling in ceil_mode, where the last window reaches beyond the map."""
    pool = partial(nn.MaxPool2d, 3, 2, ceil_mode=True)
    body = (nn.Conv2d(3, 16, 3, 2), nn.ReLU(), pool(), _Fire(16, 4, 8), pool(), _Fire(16, 4, 8))
    last = (nn.Dropout(0.5), nn.Conv2d(16, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)))
    return nn.Sequential(*body, *last, nn.Flatten())


class _Inception(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.b1 = _conv(i, 4, 1)
        self.b2 = nn.Sequential(_conv(i, 4, 1), _conv(4, 8, 3))
        self.b3 = nn.Sequential(
            _conv(i, 4, 1),
            nn.Conv2d(4, 4, (1, 7), padding=(0, 3)),
            nn.Conv2d(4, 4, (7, 1), padding=(3, 0)),
        )
        self.b4 = nn.Sequential(nn.AvgPool2d(3, 1, 1), _conv(i, 4, 1))
        self.b5 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), _conv(i, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([b(x) for b in (self.b1, self.b2, self.b3, self.b4, self.b5)], 1)


def _inception() -> nn.Module:
    return nn.Sequential(
        _conv(3, 8, 3, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _Inception(8),
        _Inception(24),
        _Head(24),
    )


# --- re-parametrised and anti-aliased ------------------------------------------------------------


class _RepVggBlock(nn.Module):
    """Three branches, each with a BatchNorm; `deploy` is the one convolution that they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = _conv(width, width, 3, act=nn.Identity)
        self.point = _conv(width, width, 1, act=nn.Identity)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.point(x) + self.norm(x))

    def deploy(self) -> nn.Module:
        width = self.norm.num_features
        with torch.no_grad():
            unit = torch.eye(width).reshape(width, width, 1, 1)
            parts = [(self.dense[0].weight, self.dense[1]), (self.point[0].weight, self.point[1])]
            convolution = nn.Conv2d(width, width, 3, padding=1)
            convolution.weight.zero_()
            convolution.bias.zero_()
            for weight, norm in [*parts, (unit, self.norm)]:
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                padded = weight if weight.shape[-1] == 3 else F.pad(weight, (1, 1, 1, 1))
                convolution.weight += padded * scale.reshape(-1, 1, 1, 1)
                convolution.bias += norm.bias - norm.running_mean * scale
        return nn.Sequential(convolution, nn.ReLU())


def _repvgg(*, deploy: bool) -> nn.Module:
    blocks = [_RepVggBlock(8), _RepVggBlock(8)]
    _trained(nn.ModuleList(blocks))
    body = [block.deploy() if deploy else block for block in blocks]
    return nn.Sequential(_conv(3, 8, 3, 2), *body, _Head(8))


class _BlurConv(nn.Module):
    """The blur of antialiased-cnns: its filter of four taps lies in the weights."""

    filt: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        filt = torch.outer(row, row) / 64
        self.register_buffer("filt", filt[None, None].repeat(width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 2, 1, 2), mode="reflect")
        return F.conv2d(padded, self.filt, stride=2, groups=x.shape[1])


def _antialiased() -> nn.Module:
    pool = (nn.MaxPool2d(2, stride=1), _BlurConv(8))
    body = _Residual(nn.Sequential(_conv(8, 8), _conv(8, 8, act=nn.Identity)))
    down = (
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        _BlurConv(16),
    )
    return nn.Sequential(_conv(3, 8, 7, 2), *pool, body, *down, _Head(16))


class _StandardisedConv(nn.Conv2d):
    """BiT: the weight is standardised on every call."""

    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        var = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(var + 1e-10)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


def _bit_resnet() -> nn.Module:
    body = (nn.GroupNorm(4, 8), nn.ReLU(), _StandardisedConv(8, 8, 3, padding=1, bias=False))
    return nn.Sequential(
        _StandardisedConv(3, 8, 7, 2, 3, bias=False), _Residual(nn.Sequential(*body)), _Head(8)
    )


# --- transformers and their kin ------------------------------------------------------------------


class _ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class _ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(_ConvNextBlock(8), _ConvNextBlock(8))
        self.norm, self.head = nn.LayerNorm(8, eps=1e-6), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.blocks(self.stem(x)).mean((-2, -1))))
        return y


class _Vit(nn.Module):
    """A class token, learned positions, and torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        options = {"batch_first": True, "norm_first": True, "activation": "gelu"}
        layers = [nn.TransformerEncoderLayer(16, 2, 32, 0.1, **options) for _ in range(2)]
        self.layers = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        y: Tensor = self.head(self.norm(self.layers(x))[:, 0])
        return y


class _Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.n1, self.n2, self.n3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.n2(x))
        y: Tensor = self.head(self.n3(x).mean(1))
        return y


# --- dense outputs -------------------------------------------------------------------------------


class _Trunk(nn.Module):
    """A ResNet without its head, as a pyramid of maps: halves, quarters, eighths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down1, self.down2 = (
            _conv(3, 8, 3, 2),
            _conv(8, 16, 3, 2),
            _conv(16, 32, 3, 2),
        )
        self.block1 = _Residual(_conv(16, 16, act=nn.Identity))
        self.block2 = _Residual(_conv(32, 32, act=nn.Identity))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.stem(x)
        b = F.relu(self.block1(self.down1(a)))
        c = F.relu(self.block2(self.down2(b)))
        return a, b, c


class _Unet(nn.Module):
    """The U-Net of segmentation_models_pytorch: nearest up, concatenation, two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _Trunk()
        self.up1 = nn.Sequential(_conv(48, 16), _conv(16, 16))
        self.up2 = nn.Sequential(_conv(24, 8), _conv(8, 8))
        self.head = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.encoder(x)
        y = self.up1(torch.cat((F.interpolate(c, scale_factor=2.0, mode="nearest"), b), 1))
        y = self.up2(torch.cat((F.interpolate(y, scale_factor=2.0, mode="nearest"), a), 1))
        z: Tensor = self.head(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        return z


class _Fpn(nn.Module):
    """torchvision's feature pyramid: lateral 1x1, nearest to the size of the finer map, 3x3."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _Trunk()
        self.inner = nn.ModuleList(nn.Conv2d(width, 8, 1) for width in (8, 16, 32))
        self.layer = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x)
        last = self.inner[2](maps[2])
        found = [self.layer[2](last)]
        for i in (1, 0):
            lateral = self.inner[i](maps[i])
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            found.insert(0, self.layer[i](last))
        pooled = F.max_pool2d(found[-1], 1, 2, 0)
        return {"0": found[0], "1": found[1], "2": found[2], "pool": pooled}


class _DeepLab(nn.Module):
    """DeepLabV3: dilated branches, one of the mean of all, bilinear to the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(_conv(3, 8, 3, 2), _conv(8, 16, 3, 2))
        self.branches = nn.ModuleList(
            [_conv(16, 8, 1)]
            + [
                nn.Sequential(
                    nn.Conv2d(16, 8, 3, padding=rate, dilation=rate, bias=False),
                    nn.BatchNorm2d(8),
                    nn.ReLU(),
                )
                for rate in (2, 3)
            ]
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), _conv(16, 8, 1))
        self.project, self.last = _conv(32, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.backbone(x)
        branches = [branch(y) for branch in self.branches]
        size = y.shape[-2:]
        mean = F.interpolate(self.pooled(y), size=size, mode="bilinear", align_corners=False)
        z = self.last(self.project(torch.cat([*branches, mean], 1)))
        return {"out": F.interpolate(z, size=x.shape[-2:], mode="bilinear", align_corners=False)}


class _Yolo(nn.Module):
    """A detector's trunk: SiLU, a split stage, pooling of three sizes, two grids of outputs."""

    def __init__(self) -> None:
        super().__init__()
        silu = nn.SiLU
        self.stem, self.down = _conv(3, 8, 3, 2, silu), _conv(8, 16, 3, 2, silu)
        self.inside = _Residual(nn.Sequential(_conv(8, 8, 1, 1, silu), _conv(8, 8, 3, 1, silu)))
        self.join, self.last = _conv(24, 16, 1, 1, silu), _conv(64, 16, 1, 1, silu)
        self.coarse, self.fine = nn.Conv2d(16, 21, 1), nn.Conv2d(24, 21, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.stem(x)
        first, second = self.down(a).chunk(2, 1)
        y = self.join(torch.cat((first, second, self.inside(second)), 1))
        p1 = F.max_pool2d(y, 5, 1, 2)
        p2 = F.max_pool2d(p1, 5, 1, 2)
        y = self.last(torch.cat((y, p1, p2, F.max_pool2d(p2, 5, 1, 2)), 1))
        up = torch.cat((F.interpolate(y, scale_factor=2.0), a), 1)
        return self._grid(self.coarse(y)), self._grid(self.fine(up))

    @staticmethod
    def _grid(y: Tensor) -> Tensor:
        n, _, h, w = y.shape
        return y.view(n, 3, 7, h, w).permute(0, 1, 3, 4, 2).contiguous()


def _espcn() -> nn.Module:
    """Super-resolution by pixel shuffle."""
    layers = (nn.Conv2d(1, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 8, 3, padding=1), nn.Tanh())
    return nn.Sequential(*layers, nn.Conv2d(8, 9, 3, padding=1), nn.PixelShuffle(3))


# --- all -----------------------------------------------------------------------------------------


def _arch(name: str, num_classes: int = 10, **options: Any) -> Callable[[], nn.Module]:
    return lambda: build_network(ModelSpec(arch=name, num_classes=num_classes, options=options))


_IMAGE, _CLIP = (3, 32, 32), (3, 4, 16, 16)

# name -> (module, shape of one sample)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (_arch("resnet18"), _IMAGE),
    "resnet50": (_arch("resnet50"), _IMAGE),
    "resnet18, 1 channel": (_arch("resnet18", in_channels=1), (1, 32, 32)),
    "resnet18, 4 channels": (_arch("resnet18", in_channels=4), (4, 32, 32)),
    "resnet18, no head": (_arch("resnet18", 0), _IMAGE),
    "resnet18, dropout": (_arch("resnet18", dropout=0.5), _IMAGE),
    "resnet18, mlp": (_arch("resnet18", head="mlp", dropout=0.2), _IMAGE),
    "cifar_resnet18": (_arch("cifar_resnet18"), (3, 16, 16)),
    "cifar_resnet20": (_arch("cifar_resnet20"), _IMAGE),
    "cifar_preact_resnet20": (_arch("cifar_preact_resnet20"), _IMAGE),
    "resnet18d": (_arch("resnet18d"), _IMAGE),
    "resnet18s": (_arch("resnet18", stem="deep", stem_width=64), _IMAGE),
    "seresnet18": (_arch("seresnet18"), _IMAGE),
    "ecaresnet18d": (_arch("resnet18d", attention="eca"), _IMAGE),
    "resnetblur18": (_arch("resnet18", blur_pool=True), (3, 64, 64)),
    "resnext50_32x4d": (_arch("resnext50_32x4d"), _IMAGE),
    "wide_resnet50_2": (_arch("wide_resnet50_2"), _IMAGE),
    "regnet_x_400mf": (_arch("regnet_x_400mf"), _IMAGE),
    "regnet_y_400mf": (_arch("regnet_y_400mf"), _IMAGE),
    "iresnet18": (_arch("iresnet18", 128), (3, 112, 112)),
    "resnet1d18": (_arch("resnet1d18"), (12, 64)),
    "r3d_18": (_arch("r3d_18"), _CLIP),
    "mc3_18": (_arch("mc3_18"), _CLIP),
    "r2plus1d_18": (_arch("r2plus1d_18"), _CLIP),
    "residual_mlp": (_arch("residual_mlp"), (40,)),
    "MobileNetV2": (_mobilenet_v2, _IMAGE),
    "MobileNetV3": (_mobilenet_v3, _IMAGE),
    "EfficientNet": (_efficientnet, _IMAGE),
    "ShuffleNetV2": (_shufflenet, _IMAGE),
    "MobileFaceNet": (_mobilefacenet, _IMAGE),
    "VGG with BatchNorm": (_vgg_bn, _IMAGE),
    "DenseNet": (_densenet, _IMAGE),
    "SqueezeNet": (_squeezenet, _IMAGE),
    "Inception": (_inception, _IMAGE),
    "RepVGG, re-parametrised": (partial(_repvgg, deploy=True), _IMAGE),
    "RepVGG, as trained": (partial(_repvgg, deploy=False), _IMAGE),
    "antialiased-cnns": (_antialiased, _IMAGE),
    "BiT ResNet": (_bit_resnet, _IMAGE),
    "ConvNeXt": (_ConvNext, _IMAGE),
    "ViT": (_Vit, _IMAGE),
    "MLP-Mixer": (_Mixer, _IMAGE),
    "U-Net": (_Unet, _IMAGE),
    "FPN": (_Fpn, _IMAGE),
    "DeepLabV3": (_DeepLab, _IMAGE),
    "YOLO trunk": (_Yolo, _IMAGE),
    "ESPCN": (_espcn, (1, 12, 12)),
}


def _trained(module: nn.Module) -> None:
    """Give the BatchNorms statistics of their own."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)


def build(name: str) -> nn.Module:
    """Network `name`, as if trained, in eval mode."""
    torch.manual_seed(0)
    module = NETWORKS[name][0]()
    _trained(module)
    return module.eval()
