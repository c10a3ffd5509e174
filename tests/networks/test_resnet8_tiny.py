"""ResNet-8 of MLPerf Tiny."""

import pytest
import torch
from torch import nn

from resdeploy.networks import build_network
from resdeploy.schema.recipes import ModelSpec


def build(**options):
    return build_network(ModelSpec(arch="resnet8_tiny", num_classes=10, options=options))


def test_number_of_parameters_is_that_of_the_keras_reference():
    network = build()
    num_trained = sum(p.numel() for p in network.parameters())
    num_statistics = sum(b.numel() for n, b in network.named_buffers() if "running" in n)
    # Keras counts a norm's running statistics as parameters that are not trained.
    assert (num_trained, num_trained + num_statistics) == (78_186, 78_666)


def test_every_convolution_has_a_bias_as_in_the_reference():
    convs = [m for m in build().modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 9
    assert all(conv.bias is not None for conv in convs)


def test_shortcuts_of_the_wider_stacks_are_1x1_convolutions_without_a_norm():
    network = build()
    assert type(network.stack1.shortcut) is nn.Identity
    for stack in (network.stack2, network.stack3):
        assert type(stack.shortcut) is nn.Conv2d
        assert stack.shortcut.kernel_size == (1, 1)
        assert stack.shortcut.stride == (2, 2)


def test_the_relu_comes_after_the_addition():
    block = build().stack2.eval()
    x = torch.randn(2, 16, 8, 8)
    y = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(block.shortcut(x) + y))


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_zero_init_makes_each_block_start_as_its_shortcut(norm):
    network = build(norm=norm, zero_init_last_gamma=True)
    for block in (network.stack1, network.stack2, network.stack3):
        x = torch.randn(2, block.conv1.in_channels, 8, 8)
        torch.testing.assert_close(block(x), torch.relu(block.shortcut(x)), rtol=0, atol=0)


def test_without_zero_init_blocks_do_not_start_as_their_shortcut():
    x = torch.randn(2, 16, 8, 8)
    assert not torch.equal(build().stack1(x), torch.relu(x))
