"""Small networks of many kinds, and the tools that write them as ONNX."""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import nn

from resdeploy.export.export import _write
from resdeploy.export.source import SourceModel, model_of_module
from resdeploy.schema.exports import ExportSpec

IMAGE = (3, 12, 12)


class Net(nn.Module):
    """A module of its parts and a forward function of (module, x)."""

    def __init__(self, forward: Callable, **parts: object) -> None:
        super().__init__()
        self._run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self._run(self, x)


def conv_net(body: Callable, **parts: object) -> nn.Module:
    """A convolution, `body` of (module, map), the mean over the map, a classifier."""
    return Net(
        lambda m, x: m.fc(body(m, m.c(x)).mean((2, 3))),
        c=nn.Conv2d(3, 8, 3, padding=1),
        fc=nn.Linear(8, 10),
        **parts,
    )


def _block(m, x):
    y = F.relu(m.n1(m.c1(x)))
    return F.relu(m.n2(m.c2(y)) + m.ns(m.s(x)))


def _resnet():
    return conv_net(
        _block,
        c1=nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
        n1=nn.BatchNorm2d(8),
        c2=nn.Conv2d(8, 8, 3, padding=1, bias=False),
        n2=nn.BatchNorm2d(8),
        s=nn.Conv2d(8, 8, 1, stride=2, bias=False),
        ns=nn.BatchNorm2d(8),
    )


def _attention():
    return Net(
        lambda m, x: m.fc(m.n(x + m.a(x, x, x, need_weights=False)[0]).mean(1)),
        a=nn.MultiheadAttention(8, 2, batch_first=True),
        n=nn.LayerNorm(8),
        fc=nn.Linear(8, 10),
    )


def _squeeze(m, x):
    s = torch.sigmoid(m.e(F.relu(m.d(x.mean((2, 3), keepdim=True)))))
    return x * s


def _unet(m, x):
    a = F.relu(m.a(x))
    b = F.relu(m.b(F.max_pool2d(a, 2)))
    return m.o(torch.cat([a, m.up(b)], 1))


