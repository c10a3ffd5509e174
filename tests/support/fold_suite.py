"""Torch modules, one for each condition under which a BatchNorm may or may not be folded.

A case says how many BatchNorm call sites the best legal folder folds and how many it must refuse:
the ideal, whatever a folder at hand does. Whoever folds a case must keep its function; who gets
further than another is a second question. `test_fold_suite.py` holds our own fold to it, and
`benchmarks/fold/compare_peers.py` runs it through other tools.

Tags: the group a case stands in, and

    forward     the fold goes into the layer after the BatchNorm, not the one before
    arithmetic  the BatchNorm is written as a product and a sum
    random      the module draws random numbers: seed before each call
    trace       no ONNX graph can hold the module: refused as a whole, by the name of the part
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """A module and what becomes of its BatchNorm call sites.

    Attributes:
        name: the condition.
        build: makes the module, the same each time, in the mode it is to be judged in.
        inputs: makes its positional inputs, the same each time; axis 0 is the batch.
        folded: call sites that can be folded legally.
        refused: call sites that must stay.
        tags: see the module docstring.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    folded: int
    refused: int
    tags: frozenset[str]


CASES: tuple[Case, ...] = ()
FOLDS, STAYS = (1, 0), (0, 1)

Inputs = tuple[int, ...] | tuple[tuple[int, ...], ...]
IMAGES = (2, 4, 8, 8)
ROWS = (3, 5)
TOKENS = (2, 6, 5)


class Net(nn.Module):
    """Named parts and a forward pass over them: `Net(lambda net, x: net.bn(net.conv(x)), ...)`."""

    def __init__(self, run: Callable[..., object], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    # Not `*inputs`, which torch.fx cannot trace: no tool is to fail for how the suite is written.
    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


class NetOfTwo(Net):
    """The same with two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> object:  # type: ignore[override]
        return self.run(self, x, y)


def chain(**parts: nn.Module) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, part in parts.items():
        sequence.add_module(name, part)
    return sequence


class FrozenBatchNorm(nn.Module):
    """A BatchNorm whose parameters are buffers, written out, as detection networks have it."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


def lively(module: nn.Module) -> None:
    """Move every statistic and parameter of a normalisation far from the identity."""
    normalisations = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm)
    for part in module.modules():
        if isinstance(part, normalisations):
            if getattr(part, "running_mean", None) is not None:
                part.running_mean.normal_(0, 0.7)
                part.running_var.uniform_(0.3, 3)
            if part.weight is not None:
                # Both signs, and no channel that a fault could hide in.
                part.weight.normal_().add_(part.weight.sign(), alpha=0.3)
                part.bias.normal_()


