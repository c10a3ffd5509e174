"""The pre-activation ResNets."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resdeploy.errors import ResdeployError
from resdeploy.networks import build_network
from resdeploy.networks.cifar_resnet import ZeroPadShortcut
from resdeploy.networks.preact_resnet import PreactBlock
from resdeploy.schema.recipes import ModelSpec


def build(depth=20, **options):
    spec = ModelSpec(arch=f"cifar_preact_resnet{depth}", num_classes=10, options=options)
    return build_network(spec)


def test_a_block_adds_to_the_stream_and_nothing_else():
    block = build().layer1[1]
    x = torch.randn(2, 16, 8, 8)
    y = F.relu(block.bn1(x))
    y = block.conv2(F.relu(block.bn2(block.conv1(y))))
    # Bit for bit, and negative values come through: there is no ReLU after the addition.
    assert torch.equal(block(x), x + y)
    assert (block(x) < 0).any()


def test_the_first_block_reads_the_stem_only_through_its_norm():
    """Otherwise the norm would not be the stem's only reader, and could not be folded."""
    block = build().layer1[0]
    x = torch.randn(2, 16, 8, 8)
    a = F.relu(block.bn1(x))
    y = block.conv2(F.relu(block.bn2(block.conv1(a))))
    assert torch.equal(block(x), a + y)


def test_option_a_takes_the_stream_itself_where_the_shape_changes():
    block = build(shortcut="A").layer2[0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), ZeroPadShortcut(16, 32, stride=2)(x))


def test_option_b_projects_the_activated_stream_where_the_shape_changes():
    block = build(shortcut="B").layer2[0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), block.shortcut(F.relu(block.bn1(x))))
    assert block.shortcut.weight.shape == (32, 16, 1, 1)


def test_the_last_addition_is_normalised_and_activated_before_pooling():
    network = build().eval()
    seen = {}
    network.layer3.register_forward_hook(lambda _m, _i, output: seen.update(stream=output))
    logits = network(torch.randn(2, 3, 32, 32))
    pooled = F.relu(network.bn(seen["stream"])).mean((2, 3))
    torch.testing.assert_close(logits, network.linear(pooled))


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_each_block_has_two_norms_and_the_network_one_more(depth):
    with torch.device("meta"):
        modules = list(build(depth).modules())
    num_blocks = sum(isinstance(m, PreactBlock) for m in modules)
    assert 6 * (num_blocks // 3) + 2 == depth
    assert sum(isinstance(m, nn.BatchNorm2d) for m in modules) == 2 * num_blocks + 1


def test_has_no_folded_form():
    with pytest.raises(
        ResdeployError, match='cifar_preact_resnet20 has no form with norm="none"'
    ) as e:
        build(norm="none")
    assert "norm=" in e.value.fix


def test_takes_layernorm_in_place_of_batchnorm():
    network = build(norm="layer")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 10)
