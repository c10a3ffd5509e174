"""The ImageNet ResNets are torchvision's: names, shapes, and what they compute.

torchvision_state_dicts.json and torchvision_logits.json were made with torchvision 0.28.0, which
the tests themselves do not need.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from scrambled import scrambled
from torch import nn

from resdeploy.networks import build_network
from resdeploy.networks.norms import LayerNorm2d
from resdeploy.schema.recipes import ModelSpec

HERE = Path(__file__).parent
STATE_DICTS = json.loads((HERE / "torchvision_state_dicts.json").read_text("utf-8"))
LOGITS = json.loads((HERE / "torchvision_logits.json").read_text("utf-8"))
NAMES = [name for name in STATE_DICTS if name != "about"]

# Published, as in torchvision's documentation of each model's weights.
NUM_PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "resnext50_32x4d": 25_028_904,
}


def build(name, *, num_classes=1000, **options):
    return build_network(ModelSpec(arch=name, num_classes=num_classes, options=options))


def listed_shapes(name):
    """Yield (key, shape) as torchvision's state dict has them."""
    for module, tensors in STATE_DICTS[name].items():
        if isinstance(tensors, int):
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                yield f"{module}.{tensor}", (tensors,)
            yield f"{module}.num_batches_tracked", ()
        else:
            for tensor, shape in tensors.items():
                yield f"{module}.{tensor}", tuple(shape)


@torch.no_grad()
def fill(network):
    """Give each tensor of the state dict values that depend on its place and shape alone."""
    for i, (key, tensor) in enumerate(network.state_dict().items()):
        numbers = scrambled(tensor.shape, phase=101 * i)
        if tensor.ndim >= 2:
            # Variance 2 / fan_in, so that the logits neither vanish nor explode.
            tensor.copy_(math.sqrt(6 / tensor[0].numel()) * numbers)
        elif key.endswith(("running_var", "weight")):
            tensor.copy_(1 + 0.5 * numbers)
        elif tensor.ndim == 1:
            tensor.copy_(0.1 * numbers)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_keys_and_shapes_of_torchvision_in_order(name):
    with torch.device("meta"):
        network = build(name)
    ours = [(key, tuple(tensor.shape)) for key, tensor in network.state_dict().items()]
    assert ours == list(listed_shapes(name))


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters_is_the_published_one(name):
    with torch.device("meta"):
        network = build(name)
    assert sum(p.numel() for p in network.parameters()) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_computes_what_torchvision_computes(name):
    network = build(name, num_classes=10).double().eval()
    fill(network)
    x_NCHW = scrambled((2, 3, 65, 65), phase=0)
    with torch.no_grad():
        logits_NK = network(x_NCHW)
    torch.testing.assert_close(
        logits_NK, torch.tensor(LOGITS[name], dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", ["resnet50", "resnet152", "wide_resnet50_2", "resnext50_32x4d"])
def test_bottlenecks_stride_in_the_3x3_convolution(name):
    with torch.device("meta"):
        network = build(name)
    for stage in (network.layer2, network.layer3, network.layer4):
        assert stage[0].conv1.stride == (1, 1)
        assert stage[0].conv2.stride == (2, 2)
        assert stage[0].conv2.kernel_size == (3, 3)
        assert stage[0].downsample[0].stride == (2, 2)
        assert stage[1].conv2.stride == (1, 1)
    assert network.layer1[0].conv2.stride == (1, 1)


def test_resnext_has_32_groups_only_in_its_3x3_convolutions():
    with torch.device("meta"):
        network = build("resnext50_32x4d")
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.groups == (32 if name.endswith("conv2") else 1), name


def test_layernorm_resnet_has_a_layernorm_for_each_batchnorm():
    with torch.device("meta"):
        batch, layer = build("resnet18"), build("resnet18_layernorm")
    for name, module in batch.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            twin = layer.get_submodule(name)
            assert isinstance(twin, LayerNorm2d)
            assert twin.weight.shape == module.weight.shape
    assert not any(isinstance(m, nn.BatchNorm2d) for m in layer.modules())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_zero_init_makes_each_block_start_as_its_shortcut(name, norm):
    network = build(name, num_classes=10, norm=norm, zero_init_last_gamma=True)
    for block in [*network.layer1, *network.layer2]:
        x = torch.randn(2, block.conv1.in_channels, 8, 8)
        torch.testing.assert_close(block(x), torch.relu(block.downsample(x)), rtol=0, atol=0)


def test_without_zero_init_blocks_do_not_start_as_their_shortcut():
    block = build("resnet18", num_classes=10).layer1[0]
    x = torch.randn(2, 64, 8, 8)
    assert not torch.equal(block(x), torch.relu(x))