def case(
    name: str,
    counts: tuple[int, int],
    inputs: Inputs,
    *tags: str,
    dtype: torch.dtype = torch.float32,
) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Add a case; the decorated function returns the module, or it and a last touch to it."""

    def build(make: Callable[[], object]) -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            made = make()
            module, touch = made if isinstance(made, tuple) else (made, None)
            lively(module)
            module.eval()
            if dtype is not torch.float32:
                module.to(dtype)
            if touch is not None:
                touch(module)
        return module

    def make_inputs() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        shapes = (inputs,) if isinstance(inputs[0], int) else inputs
        return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)

    def add(make: Callable[[], object]) -> Callable[[], object]:
        global CASES
        CASES += (
            Case(name, functools.partial(build, make), make_inputs, *counts, frozenset(tags)),
        )
        return make

    return add


def conv_bn(*between: nn.Module, **options: object) -> nn.Sequential:
    """Convolution, what stands between, BatchNorm."""
    parts = {f"between{i}": part for i, part in enumerate(between)}
    return chain(conv=nn.Conv2d(4, 8, 3, **options), **parts, bn=nn.BatchNorm2d(8))


def positive(module: nn.Module) -> None:
    module.bn.weight.abs_()


def no_shift(module: nn.Module) -> None:
    module.bn.bias.zero_()
    module.bn.running_mean.zero_()


# --- convolution, BatchNorm: every form of the layer ---------------------------------------------

for _name, _options in {
    "conv2d": {},
    "conv2d_no_bias": {"bias": False},
    "conv2d_zero_padding": {"padding": 1},
    "conv2d_same_padding": {"padding": "same"},
    "conv2d_reflect_padding": {"padding": 1, "padding_mode": "reflect"},
    "conv2d_replicate_padding": {"padding": 1, "padding_mode": "replicate"},
    "conv2d_circular_padding": {"padding": 1, "padding_mode": "circular"},
    "conv2d_strided": {"stride": 2},
    "conv2d_dilated": {"dilation": 2},
    "conv2d_grouped": {"groups": 2},
    "conv2d_depthwise": {"groups": 4, "bias": False},
}.items():
    case(_name, FOLDS, IMAGES, "layer")(functools.partial(conv_bn, **_options))

case("conv1d", FOLDS, (2, 4, 9), "layer")(
    lambda: chain(conv=nn.Conv1d(4, 6, 3), bn=nn.BatchNorm1d(6))
)
case("conv1d_grouped_strided", FOLDS, (2, 4, 9), "layer")(
    lambda: chain(conv=nn.Conv1d(4, 6, 3, groups=2, stride=2), bn=nn.BatchNorm1d(6))
)
case("conv3d", FOLDS, (2, 4, 5, 5, 5), "layer")(
    lambda: chain(conv=nn.Conv3d(4, 6, 3), bn=nn.BatchNorm3d(6))
)
case("conv2d_single_channel", FOLDS, (2, 1, 8, 8), "layer")(
    lambda: chain(conv=nn.Conv2d(1, 1, 3), bn=nn.BatchNorm2d(1))
)
case("conv2d_without_batch_axis_one", FOLDS, (3, 4, 3, 3), "layer")(
    lambda: chain(conv=nn.Conv2d(4, 8, 3), bn=nn.BatchNorm2d(8))
)

for _name, _io, _options in (
    ("conv_transpose", (4, 6), {}),
    ("conv_transpose_equal_channels", (4, 4), {}),
    ("conv_transpose_no_bias", (4, 6), {"bias": False}),
    ("conv_transpose_grouped", (4, 6), {"groups": 2}),
    ("conv_transpose_grouped_equal_channels", (4, 4), {"groups": 2, "bias": False}),
    ("conv_transpose_depthwise", (4, 8), {"groups": 4}),
    ("conv_transpose_output_padding", (4, 6), {"stride": 2, "padding": 1, "output_padding": 1}),
    ("conv_transpose_dilated", (4, 6), {"dilation": 2}),
):
    case(_name, FOLDS, IMAGES, "layer")(
        lambda io=_io, options=_options: chain(
            conv=nn.ConvTranspose2d(*io, 3, **options), bn=nn.BatchNorm2d(io[1])
        )
    )

case("conv_transpose1d", FOLDS, (2, 4, 7), "layer")(
    lambda: chain(conv=nn.ConvTranspose1d(4, 6, 3), bn=nn.BatchNorm1d(6))
)
case("conv_transpose3d", FOLDS, (2, 4, 3, 3, 3), "layer")(
    lambda: chain(conv=nn.ConvTranspose3d(4, 6, 2, groups=2), bn=nn.BatchNorm3d(6))
)

# --- linear, BatchNorm: which axis are the features on? ------------------------------------------

case("linear", FOLDS, ROWS, "linear")(lambda: chain(fc=nn.Linear(5, 7), bn=nn.BatchNorm1d(7)))
case("linear_no_bias", FOLDS, ROWS, "linear")(
    lambda: chain(fc=nn.Linear(5, 7, bias=False), bn=nn.BatchNorm1d(7))
)
case("linear_affine_false", FOLDS, ROWS, "linear")(
    lambda: chain(fc=nn.Linear(5, 7), bn=nn.BatchNorm1d(7, affine=False))
)
case("linear_rank3_L_equals_C", STAYS, TOKENS, "linear")(
    lambda: chain(fc=nn.Linear(5, 6), bn=nn.BatchNorm1d(6))
)
case("linear_rank3_L_differs_from_C", STAYS, TOKENS, "linear")(
    lambda: chain(fc=nn.Linear(5, 7), bn=nn.BatchNorm1d(6))
)
case("linear_rank3_one_channel", FOLDS, (2, 1, 5), "linear")(
    lambda: chain(fc=nn.Linear(5, 7), bn=nn.BatchNorm1d(1))
)
case("linear_rank4_bn2d", STAYS, (2, 4, 3, 5), "linear")(
    lambda: chain(fc=nn.Linear(5, 4), bn=nn.BatchNorm2d(4))
)


def linear_bn(run: Callable[..., object], out: int, bn: nn.Module) -> Net:
    return Net(run, fc=nn.Linear(5, out), bn=bn)


case("linear_transpose_bn1d", FOLDS, TOKENS, "linear")(
    lambda: linear_bn(lambda net, x: net.bn(net.fc(x).transpose(1, 2)), 7, nn.BatchNorm1d(7))
)
case("linear_transpose_bn1d_square", FOLDS, TOKENS, "linear")(
    lambda: linear_bn(lambda net, x: net.bn(net.fc(x).mT), 6, nn.BatchNorm1d(6))
)
case("linear_transpose_twice_bn1d", STAYS, TOKENS, "linear")(
    lambda: linear_bn(lambda net, x: net.bn(net.fc(x).mT.mT.contiguous()), 6, nn.BatchNorm1d(6))
)
case("linear_flatten01_bn1d", FOLDS, TOKENS, "linear")(
    lambda: linear_bn(
        lambda net, x: net.bn(net.fc(x).flatten(0, 1)).reshape(-1, 6, 7), 7, nn.BatchNorm1d(7)
    )
)
case("linear_rank3_flatten12_bn1d", STAYS, TOKENS, "linear")(
    lambda: linear_bn(lambda net, x: net.bn(net.fc(x).flatten(1)), 7, nn.BatchNorm1d(42))
)
case("linear_rank3_reshape_bn1d", STAYS, TOKENS, "linear")(
    lambda: linear_bn(lambda net, x: net.bn(net.fc(x).reshape(-1, 7, 6)), 7, nn.BatchNorm1d(7))
)
case("linear_unflatten_bn2d", FOLDS, ROWS, "linear")(
    lambda: linear_bn(
        lambda net, x: net.bn(net.fc(x).unflatten(1, (4, 3, 2))), 24, nn.BatchNorm2d(4)
    )
)
case("linear_view_bn1d", FOLDS, ROWS, "linear")(
    lambda: linear_bn(lambda net, x: net.bn(net.fc(x).view(-1, 4, 3)), 12, nn.BatchNorm1d(4))
)
case("linear_view_transpose_bn1d", FOLDS, ROWS, "linear")(
    lambda: linear_bn(lambda net, x: net.bn(net.fc(x).view(-1, 4, 3).mT), 12, nn.BatchNorm1d(3))
)
case("linear_tokens_to_image_bn2d", FOLDS, TOKENS, "linear")(
    lambda: linear_bn(
        lambda net, x: net.bn(net.fc(x).transpose(1, 2).unflatten(2, (2, 3))), 7, nn.BatchNorm2d(7)
    )
)
case("linear_permute_rank4_bn2d", FOLDS, (2, 3, 4, 5), "linear")(
    lambda: linear_bn(lambda net, x: net.bn(net.fc(x).permute(0, 3, 1, 2)), 7, nn.BatchNorm2d(7))
)


def product_bn(run: Callable[..., object]) -> Net:
    net = Net(run, bn=nn.BatchNorm1d(7))
    net.weight = nn.Parameter(torch.randn(5, 7))
    net.bias = nn.Parameter(torch.randn(7))
    return net


case("matmul_bn1d", FOLDS, ROWS, "linear")(
    lambda: product_bn(lambda net, x: net.bn(x @ net.weight))
)
case("matmul_add_bn1d", FOLDS, ROWS, "linear")(
    lambda: product_bn(lambda net, x: net.bn(x @ net.weight + net.bias))
)
case("addmm_bn1d", FOLDS, ROWS, "linear")(
    lambda: product_bn(lambda net, x: net.bn(torch.addmm(net.bias, x, net.weight)))
)
case("addmm_alpha_beta_bn1d", FOLDS, ROWS, "linear")(
    lambda: product_bn(
        lambda net, x: net.bn(torch.addmm(net.bias, x, net.weight, beta=0.5, alpha=2))
    )
)
case("matmul_of_two_inputs_bn1d", STAYS, ((2, 6, 5), (2, 5, 3)), "linear")(
    lambda: NetOfTwo(lambda net, x, y: net.bn(x @ y), bn=nn.BatchNorm1d(6))
)

# --- wiring: who reads what, and how often -------------------------------------------------------


def conv_and_bn(run: Callable[..., object], **more: nn.Module) -> Net:
    return Net(run, conv=nn.Conv2d(4, 4, 3, padding=1), bn=nn.BatchNorm2d(4), **more)


case("siamese_same_conv_and_bn_twice", (2, 0), IMAGES, "wiring")(
    lambda: conv_and_bn(lambda net, x: net.bn(net.conv(x)) - net.bn(net.conv(2 * x)))
)
case("siamese_sequential_twice", (2, 0), (IMAGES, IMAGES), "wiring")(
    lambda: NetOfTwo(lambda net, x, y: torch.relu(net.twin(x)) * net.twin(y), twin=conv_bn())
)
case("same_conv_two_batchnorms", (2, 0), IMAGES, "wiring")(
    lambda: conv_and_bn(
        lambda net, x: net.bn(net.conv(x)) * net.other(net.conv(2 * x)), other=nn.BatchNorm2d(4)
    )
)
case("two_convs_same_batchnorm", (2, 0), IMAGES, "wiring")(
    lambda: conv_and_bn(
        lambda net, x: net.bn(net.conv(x)) * net.bn(net.other(x)),
        other=nn.Conv2d(4, 4, 3, padding=1),
    )
)
case("recurrent_conv_and_bn", (3, 0), IMAGES, "wiring")(
    lambda: conv_and_bn(
        lambda net, x: functools.reduce(lambda y, _: net.bn(net.conv(y)).relu(), range(3), x)
    )
)
case("conv_also_used_without_bn", FOLDS, IMAGES, "wiring")(
    lambda: conv_and_bn(lambda net, x: net.bn(net.conv(x)) + net.conv(x * x))
)
case("conv_two_readers", STAYS, IMAGES, "wiring")(
    lambda: conv_and_bn(lambda net, x: (lambda y: net.bn(y) * y.sigmoid())(net.conv(x)))
)
case("conv_read_by_two_batchnorms", (0, 2), IMAGES, "wiring")(
    lambda: conv_and_bn(
        lambda net, x: (lambda y: net.bn(y) * net.other(y))(net.conv(x)), other=nn.BatchNorm2d(4)
    )
)
case("conv_output_also_returned", STAYS, IMAGES, "wiring")(
    lambda: conv_and_bn(lambda net, x: (lambda y: (net.bn(y), y))(net.conv(x)))
)
case("conv_shape_only_read", FOLDS, IMAGES, "wiring")(
    lambda: conv_and_bn(lambda net, x: (lambda y: net.bn(y) * y.shape[2])(net.conv(x)))
)
case("tied_weights", (2, 0), IMAGES, "wiring")(
    lambda: (
        conv_and_bn(
            lambda net, x: net.bn2(net.conv2(net.bn(net.conv(x)).relu())),
            conv2=nn.Conv2d(4, 4, 3, padding=1),
            bn2=nn.BatchNorm2d(4),
        ),
        lambda net: setattr(net.conv2, "weight", net.conv.weight),
    )
)
case("weight_read_elsewhere", FOLDS, IMAGES, "wiring")(
    lambda: conv_and_bn(lambda net, x: net.bn(net.conv(x)) * net.conv.weight.square().mean())
)
case("batchnorm_parameters_read_elsewhere", FOLDS, IMAGES, "wiring")(
    lambda: conv_and_bn(lambda net, x: net.bn(net.conv(x)) * net.bn.running_var.max())
)
case("module_with_two_names", FOLDS, IMAGES, "wiring")(
    lambda: (
        conv_and_bn(lambda net, x: net.bn(net.alias(x))),
        lambda net: net.add_module("alias", net.conv),
    )
)
case("registration_order_differs_from_call_order", (2, 0), IMAGES, "wiring")(
    lambda: Net(
        lambda net, x: net.bn_b(net.conv_b(net.bn_a(net.conv_a(x)).relu())),
        conv_a=nn.Conv2d(4, 4, 1),
        bn_b=nn.BatchNorm2d(4),
        conv_b=nn.Conv2d(4, 4, 1),
        bn_a=nn.BatchNorm2d(4),
    )
)
case("adjacent_but_not_connected", STAYS, IMAGES, "wiring")(
    lambda: conv_and_bn(lambda net, x: net.conv(net.bn(x).relu()))
)
case("batchnorm_never_called", (0, 0), IMAGES, "wiring")(
    lambda: conv_and_bn(lambda net, x: net.conv(x))
)
case("pre_activation_residual_stream", (1, 1), IMAGES, "wiring")(
    lambda: Net(
        lambda net, x: (lambda y: y + net.conv2(net.bn2(net.conv1(net.bn1(y).relu())).relu()))(
            net.stem(x)
        ),
        stem=nn.Conv2d(4, 4, 1),
        bn1=nn.BatchNorm2d(4),
        conv1=nn.Conv2d(4, 4, 1),
        bn2=nn.BatchNorm2d(4),
        conv2=nn.Conv2d(4, 4, 1),
    )
)
case("residual_block_with_projection", (3, 0), IMAGES, "wiring")(
    lambda: Net(
        lambda net, x: (
            net.bn2(net.conv2(net.bn1(net.conv1(x)).relu())) + net.bn3(net.conv3(x))
        ).relu(),
        conv1=nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        bn1=nn.BatchNorm2d(6),
        conv2=nn.Conv2d(6, 6, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(6),
        conv3=nn.Conv2d(4, 6, 1, stride=2, bias=False),
        bn3=nn.BatchNorm2d(6),
    )
)


def two_convs(run: Callable[..., object], features: int) -> Net:
    return Net(
        run, a=nn.Conv2d(4, 6, 3), b=nn.Conv2d(4, 6, 3, bias=False), bn=nn.BatchNorm2d(features)
    )


case("cat_of_two_convs", FOLDS, IMAGES, "wiring")(
    lambda: two_convs(lambda net, x: net.bn(torch.cat([net.a(x), net.b(x)], 1)), 12)
)
case("cat_along_width", FOLDS, IMAGES, "wiring")(
    lambda: two_convs(lambda net, x: net.bn(torch.cat([net.a(x), net.b(x)], 3)), 6)
)
case("cat_of_one_conv_called_twice", FOLDS, IMAGES, "wiring")(
    lambda: two_convs(lambda net, x: net.bn(torch.cat([net.a(x), net.a(2 * x)], 1)), 12)
)
case("cat_of_conv_and_input", STAYS, IMAGES, "wiring")(
    lambda: conv_and_bn(
        lambda net, x: net.wide(torch.cat([net.conv(x), x], 1)), wide=nn.BatchNorm2d(8)
    )
)
case("cat_with_a_part_read_twice", STAYS, IMAGES, "wiring")(
    lambda: two_convs(
        lambda net, x: (lambda y: net.bn(torch.cat([y, net.b(x)], 1)).sum() + y)(net.a(x)), 12
    )
)
case("add_of_two_convs", FOLDS, IMAGES, "wiring")(
    lambda: two_convs(lambda net, x: net.bn(net.a(x) + net.b(x)), 6)
)
case("add_of_conv_and_input", STAYS, IMAGES, "wiring")(
    lambda: conv_and_bn(lambda net, x: net.bn(net.conv(x) + x))
)
case("add_of_conv_read_twice", STAYS, IMAGES, "wiring")(
    lambda: two_convs(lambda net, x: (lambda y: net.bn(y + net.b(x)) * y)(net.a(x)), 6)
)

# --- between the layer and the BatchNorm ---------------------------------------------------------

case("avgpool_between_no_padding", FOLDS, IMAGES, "between")(lambda: conv_bn(nn.AvgPool2d(2)))
case("avgpool_ceil_mode_no_padding", FOLDS, (2, 4, 7, 7), "between")(
    lambda: conv_bn(nn.AvgPool2d(2, ceil_mode=True))
)
case("avgpool_padded_counting_zeros", STAYS, IMAGES, "between")(
    lambda: conv_bn(nn.AvgPool2d(3, padding=1))
)
case("avgpool_padded_not_counting_zeros", FOLDS, IMAGES, "between")(
    lambda: conv_bn(nn.AvgPool2d(3, padding=1, count_include_pad=False))
)
case("adaptive_avgpool_between", FOLDS, IMAGES, "between")(lambda: conv_bn(nn.AdaptiveAvgPool2d(2)))
case("global_mean_between", FOLDS, IMAGES, "between")(
    lambda: Net(
        lambda net, x: net.bn(net.conv(x).mean((2, 3))),
        conv=nn.Conv2d(4, 6, 3),
        bn=nn.BatchNorm1d(6),
    )
)
case("maxpool_between_positive_scales", FOLDS, IMAGES, "between")(
    lambda: (conv_bn(nn.MaxPool2d(2)), positive)
)
case("maxpool_padded_positive_scales", FOLDS, IMAGES, "between")(
    lambda: (conv_bn(nn.MaxPool2d(3, padding=1)), positive)
)
case("maxpool_between_a_negative_scale", STAYS, IMAGES, "between")(
    lambda: (conv_bn(nn.MaxPool2d(2)), lambda net: net.bn.weight.abs_()[3:4].neg_())
)
case("relu_between", STAYS, IMAGES, "between")(lambda: conv_bn(nn.ReLU()))
case("relu_between_positive_scales", STAYS, IMAGES, "between")(
    lambda: (conv_bn(nn.ReLU()), positive)
)
case("inplace_relu_between", STAYS, IMAGES, "between")(lambda: conv_bn(nn.ReLU(inplace=True)))
case("zero_pad_between", STAYS, IMAGES, "between")(lambda: conv_bn(nn.ZeroPad2d(1)))
case("reflection_pad_between", FOLDS, IMAGES, "between")(lambda: conv_bn(nn.ReflectionPad2d(1)))
case("upsample_nearest_between", FOLDS, IMAGES, "between")(
    lambda: conv_bn(nn.Upsample(scale_factor=2))
)
case("pixel_shuffle_between", FOLDS, IMAGES, "between")(
    lambda: chain(conv=nn.Conv2d(4, 12, 3), up=nn.PixelShuffle(2), bn=nn.BatchNorm2d(3))
)
case("pixel_unshuffle_between", STAYS, IMAGES, "between")(
    lambda: chain(conv=nn.Conv2d(4, 3, 3), down=nn.PixelUnshuffle(2), bn=nn.BatchNorm2d(12))
)
case("channel_shuffle_between", FOLDS, IMAGES, "between")(lambda: conv_bn(nn.ChannelShuffle(2)))
case("channel_shuffle_by_views_between", FOLDS, IMAGES, "between")(
    lambda: Net(
        lambda net, x: net.bn(
            net.conv(x).view(-1, 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6)
        ),
        conv=nn.Conv2d(4, 8, 3),
        bn=nn.BatchNorm2d(8),
    )
)
case("channel_slice_between", FOLDS, IMAGES, "between")(
    lambda: Net(
        lambda net, x: net.bn(net.conv(x)[:, 2:6]), conv=nn.Conv2d(4, 8, 3), bn=nn.BatchNorm2d(4)
    )
)
case("crop_between", FOLDS, IMAGES, "between")(
    lambda: conv_and_bn(lambda net, x: net.bn(net.conv(x)[:, :, 1:-1]))
)
case("transpose_of_height_and_width_between", FOLDS, IMAGES, "between")(
    lambda: conv_and_bn(lambda net, x: net.bn(net.conv(x).mT))
)
case("transpose_of_channel_and_height_between", STAYS, (2, 4, 4, 5), "between")(
    lambda: conv_and_bn(lambda net, x: net.bn(net.conv(x).transpose(1, 2)))
)
case("view_splits_image_into_channels", STAYS, IMAGES, "between")(
    lambda: conv_and_bn(
        lambda net, x: net.wide(net.conv(x).view(-1, 8, 4, 8)), wide=nn.BatchNorm2d(8)
    )
)
case("view_joins_channels", FOLDS, IMAGES, "between")(
    lambda: conv_and_bn(
        lambda net, x: net.narrow(net.conv(x).view(-1, 2, 16, 8)), narrow=nn.BatchNorm2d(2)
    )
)
case("flatten_of_an_image_between", STAYS, (2, 4, 3, 3), "between")(
    lambda: chain(conv=nn.Conv2d(4, 5, 2), flat=nn.Flatten(), bn=nn.BatchNorm1d(20))
)
case("flatten_of_one_pixel_between", FOLDS, (2, 4, 3, 3), "between")(
    lambda: chain(conv=nn.Conv2d(4, 5, 3), flat=nn.Flatten(), bn=nn.BatchNorm1d(5))
)
case("squeeze_between", FOLDS, (2, 4, 3, 7), "between")(
    lambda: Net(
        lambda net, x: net.bn(net.conv(x).squeeze(2)), conv=nn.Conv2d(4, 5, 3), bn=nn.BatchNorm1d(5)
    )
)
case("unsqueeze_between", FOLDS, (2, 4, 7), "between")(
    lambda: Net(
        lambda net, x: net.bn(net.conv(x).unsqueeze(2)),
        conv=nn.Conv1d(4, 5, 3),
        bn=nn.BatchNorm2d(5),
    )
)
case("identity_between", FOLDS, IMAGES, "between")(lambda: conv_bn(nn.Identity()))
case("dropout_eval_between", FOLDS, IMAGES, "between")(
    lambda: conv_bn(nn.Dropout(0.5), nn.Dropout2d(0.5))
)
case("dropout_train_between", STAYS, IMAGES, "between", "random", "trace")(
    lambda: (conv_bn(nn.Dropout(0.5)), lambda net: net.between0.train())
)
case("clone_between", FOLDS, IMAGES, "between")(
    lambda: conv_and_bn(
        lambda net, x: net.bn(net.conv(x).clone().contiguous(memory_format=torch.channels_last))
    )
)
case("cast_to_the_same_type_between", FOLDS, IMAGES, "between")(
    lambda: conv_and_bn(lambda net, x: net.bn(net.conv(x).to(x.dtype)))
)
case("channel_constant_added_between", FOLDS, IMAGES, "between")(
    lambda: (
        conv_and_bn(lambda net, x: net.bn(net.conv(x) + net.constant)),
        lambda net: net.register_buffer("constant", torch.randn(4, 1, 1)),
    )
)
case("channel_constant_multiplied_between", FOLDS, IMAGES, "between")(
    lambda: (
        conv_and_bn(lambda net, x: net.bn(net.conv(x) * net.constant)),
        lambda net: net.register_buffer("constant", torch.randn(4, 1, 1)),
    )
)
case("column_constant_multiplied_between", STAYS, (2, 4, 8, 4), "between")(
    lambda: (
        conv_and_bn(lambda net, x: net.bn(net.conv(x) * net.constant)),
        lambda net: net.register_buffer("constant", torch.randn(4)),
    )
)
case("inplace_add_of_the_input_between", STAYS, IMAGES, "between")(
    lambda: conv_and_bn(lambda net, x: net.bn(net.conv(x).add_(x)))
)
case("rounding_between", STAYS, IMAGES, "between")(
    lambda: conv_and_bn(lambda net, x: net.bn((net.conv(x) * 10).round().clamp(-128, 127) / 10))
)

# --- after the BatchNorm, and more than one ------------------------------------------------------

case("inplace_relu", FOLDS, IMAGES, "after")(
    lambda: nn.Sequential(*conv_bn(), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1))
)
case("bn_twice", (2, 0), IMAGES, "after")(
    lambda: chain(conv=nn.Conv2d(4, 6, 1), a=nn.BatchNorm2d(6), b=nn.BatchNorm2d(6))
)
case("bn_relu_bn", (1, 1), IMAGES, "after")(
    lambda: chain(conv=nn.Conv2d(4, 6, 1), a=nn.BatchNorm2d(6), act=nn.ReLU(), b=nn.BatchNorm2d(6))
)
case("bn_output_read_twice", FOLDS, IMAGES, "after")(
    lambda: conv_and_bn(lambda net, x: (lambda y: (y.relu(), y))(net.bn(net.conv(x))))
)
case("conv_bn_conv_zero_padding", FOLDS, IMAGES, "after")(
    lambda: chain(conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6), c=nn.Conv2d(6, 4, 3, padding=1))
)

# --- other normalisations, and BatchNorms that do not look like one ------------------------------

case("frozen_batchnorm", FOLDS, IMAGES, "normalisation", "arithmetic")(
    lambda: chain(conv=nn.Conv2d(4, 6, 3, bias=False), bn=FrozenBatchNorm(6), act=nn.ReLU())
)
case("instance_norm_running_stats", FOLDS, IMAGES, "normalisation")(
    lambda: chain(
        conv=nn.Conv2d(4, 6, 3), bn=nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
    )
)
case("instance_norm_without_running_stats", (0, 0), IMAGES, "normalisation")(
    lambda: chain(conv=nn.Conv2d(4, 6, 3), norm=nn.InstanceNorm2d(6, affine=True))
)
case("groupnorm", (0, 0), IMAGES, "normalisation")(
    lambda: chain(conv=nn.Conv2d(4, 6, 3), norm=nn.GroupNorm(2, 6))
)
case("layernorm", (0, 0), IMAGES, "normalisation")(
    lambda: chain(conv=nn.Conv2d(4, 6, 3), norm=nn.LayerNorm((6, 6, 6)))
)
case("layernorm_then_linear", (0, 0), ROWS, "normalisation")(
    lambda: chain(norm=nn.LayerNorm(5), fc=nn.Linear(5, 7))
)
case("syncbatchnorm_eval", FOLDS, IMAGES, "normalisation")(
    lambda: nn.SyncBatchNorm.convert_sync_batchnorm(conv_bn())
)
case("functional_conv", FOLDS, IMAGES, "normalisation")(
    lambda: conv_and_bn(lambda net, x: net.bn(F.conv2d(x, net.conv.weight, stride=2)))
)


def functional_bn(net: Net, x: Tensor, *, training: bool = False) -> Tensor:
    y, bn = net.conv(x), net.bn
    return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, training, eps=1e-3)


case("functional_batch_norm", FOLDS, IMAGES, "normalisation")(lambda: conv_and_bn(functional_bn))
case("functional_batch_norm_in_training", STAYS, IMAGES, "normalisation", "trace")(
    lambda: conv_and_bn(functools.partial(functional_bn, training=True))
)
case("functional_batch_norm_without_affine", FOLDS, IMAGES, "normalisation")(
    lambda: conv_and_bn(
        lambda net, x: F.batch_norm(net.conv(x), net.bn.running_mean, net.bn.running_var)
    )
)


class BatchNormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class ConvAct(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias)


case("batchnorm_subclass_with_activation", FOLDS, IMAGES, "normalisation")(
    lambda: chain(conv=nn.Conv2d(4, 6, 3), bn=BatchNormAct(6))
)
case("subclass_forward", STAYS, IMAGES, "weights")(
    lambda: chain(conv=ConvAct(4, 6, 3), bn=nn.BatchNorm2d(6))
)

# --- weights that are made, shared or watched ----------------------------------------------------

case("weight_standardisation", FOLDS, IMAGES, "weights")(
    lambda: chain(conv=StandardisedConv(4, 6, 3), bn=nn.BatchNorm2d(6))
)


def treated(treat: Callable[[nn.Module], object]) -> nn.Sequential:
    net = conv_bn()
    treat(net.conv)
    return net


case("weight_norm", FOLDS, IMAGES, "weights")(lambda: treated(parametrizations.weight_norm))
case("spectral_norm_eval", FOLDS, IMAGES, "weights")(
    lambda: treated(parametrizations.spectral_norm)
)
case("spectral_norm_train", STAYS, IMAGES, "weights", "trace")(
    lambda: (treated(parametrizations.spectral_norm), lambda net: net.conv.train())
)
case("pruned_conv", FOLDS, IMAGES, "weights")(
    lambda: treated(lambda conv: prune.l1_unstructured(conv, "weight", amount=0.4))
)
case("hook_doubles_output", FOLDS, IMAGES, "weights")(
    lambda: treated(lambda conv: conv.register_forward_hook(lambda module, args, y: 2 * y))
)
case("hook_rectifies_output", STAYS, IMAGES, "weights")(
    lambda: treated(lambda conv: conv.register_forward_hook(lambda module, args, y: y.relu()))
)
case("hook_shifts_batchnorm_output", FOLDS, IMAGES, "weights")(
    lambda: (
        conv_bn(),
        lambda net: net.bn.register_forward_hook(lambda module, args, y: y + 1),
    )
)
case("frozen_parameters", FOLDS, IMAGES, "weights")(lambda: conv_bn().requires_grad_(False))
case("weight_from_input", STAYS, IMAGES, "weights")(
    lambda: conv_and_bn(lambda net, x: net.bn(F.conv2d(x, net.conv.weight * x.mean())))
)
case("bias_from_input", STAYS, IMAGES, "weights")(
    lambda: conv_and_bn(
        lambda net, x: net.bn(F.conv2d(x, net.conv.weight, net.conv.bias * x.mean()))
    )
)
case("batchnorm_parameter_from_input", STAYS, IMAGES, "weights")(
    lambda: conv_and_bn(
        lambda net, x: F.batch_norm(
            net.conv(x), net.bn.running_mean, net.bn.running_var, net.bn.weight * x.mean()
        )
    )
)
case("weight_that_changes_at_each_call", STAYS, IMAGES, "weights", "trace")(
    lambda: (
        conv_and_bn(lambda net, x: net.bn(F.conv2d(x, net.kernel.mul_(0.5)))),
        lambda net: net.register_buffer("kernel", torch.randn(4, 4, 1, 1)),
    )
)

# --- statistics ----------------------------------------------------------------------------------


def bn_only(**options: object) -> nn.Sequential:
    return chain(conv=nn.Conv2d(4, 8, 3), bn=nn.BatchNorm2d(8, **options))


def forget_statistics(net: nn.Module) -> None:
    net.bn.running_mean = net.bn.running_var = None


case("train_mode_bn", STAYS, IMAGES, "statistics", "trace")(
    lambda: (bn_only(), lambda net: net.bn.train())
)
case("train_mode_conv_eval_bn", FOLDS, IMAGES, "statistics")(
    lambda: (bn_only(), lambda net: net.conv.train())
)
case("no_running_stats", STAYS, IMAGES, "statistics")(lambda: bn_only(track_running_stats=False))
case("running_stats_deleted", STAYS, IMAGES, "statistics")(lambda: (bn_only(), forget_statistics))
case("affine_false", FOLDS, IMAGES, "statistics")(lambda: bn_only(affine=False))
case("large_eps", FOLDS, IMAGES, "statistics")(lambda: bn_only(eps=0.5))
case("negative_scales", FOLDS, IMAGES, "statistics")(
    lambda: (bn_only(), lambda net: net.bn.weight.abs_().neg_())
)
case("zero_scales", FOLDS, IMAGES, "statistics")(
    lambda: (bn_only(), lambda net: net.bn.weight[::2].zero_())
)
case("var0_with_eps", FOLDS, IMAGES, "statistics")(
    lambda: (bn_only(), lambda net: net.bn.running_var[2:4].zero_())
)
case("var0_eps0", STAYS, IMAGES, "statistics")(
    lambda: (bn_only(eps=0.0), lambda net: net.bn.running_var[2:4].zero_())
)
case("nan_statistics", STAYS, IMAGES, "statistics")(
    lambda: (bn_only(), lambda net: net.bn.running_mean[1:2].fill_(float("nan")))
)
case("infinite_parameter", STAYS, IMAGES, "statistics")(
    lambda: (bn_only(), lambda net: net.bn.bias[1:2].fill_(float("inf")))
)
case("mean_far_from_zero", FOLDS, IMAGES, "statistics")(
    lambda: (bn_only(), lambda net: net.bn.running_mean.mul_(100))
)
case("dead_channel_subnormal_beta", FOLDS, IMAGES, "statistics")(
    lambda: (
        bn_only(),
        lambda net: (net.bn.weight[2:3].zero_(), net.bn.bias[2:3].fill_(1e-40)),
    )
)

# --- types ---------------------------------------------------------------------------------------


def tiny_statistics(net: nn.Module) -> None:
    """A scale beyond the largest float16, on weights so small that their product is ordinary."""
    net.bn.running_var.fill_(6e-6)
    net.bn.weight.sign_().mul_(400)
    net.bn.running_mean.mul_(1e-3)
    net.bn.eps = 0.0
    net.conv.weight.mul_(1e-2)
    net.conv.bias.mul_(1e-2)


case("half", FOLDS, IMAGES, "types", dtype=torch.float16)(bn_only)
case("bf16", FOLDS, IMAGES, "types", dtype=torch.bfloat16)(bn_only)
case("float64", FOLDS, IMAGES, "types", dtype=torch.float64)(bn_only)
case("half_linear", FOLDS, ROWS, "types", dtype=torch.float16)(
    lambda: chain(fc=nn.Linear(5, 7), bn=nn.BatchNorm1d(7))
)
case("half_overflow", FOLDS, IMAGES, "types", dtype=torch.float16)(
    lambda: (bn_only(), tiny_statistics)
)


def huge_scales(net: nn.Module) -> None:
    """Weights beyond the largest float16 for inputs so small that the outputs are ordinary."""
    net.conv.bias.zero_()
    net.bn.running_mean.zero_()
    net.bn.running_var.fill_(6e-6)
    net.bn.weight.sign_().mul_(15000)
    net.bn.eps = 0.0


def tiny_scales(net: nn.Module) -> None:
    """Weights below the smallest float16 for inputs so large that the outputs are not."""
    net.conv.bias.zero_()
    net.bn.running_mean.zero_()
    net.bn.running_var.fill_(6e4)
    net.bn.weight.mul_(1e-5)
    net.bn.bias.zero_()


case("half_weight_overflow", STAYS, IMAGES, "types", dtype=torch.float16)(
    lambda: (conv_and_bn(lambda net, x: net.bn(net.conv(x * 1e-3))), huge_scales)
)
case("half_underflow", STAYS, IMAGES, "types", dtype=torch.float16)(
    lambda: (conv_and_bn(lambda net, x: net.bn(net.conv(x * 1e4))), tiny_scales)
)
case("half_conv_float_batchnorm", FOLDS, IMAGES, "types", dtype=torch.float16)(
    lambda: (bn_only(), lambda net: net.bn.float())
)
case("half_conv_cast_to_float_before_bn", STAYS, IMAGES, "types", dtype=torch.float16)(
    lambda: (
        conv_and_bn(lambda net, x: net.bn(net.conv(x).to(net.bn.weight.dtype))),
        lambda net: net.bn.float(),
    )
)

# --- forward: BatchNorm, then the layer that reads it --------------------------------------------


def bn_then(layer: nn.Module, *, between: tuple[nn.Module, ...] = (), bn: int = 4) -> nn.Sequential:
    """BatchNorm behind an activation, what stands between, a layer."""
    parts = {f"between{i}": part for i, part in enumerate(between)}
    return chain(act=nn.Tanh(), bn=nn.BatchNorm2d(bn), **parts, layer=layer)


for _name, _options in {
    "bn_then_conv_no_padding": {},
    "bn_then_conv_no_bias": {"bias": False},
    "bn_then_conv_grouped": {"groups": 2},
    "bn_then_conv_strided_dilated": {"stride": 2, "dilation": 2},
    "bn_then_conv_reflect": {"padding": 1, "padding_mode": "reflect"},
    "bn_then_conv_replicate": {"padding": 1, "padding_mode": "replicate"},
    "bn_then_conv_circular": {"padding": 1, "padding_mode": "circular"},
}.items():
    case(_name, FOLDS, IMAGES, "forward")(
        lambda options=_options: bn_then(nn.Conv2d(4, 6, 3, **options))
    )

case("bn_then_conv_zero_padding", STAYS, IMAGES, "after")(
    lambda: bn_then(nn.Conv2d(4, 6, 3, padding=1))
)
case("bn_then_conv_same_padding", STAYS, IMAGES, "after")(
    lambda: bn_then(nn.Conv2d(4, 6, 3, padding="same"))
)
case("bn_then_conv_zero_shift", FOLDS, IMAGES, "forward")(
    lambda: (bn_then(nn.Conv2d(4, 6, 3, padding=1)), no_shift)
)
case("bn_then_pad_then_conv", STAYS, IMAGES, "after")(
    lambda: bn_then(nn.Conv2d(4, 6, 3), between=(nn.ZeroPad2d(1),))
)
case("bn_then_conv1d", FOLDS, (2, 4, 9), "forward")(
    lambda: chain(act=nn.Tanh(), bn=nn.BatchNorm1d(4), conv=nn.Conv1d(4, 6, 3))
)
case("bn_then_linear", FOLDS, ROWS, "forward")(
    lambda: chain(act=nn.Tanh(), bn=nn.BatchNorm1d(5), fc=nn.Linear(5, 7))
)
case("bn_dropout_linear", FOLDS, ROWS, "forward")(
    lambda: chain(bn=nn.BatchNorm1d(5), drop=nn.Dropout(), fc=nn.Linear(5, 7, bias=False))
)
case("bn_then_linear_over_another_axis", STAYS, TOKENS, "after")(
    lambda: chain(bn=nn.BatchNorm1d(6), fc=nn.Linear(5, 7))
)
case("bn_then_linear_over_another_axis_square", STAYS, (2, 5, 5), "after")(
    lambda: chain(bn=nn.BatchNorm1d(5), fc=nn.Linear(5, 7))
)
case("bn_transpose_linear", FOLDS, TOKENS, "forward")(
    lambda: Net(lambda net, x: net.fc(net.bn(x).mT), bn=nn.BatchNorm1d(6), fc=nn.Linear(6, 7))
)
case("bn2d_flatten_linear", FOLDS, (2, 4, 3, 3), "forward")(
    lambda: bn_then(nn.Linear(36, 5), between=(nn.Flatten(),))
)
case("bn_pool_flatten_linear", FOLDS, IMAGES, "forward")(
    lambda: bn_then(nn.Linear(4, 5), between=(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
)
case("bn_pool_conv", FOLDS, IMAGES, "forward")(
    lambda: bn_then(nn.Conv2d(4, 6, 1), between=(nn.AvgPool2d(2),))
)
case("bn_conv_transpose", STAYS, IMAGES, "after")(lambda: bn_then(nn.ConvTranspose2d(4, 6, 3)))
case("bn_conv_transpose_zero_shift", FOLDS, IMAGES, "forward")(
    lambda: (bn_then(nn.ConvTranspose2d(4, 6, 3)), no_shift)
)
case("bn_bn_conv", (2, 0), IMAGES, "forward")(
    lambda: chain(a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4), conv=nn.Conv2d(4, 6, 3))
)
case("conv_relu_bn_conv", FOLDS, IMAGES, "forward")(
    lambda: chain(a=nn.Conv2d(4, 6, 3), act=nn.ReLU(), bn=nn.BatchNorm2d(6), b=nn.Conv2d(6, 2, 1))
)
case("bn_before_one_of_two_calls", FOLDS, IMAGES, "forward")(
    lambda: Net(
        lambda net, x: net.conv(net.bn(x.tanh())) * net.conv(x),
        conv=nn.Conv2d(4, 6, 3),
        bn=nn.BatchNorm2d(4),
    )
)
case("bn_then_two_convs", FOLDS, IMAGES, "forward")(
    lambda: Net(
        lambda net, x: (lambda y: net.a(y) * net.b(y))(net.bn(x)),
        a=nn.Conv2d(4, 6, 3),
        b=nn.Conv2d(4, 6, 3),
        bn=nn.BatchNorm2d(4),
    )
)
case("bn_then_two_calls_of_one_conv", FOLDS, IMAGES, "forward")(
    lambda: Net(
        lambda net, x: (lambda y: net.conv(y) * net.conv(nn.functional.max_pool2d(y, 1)))(
            net.bn(x)
        ),
        conv=nn.Conv2d(4, 6, 3),
        bn=nn.BatchNorm2d(4, affine=False),
    )
)
case("bn_then_a_conv_and_a_relu", STAYS, IMAGES, "after")(
    lambda: Net(
        lambda net, x: (lambda y: (net.conv(y), y.relu()))(net.bn(x)),
        conv=nn.Conv2d(4, 6, 3),
        bn=nn.BatchNorm2d(4),
    )
)
case("bn_then_two_convs_one_of_them_padded", STAYS, IMAGES, "after")(
    lambda: Net(
        lambda net, x: (lambda y: (net.a(y), net.b(y)))(net.bn(x)),
        a=nn.Conv2d(4, 6, 3),
        b=nn.Conv2d(4, 6, 3, padding=1),
        bn=nn.BatchNorm2d(4),
    )
)
case("conv_times_a_constant_that_adds_channels_bn", STAYS, IMAGES)(
    lambda: Net(
        lambda net, x: net.bn(net.conv(x) * net.bn.running_mean.reshape(-1, 1, 1)),
        conv=nn.Conv2d(4, 1, 3),
        bn=nn.BatchNorm2d(6),
    )
)
case("bn_relu_conv", STAYS, IMAGES, "after")(
    lambda: bn_then(nn.Conv2d(4, 6, 3), between=(nn.ReLU(),))
)
case("bn_output_also_returned", STAYS, IMAGES, "after")(
    lambda: Net(
        lambda net, x: (lambda y: (net.conv(y), y))(net.bn(x)),
        conv=nn.Conv2d(4, 6, 3),
        bn=nn.BatchNorm2d(4),
    )
)
case("bn_without_any_layer", STAYS, IMAGES, "after")(
    lambda: chain(act=nn.Tanh(), bn=nn.BatchNorm2d(4), out=nn.Sigmoid())
)
case("half_bn_then_conv", FOLDS, IMAGES, "forward", "types", dtype=torch.float16)(
    lambda: bn_then(nn.Conv2d(4, 6, 3))
)