def _shuffle(m, x):
    n, c, h, w = x.shape
    return m.c(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def _halves(m, x):
    a, b = x.chunk(2, 1)
    return torch.cat([F.relu(b), a], 1)


def _own_attention(m, x):
    n, t, _ = x.shape
    q, k, v = m.qkv(x).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
    y = F.softmax(q @ k.transpose(-1, -2) * 4**-0.5, -1) @ v
    return m.fc(y.transpose(1, 2).reshape(n, t, 8)).mean(1)


# By name: the input's shape and the module.
NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "resnet block": (IMAGE, _resnet),
    "mlp": ((12,), lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))),
    "mlp batchnorm": (
        (12,),
        lambda: nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)),
    ),
    "gelu": (IMAGE, lambda: conv_net(lambda m, x: F.gelu(x))),
    "gelu tanh": (IMAGE, lambda: conv_net(lambda m, x: F.gelu(x, approximate="tanh"))),
    "silu": (IMAGE, lambda: conv_net(lambda m, x: F.silu(x))),
    "prelu": (IMAGE, lambda: conv_net(lambda m, x: m.p(x), p=nn.PReLU(8))),
    "hardswish": (IMAGE, lambda: conv_net(lambda m, x: F.hardswish(x))),
    "hardsigmoid": (IMAGE, lambda: conv_net(lambda m, x: x * F.hardsigmoid(x))),
    "elu": (IMAGE, lambda: conv_net(lambda m, x: F.elu(x, 0.7))),
    "selu": (IMAGE, lambda: conv_net(lambda m, x: F.selu(x))),
    "leaky relu": (IMAGE, lambda: conv_net(lambda m, x: F.leaky_relu(x, 0.01))),
    "numbers": (IMAGE, lambda: conv_net(lambda m, x: (0.1 * x + 0.3).clamp(0.1, 0.7))),
    "relu6": (IMAGE, lambda: conv_net(lambda m, x: F.relu6(x))),
    "mish": (IMAGE, lambda: conv_net(lambda m, x: F.mish(x))),
    "softplus": (IMAGE, lambda: conv_net(lambda m, x: F.softplus(x))),
    "layer norm": ((6, 8), lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))),
    "layer norm 2d": (IMAGE, lambda: conv_net(lambda m, x: m.n(x), n=nn.LayerNorm((8, 12, 12)))),
    "group norm": (IMAGE, lambda: conv_net(lambda m, x: m.n(x), n=nn.GroupNorm(4, 8))),
    "instance norm": (
        IMAGE,
        lambda: conv_net(lambda m, x: m.n(x), n=nn.InstanceNorm2d(8, affine=True)),
    ),
    "attention": ((6, 8), _attention),
    "own attention": (
        (6, 8),
        lambda: Net(_own_attention, qkv=nn.Linear(8, 24), fc=nn.Linear(8, 10)),
    ),
    "squeeze-excite": (
        IMAGE,
        lambda: conv_net(_squeeze, d=nn.Conv2d(8, 4, 1), e=nn.Conv2d(4, 8, 1)),
    ),
    "bilinear": (
        IMAGE,
        lambda: conv_net(lambda m, x: F.relu(F.interpolate(x, scale_factor=2, mode="bilinear"))),
    ),
    "bilinear to size": (
        IMAGE,
        lambda: conv_net(lambda m, x: F.relu(F.interpolate(x, (20, 20), mode="bilinear"))),
    ),
    "nearest": (
        IMAGE,
        lambda: conv_net(
            lambda m, x: m.c1(F.interpolate(x, scale_factor=2)), c1=nn.Conv2d(8, 8, 3)
        ),
    ),
    "conv 1d": (
        (4, 16),
        lambda: Net(
            lambda m, x: m.fc(F.max_pool1d(F.relu(m.c(x)), 2).mean(-1)),
            c=nn.Conv1d(4, 8, 3, padding=1),
            fc=nn.Linear(8, 10),
        ),
    ),
    "conv 3d": (
        (2, 6, 6, 6),
        lambda: Net(
            lambda m, x: m.fc(F.relu(m.n(m.c(x))).mean((2, 3, 4))),
            c=nn.Conv3d(2, 8, 3, padding=1),
            n=nn.BatchNorm3d(8),
            fc=nn.Linear(8, 10),
        ),
    ),
    "u-net": (
        IMAGE,
        lambda: Net(
            _unet,
            a=nn.Conv2d(3, 8, 3, padding=1),
            b=nn.Conv2d(8, 8, 3, padding=1),
            up=nn.ConvTranspose2d(8, 8, 2, stride=2),
            o=nn.Conv2d(16, 2, 1),
        ),
    ),
    "channel shuffle": (
        IMAGE,
        lambda: conv_net(lambda m, x: m.s(x), s=Net(_shuffle, c=nn.Conv2d(8, 8, 3, groups=2))),
    ),
    "pixel shuffle": (
        IMAGE,
        lambda: Net(
            lambda m, x: m.o(F.pixel_shuffle(m.c(x), 2)),
            c=nn.Conv2d(3, 8, 3, padding=1),
            o=nn.Conv2d(2, 1, 1),
        ),
    ),
    "adaptive average": (
        IMAGE,
        lambda: Net(
            lambda m, x: m.fc(F.adaptive_avg_pool2d(F.relu(m.c(x)), 2).flatten(1)),
            c=nn.Conv2d(3, 8, 3, padding=1),
            fc=nn.Linear(32, 10),
        ),
    ),
    "adaptive maximum": (IMAGE, lambda: conv_net(lambda m, x: F.adaptive_max_pool2d(x, 3))),
    "ceil mode": (IMAGE, lambda: conv_net(lambda m, x: F.max_pool2d(x, 3, 2, ceil_mode=True))),
    "counted padding": (IMAGE, lambda: conv_net(lambda m, x: F.avg_pool2d(x, 3, 2, padding=1))),
    "softmax head": (
        IMAGE,
        lambda: nn.Sequential(conv_net(lambda m, x: F.relu(x)), nn.Softmax(1)),
    ),
    "log softmax": (
        IMAGE,
        lambda: nn.Sequential(conv_net(lambda m, x: F.relu(x)), nn.LogSoftmax(-1)),
    ),
    "softmax over channels": (IMAGE, lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1))),
    "chunk and cat": (IMAGE, lambda: conv_net(_halves)),
    "every second pixel": (
        IMAGE,
        lambda: conv_net(lambda m, x: F.pad(F.relu(x)[:, :, ::2, ::2], (0, 0, 0, 0, 0, 0))),
    ),
    "every second channel": (IMAGE, lambda: Net(lambda m, x: m.c(x)[:, ::2], c=nn.Conv2d(3, 8, 3))),
    "flatten view": (
        IMAGE,
        lambda: Net(
            lambda m, x: m.fc(m.c(x).view(x.size(0), -1)),
            c=nn.Conv2d(3, 2, 3, stride=3),
            fc=nn.Linear(32, 5),
        ),
    ),
    "flatten module": (
        IMAGE,
        lambda: nn.Sequential(nn.Conv2d(3, 2, 3, stride=3), nn.Flatten(), nn.Linear(32, 5)),
    ),
    "mean over tokens": ((10, 8), lambda: Net(lambda m, x: m.fc(x).mean(1), fc=nn.Linear(8, 10))),
    "mean of all": (
        IMAGE,
        lambda: Net(lambda m, x: m.c(x).mean((1, 2), keepdim=True), c=nn.Conv2d(3, 8, 3)),
    ),
    "depthwise": (
        IMAGE,
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 4, 1)
        ),
    ),
    "zero pad": (
        IMAGE,
        lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, stride=2)),
    ),
    "reflect pad": (IMAGE, lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3))),
    "preprocessing": (
        IMAGE,
        lambda: Net(
            lambda m, x: m.c((x - m.mean) / m.std),
            c=nn.Conv2d(3, 4, 3),
            mean=nn.Parameter(torch.randn(3, 1, 1)),
            std=nn.Parameter(torch.rand(3, 1, 1) + 0.5),
        ),
    ),
    "unit vectors": ((12,), lambda: Net(lambda m, x: F.normalize(m.fc(x)), fc=nn.Linear(12, 5))),
    "glu": (IMAGE, lambda: Net(lambda m, x: F.glu(m.c(x), 1), c=nn.Conv2d(3, 8, 3))),
    "squared": (IMAGE, lambda: conv_net(lambda m, x: F.relu(x) ** 2 / 2)),
    "einsum": (
        (6, 8),
        lambda: Net(
            lambda m, x: torch.einsum("nij,jk->nik", x, m.w), w=nn.Parameter(torch.randn(8, 5))
        ),
    ),
    "a bias for each row": (
        (10, 8),
        lambda: Net(
            lambda m, x: (x @ m.w + m.t).mean(1),
            w=nn.Parameter(torch.randn(8, 10)),
            t=nn.Parameter(torch.randn(10, 1)),
        ),
    ),
}


