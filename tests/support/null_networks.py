"""Small right networks of many kinds, whose outputs must not be judged wrong: the null set.

Each is chosen for one way in which float32's noise departs from that of a stack of convolutions:
long sums, saturation, cancellation, values below the normal numbers, depth, constants.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["NETWORKS", "Network", "build"]


class Network(nn.Module):
    """Parts and the function of (parts, x) that is its forward pass."""

    def __init__(self, function: Callable[[Any, torch.Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def _headed(
    body: Callable[[Any, torch.Tensor], torch.Tensor], width: int = 8, **parts: nn.Module
) -> Network:
    """A body of maps (N, width, H, W) under a global average and a linear layer of ten outputs."""
    return Network(lambda m, x: m.fc(body(m, x).mean((2, 3))), **parts, fc=nn.Linear(width, 10))


def _convolved(body: Callable[[Any, torch.Tensor], torch.Tensor], **parts: nn.Module) -> Network:
    """The same after a first convolution."""
    return _headed(lambda m, x: body(m, m.conv(x)), conv=nn.Conv2d(3, 8, 3, padding=1), **parts)


def _scaled(module: nn.Module, **factors: float) -> nn.Module:
    """`module` with each part's parameters times a factor."""
    with torch.no_grad():
        for name, factor in factors.items():
            for parameter in module.get_submodule(name).parameters():
                parameter.mul_(factor)
    return module


def _unet() -> Network:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(m.a(x))
        b = F.relu(m.b(F.max_pool2d(a, 2)))
        return m.out(torch.cat([a, F.relu(m.up(b))], 1)).flatten(1)

    return Network(
        forward,
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(8, 16, 3, padding=1),
        up=nn.ConvTranspose2d(16, 8, 2, stride=2),
        out=nn.Conv2d(16, 2, 1),
    )


def _squeezed(m: Any, y: torch.Tensor) -> torch.Tensor:
    s = torch.sigmoid(m.up(F.relu(m.down(y.mean((2, 3), keepdim=True)))))
    return F.relu(y * s)


