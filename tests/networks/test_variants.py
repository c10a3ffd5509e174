"""Options that people deploy with: stems, heads, channels, no head."""

import pytest
import torch
from architectures import each
from torch import nn

from resdeploy.errors import ResdeployError
from resdeploy.networks import ARCHITECTURES, build_network, input_shape
from resdeploy.networks.attention import BlurPool
from resdeploy.networks.heads import make_head
from resdeploy.schema.recipes import ModelSpec

HEADED = [name for name, a in ARCHITECTURES.items() if "head" in a.options]
POOLED = [name for name in ARCHITECTURES if not name.startswith("iresnet")]


def build(arch, num_classes=10, **options):
    with torch.device("meta"):
        return build_network(ModelSpec(arch=arch, num_classes=num_classes, options=options))


def shapes(network, prefix):
    state = network.state_dict()
    return {key: tuple(x.shape) for key, x in state.items() if key.startswith(prefix)}


@pytest.mark.parametrize(("depth", "features"), [(18, 512), (34, 512), (50, 2048)])
def test_a_cifar_stem_keeps_the_size_of_the_image(depth, features):
    network = build(f"cifar_resnet{depth}")
    assert shapes(network, "conv1.") == {"conv1.weight": (64, 3, 3, 3)}
    maps = []
    network.layer1.register_forward_hook(lambda _m, x, _y: maps.append(x[0].shape))
    network.layer4.register_forward_hook(lambda _m, _x, y: maps.append(y.shape))
    assert network(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    assert maps == [(2, 64, 32, 32), (2, features, 4, 4)]


def test_the_parameters_of_a_cifar_resnet18_are_those_of_kuangliu():
    assert sum(p.numel() for p in build("cifar_resnet18").parameters()) == 11_173_962


@pytest.mark.parametrize("arch", ["resnet18", "resnet50d", "cifar_resnet18", "regnet_y_400mf"])
@pytest.mark.parametrize("in_channels", [1, 4])
def test_a_stem_takes_any_number_of_channels(arch, in_channels):
    spec = ModelSpec(arch=arch, num_classes=10, options={"in_channels": in_channels})
    with torch.device("meta"):
        network = build_network(spec)
        assert network(torch.empty(2, *input_shape(spec))).shape == (2, 10)
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    assert first.in_channels == in_channels


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"fc.weight": (7, 512)}),
        ({"dropout": 0.5}, {"fc.1.weight": (7, 512)}),
        ({"head": "mlp"}, {"fc.0.weight": (512, 512), "fc.2.weight": (7, 512)}),
        (
            {"head": "mlp", "head_width": 64, "dropout": 0.2},
            {"fc.0.weight": (64, 512), "fc.3.weight": (7, 64)},
        ),
    ],
)
def test_a_head_has_the_names_of_nn_sequential(options, names):
    found = shapes(build("resnet18", 7, **options), "fc.")
    assert {key: shape for key, shape in found.items() if key.endswith("weight")} == names


@pytest.mark.parametrize("arch", each(HEADED))
def test_every_headed_architecture_takes_every_head(arch):
    network = build(arch, 7, head="mlp", head_width=24, dropout=0.1)
    x = torch.empty(2, *ARCHITECTURES[arch].input_shape, device="meta")
    assert network(x).shape == (2, 7)
    assert [type(layer) for layer in network.fc] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]


@pytest.mark.parametrize("arch", each(POOLED))
def test_without_classes_the_outputs_are_the_features(arch):
    network, headless = build(arch, 3), build(arch, 0)
    features = []
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    last.register_forward_hook(lambda _m, x, _y: features.append(x[0].shape))
    x = torch.empty(2, *ARCHITECTURES[arch].input_shape, device="meta")
    network(x)
    assert [headless(x).shape] == features
    kept = {key for key in network.state_dict() if not key.startswith(("fc.", "linear."))}
    assert kept <= set(headless.state_dict()) | {"linear7.weight", "linear7.bias"}


def test_an_iresnet_needs_its_embedding():
    with pytest.raises(ResdeployError, match="no form without its last layer"):
        build("iresnet18", 0)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_that_is_no_probability_is_refused(dropout):
    with pytest.raises(ResdeployError, match="dropout must be at least 0 and below 1"):
        make_head(8, 2, dropout=dropout)


@pytest.mark.parametrize("size", [7, 8])
def test_blur_pooling_is_a_convolution_with_the_binomial_filter(size):
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    row = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
    kernel = torch.outer(row, row).expand(3, 1, 3, 3)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    expected = nn.functional.conv2d(padded, kernel, stride=2, groups=3)
    torch.testing.assert_close(BlurPool()(x), expected, rtol=1e-12, atol=1e-12)


def test_every_stride_of_a_blurred_network_is_a_blur():
    network = build("resnet18", blur_pool=True)
    assert sum(isinstance(m, BlurPool) for m in network.modules()) == 4  # the stem and 3 stages
    trunk = [m for n, m in network.named_modules() if n.startswith("layer") and "down" not in n]
    assert {m.stride for m in trunk if isinstance(m, nn.Conv2d)} == {(1, 1)}