def source_of(name: str) -> SourceModel:
    """Return one of the networks, seeded, its BatchNorms as if trained."""
    shape, make = NETWORKS[name]
    torch.manual_seed(1)
    module = make()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_()
            part.running_var.uniform_(0.3, 2)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_()
    return model_of_module(module.eval(), shape)


def ours(opset: int) -> Callable[[SourceModel], onnx.ModelProto]:
    """Return the writer that is this package's own export."""

    def write(source: SourceModel) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            _write(source, ExportSpec(opset=opset), path, lambda stage: None)
            return onnx.load(path)

    return write


def torchs(opset: int, *, dynamo: bool, axes=(0,)) -> Callable[[SourceModel], onnx.ModelProto]:
    """Return one of torch's two exporters; `axes` are open."""

    def write(source: SourceModel) -> onnx.ModelProto:
        inputs = (torch.randn(2, *source.input_shape),)
        names = {axis: f"d{axis}" for axis in axes}
        how = (
            {"dynamic_shapes": ({k: torch.export.Dim(name) for k, name in names.items()},)}
            if dynamo
            else {"dynamic_axes": {"input": names}, "input_names": ["input"]}
        )
        buffer = io.BytesIO()
        quiet = (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        )
        with warnings.catch_warnings(), quiet[0], quiet[1]:
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                source.module,
                inputs,
                *(() if dynamo else (buffer,)),
                opset_version=opset,
                dynamo=dynamo,
                **how,
            )
        return program.model_proto if dynamo else onnx.load_from_string(buffer.getvalue())

    return write


def simplified(source: SourceModel) -> onnx.ModelProto:
    """Return what onnxsim makes of torch's newer export."""
    import onnxsim

    with contextlib.redirect_stdout(io.StringIO()):
        return onnxsim.simplify(torchs(18, dynamo=True)(source))[0]


def optimized(source: SourceModel) -> onnx.ModelProto:
    """Return what onnxscript's optimizer makes of torch's older export."""
    from onnxscript import optimizer

    return optimizer.optimize(torchs(17, dynamo=False)(source))


def by_runtime(level: str, write=None) -> Callable[[SourceModel], onnx.ModelProto]:
    """Return ONNX Runtime's own file of a model, optimized on a level."""
    import onnxruntime as ort

    def run(source: SourceModel) -> onnx.ModelProto:
        model = (write or ours(18))(source)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(
            ort.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}"
        )
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return onnx.load(options.optimized_model_filepath)

    return run


WRITERS: dict[str, Callable[[SourceModel], onnx.ModelProto]] = {
    **{f"resdeploy {opset}": ours(opset) for opset in (13, 17, 18, 20)},
    **{f"dynamo {opset}": torchs(opset, dynamo=True) for opset in (18, 20, 21, 23)},
    **{f"torchscript {opset}": torchs(opset, dynamo=False) for opset in (9, 11, 13, 16, 17, 20)},
    "onnxsim": simplified,
    "onnxscript": optimized,
    "runtime basic": by_runtime("basic"),
    "runtime extended": by_runtime("extended"),
    "runtime extended, of torch": by_runtime("extended", torchs(17, dynamo=False)),
}