def _chain(depth: int, width: int = 12) -> nn.Module:
    layers = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class _Residual(nn.Module):
    def __init__(self, depth: int, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + 0.1 * F.relu(layer(x))
        y: torch.Tensor = self.fc(x)
        return y


def _added_to_itself(y: torch.Tensor) -> torch.Tensor:
    """Return y after a hundred steps whose errors all meet again."""
    for _ in range(100):
        y = y + 0.1 * F.relu(y)
    return y


def _dead(module: nn.Module, layer: str) -> nn.Module:
    """`module` whose `layer` gives its bias alone."""
    with torch.no_grad():
        for part in module.get_submodule(layer).modules():
            if getattr(part, "weight", None) is not None:
                part.weight.zero_()
    return module


def _block(width: int, heads: int) -> Network:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.n1(x)
        q, k, v = m.qkv(y).reshape(-1, x.shape[1], 3, heads, width // heads).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        a = F.softmax(q @ k.transpose(2, 3) * (width // heads) ** -0.5, dim=-1)
        x = x + m.proj((a @ v).transpose(1, 2).reshape(-1, x.shape[1], width))
        x = x + m.w2(F.gelu(m.w1(m.n2(x))))
        y: torch.Tensor = m.fc(x.mean(1))
        return y

    return Network(
        forward,
        n1=nn.LayerNorm(width),
        n2=nn.LayerNorm(width),
        qkv=nn.Linear(width, 3 * width),
        proj=nn.Linear(width, width),
        w1=nn.Linear(width, 2 * width),
        w2=nn.Linear(2 * width, width),
        fc=nn.Linear(width, 10),
    )


_IMAGE, _TOKENS, _VECTOR = (3, 12, 12), (6, 16), (16,)


def _mlp(function: Callable[[torch.Tensor], torch.Tensor]) -> Network:
    return Network(
        lambda m, x: function(m.fc(F.relu(m.hidden(x)))),
        hidden=nn.Linear(16, 32),
        fc=nn.Linear(32, 10),
    )


# name -> (module, shape of one sample)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (
        lambda: _convolved(
            lambda m, y: F.relu(m.b(m.c(F.relu(y)))), c=nn.Conv2d(8, 8, 3), b=nn.BatchNorm2d(8)
        ),
        _IMAGE,
    ),
    "gelu": (lambda: _convolved(lambda m, y: F.gelu(y)), _IMAGE),
    "gelu, tanh": (lambda: _convolved(lambda m, y: F.gelu(y, approximate="tanh")), _IMAGE),
    "silu": (lambda: _convolved(lambda m, y: F.silu(y)), _IMAGE),
    "mish": (lambda: _convolved(lambda m, y: F.mish(y)), _IMAGE),
    "prelu": (lambda: _convolved(lambda m, y: m.p(y), p=nn.PReLU(8)), _IMAGE),
    "hardswish": (lambda: _convolved(lambda m, y: F.hardswish(y)), _IMAGE),
    "elu": (lambda: _convolved(lambda m, y: F.elu(y)), _IMAGE),
    "attention": (
        lambda: Network(
            lambda m, x: m.fc(m.a(x, x, x, need_weights=False)[0].mean(1)),
            a=nn.MultiheadAttention(16, 2, batch_first=True),
            fc=nn.Linear(16, 10),
        ),
        _TOKENS,
    ),
    "transformer block": (lambda: _block(16, 2), _TOKENS),
    "sharp attention": (lambda: _scaled(_block(16, 2), qkv=8.0), _TOKENS),
    "upsample, nearest": (
        lambda: _convolved(
            lambda m, y: m.c(F.interpolate(y, scale_factor=2)), c=nn.Conv2d(8, 8, 3)
        ),
        _IMAGE,
    ),
    "upsample, bilinear": (
        lambda: _convolved(
            lambda m, y: m.c(F.interpolate(y, scale_factor=2, mode="bilinear")),
            c=nn.Conv2d(8, 8, 3),
        ),
        _IMAGE,
    ),
    "one-dimensional": (
        lambda: Network(
            lambda m, x: m.fc(F.relu(m.b(F.relu(m.a(x)))).mean(2)),
            a=nn.Conv1d(2, 8, 5),
            b=nn.Conv1d(8, 8, 5),
            fc=nn.Linear(8, 10),
        ),
        (2, 64),
    ),
    "three-dimensional": (
        lambda: Network(
            lambda m, x: m.fc(F.relu(m.a(x)).mean((2, 3, 4))),
            a=nn.Conv3d(2, 8, 3),
            fc=nn.Linear(8, 10),
        ),
        (2, 6, 6, 6),
    ),
    "u-net": (_unet, _IMAGE),
    "large map": (lambda: _convolved(lambda m, y: F.relu(y)), (3, 72, 96)),
    "larger map": (
        lambda: _convolved(lambda m, y: F.relu(m.c(F.relu(y))), c=nn.Conv2d(8, 8, 3, stride=2)),
        (3, 120, 160),
    ),
    "large map of one value": (
        lambda: _dead(
            _convolved(lambda m, y: F.relu(m.c(F.relu(y))), c=nn.Conv2d(8, 8, 1)), "conv"
        ),
        (3, 72, 96),
    ),
    "large map, half of it one value": (
        lambda: _convolved(lambda m, y: F.hardtanh(4 * y, 0.0, 0.7)),
        (3, 72, 96),
    ),
    "mean over H, then W": (
        lambda: Network(
            lambda m, x: m.fc(F.relu(m.conv(x)).mean(2).mean(2)),
            conv=nn.Conv2d(3, 8, 3),
            fc=nn.Linear(8, 10),
        ),
        (3, 40, 56),
    ),
    "mean of signed values": (lambda: _convolved(lambda m, y: y), (3, 40, 56)),
    "x - mean(x)": (
        lambda: _convolved(lambda m, y: F.relu(y - y.mean((2, 3), keepdim=True))),
        (3, 24, 24),
    ),
    "large means subtracted": (
        lambda: _convolved(lambda m, y: F.relu((y + 100) - (y + 100).mean((2, 3), keepdim=True))),
        (3, 24, 24),
    ),
    "nearly all cancelled": (
        lambda: Network(
            lambda m, x: m.fc(m.a(x) - m.a(0.999 * x)), a=nn.Linear(16, 32), fc=nn.Linear(32, 10)
        ),
        _VECTOR,
    ),
    "layer norm": (
        lambda: Network(
            lambda m, x: m.fc(F.relu(m.n(m.a(x)))),
            a=nn.Linear(16, 32),
            n=nn.LayerNorm(32),
            fc=nn.Linear(32, 10),
        ),
        _VECTOR,
    ),
    "layer norm of large means": (
        lambda: Network(
            lambda m, x: m.fc(F.relu(m.n(m.a(x) + 50))),
            a=nn.Linear(16, 32),
            n=nn.LayerNorm(32),
            fc=nn.Linear(32, 10),
        ),
        _VECTOR,
    ),
    "group norm": (lambda: _convolved(lambda m, y: F.relu(m.n(y)), n=nn.GroupNorm(4, 8)), _IMAGE),
    "instance norm": (
        lambda: _convolved(lambda m, y: F.relu(m.n(y)), n=nn.GroupNorm(8, 8)),
        (3, 24, 24),
    ),
    "squeeze and excite": (
        lambda: _convolved(_squeezed, down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1)),
        _IMAGE,
    ),
    "a chain of 200": (lambda: _chain(200), (12,)),
    "a residual chain of 200": (lambda: _Residual(200), _VECTOR),
    "added to itself": (lambda: _mlp(_added_to_itself), _VECTOR),
    "tiny outputs": (lambda: _scaled(_mlp(lambda y: y), fc=1e-30), _VECTOR),
    "outputs at the smallest normal": (lambda: _scaled(_mlp(lambda y: y), fc=1e-38), _VECTOR),
    "subnormal outputs": (lambda: _scaled(_mlp(lambda y: y), fc=1e-42), _VECTOR),
    "huge outputs": (lambda: _scaled(_mlp(lambda y: y), fc=1e30), _VECTOR),
    "constant outputs": (lambda: _dead(_mlp(lambda y: y), "fc"), _VECTOR),
    "nearly constant outputs": (lambda: _dead(_mlp(lambda y: 1 + 1e-6 * y), "hidden"), _VECTOR),
    "one output": (
        lambda: Network(lambda m, x: m.fc(F.relu(m.a(x))), a=nn.Linear(16, 8), fc=nn.Linear(8, 1)),
        _VECTOR,
    ),
    "softmax": (lambda: _mlp(lambda y: F.softmax(y, 1)), _VECTOR),
    "softmax(100 x)": (lambda: _mlp(lambda y: F.softmax(100 * y, 1)), _VECTOR),
    "softmax(10000 x)": (lambda: _mlp(lambda y: F.softmax(10000 * y, 1)), _VECTOR),
    "log-softmax": (lambda: _mlp(lambda y: F.log_softmax(y, 1)), _VECTOR),
    "log-softmax(100 x)": (lambda: _mlp(lambda y: F.log_softmax(100 * y, 1)), _VECTOR),
    "sigmoid": (lambda: _mlp(torch.sigmoid), _VECTOR),
    "sigmoid(100 x)": (lambda: _mlp(lambda y: torch.sigmoid(100 * y)), _VECTOR),
    "tanh(100 x)": (lambda: _mlp(lambda y: torch.tanh(100 * y)), _VECTOR),
    "exp(-20 x^2)": (lambda: _mlp(lambda y: torch.exp(-20 * y * y)), _VECTOR),
    "wide": (
        lambda: Network(
            lambda m, x: m.fc(F.relu(m.a(x.flatten(1)))),
            a=nn.Linear(6912, 32),
            fc=nn.Linear(32, 10),
        ),
        (3, 48, 48),
    ),
    "positive and wide": (
        lambda: Network(lambda m, x: m.fc(x.flatten(1).abs()), fc=nn.Linear(6912, 10)),
        (3, 48, 48),
    ),
}


def build(name: str, seed: int) -> nn.Module:
    """Network `name`, its BatchNorms with statistics of their own."""
    torch.manual_seed(seed)
    module = NETWORKS[name][0]()
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.3, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return module.eval()
