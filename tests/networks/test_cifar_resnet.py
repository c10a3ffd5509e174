"""The CIFAR ResNets and their plain twins."""

import numpy as np
import pytest
import torch
from torch import nn

from resdeploy.networks import build_network
from resdeploy.networks.cifar_resnet import BasicBlock, ZeroPadShortcut
from resdeploy.schema.recipes import ModelSpec

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def build(name, **options):
    return build_network(ModelSpec(arch=name, num_classes=10, options=options))


def count(network, kind):
    return sum(isinstance(module, kind) for module in network.modules())


def num_parameters(network):
    return sum(p.numel() for p in network.parameters())


def read_published_weights(folder):
    file = torch.load(folder / "resnet20-12fca82f.th", map_location="cpu", weights_only=True)
    return {key.removeprefix("module."): x for key, x in file["state_dict"].items()}


def test_published_weights_load_and_reach_their_accuracy(shared_data):
    network = build("cifar_resnet20").eval()
    network.load_state_dict(read_published_weights(shared_data), strict=True)
    with np.load(shared_data / "cifar10-sample.npz") as data:
        x_NCHW = torch.from_numpy(data["test_x"]) / 255
        y_N = torch.from_numpy(data["test_y"])
    x_NCHW = (x_NCHW - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)
    with torch.inference_mode():
        num_correct = int((network(x_NCHW).argmax(1) == y_N).sum())
    # 91.73 % on all 10,000; with 512 images one standard error is 1.2 %.
    assert num_correct / len(y_N) == pytest.approx(0.917, abs=0.02)
    assert len(y_N) == 512


def test_published_weights_need_the_zeros_on_both_sides(shared_data):
    network = build("cifar_resnet20").eval()
    network.load_state_dict(read_published_weights(shared_data))
    for block in (network.layer2[0], network.layer3[0]):
        block.shortcut.num_after += block.shortcut.num_before
        block.shortcut.num_before = 0
    with np.load(shared_data / "cifar10-sample.npz") as data:
        x_NCHW = torch.from_numpy(data["test_x"]) / 255
        y_N = torch.from_numpy(data["test_y"])
    x_NCHW = (x_NCHW - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)
    with torch.inference_mode():
        num_correct = int((network(x_NCHW).argmax(1) == y_N).sum())
    assert num_correct / len(y_N) < 0.85


# The paper's table 6 has 0.27M, 0.46M, 0.66M, 0.85M and 1.7M.
@pytest.mark.parametrize(
    ("depth", "expected"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
@pytest.mark.parametrize("family", ["cifar_resnet", "cifar_plain"])
def test_number_of_parameters_is_the_published_one(family, depth, expected):
    with torch.device("meta"):
        assert num_parameters(build(f"{family}{depth}")) == expected


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_depth_counts_the_weighted_layers_without_shortcuts(depth):
    with torch.device("meta"):
        network = build(f"cifar_plain{depth}")
    assert count(network, nn.Conv2d) + count(network, nn.Linear) == depth


def test_option_a_adds_no_parameters_to_the_plain_network():
    residual, plain = build("cifar_resnet20").state_dict(), build("cifar_plain20").state_dict()
    assert {k: x.shape for k, x in residual.items()} == {k: x.shape for k, x in plain.items()}


@pytest.mark.parametrize(
    ("option", "num_projections", "num_zero_pads", "num_identities"),
    [("A", 0, 2, 7), ("B", 2, 0, 7), ("C", 9, 0, 0)],
)
def test_each_shortcut_option_projects_where_the_paper_says(
    option, num_projections, num_zero_pads, num_identities
):
    network = build("cifar_resnet20", shortcut=option)
    shortcuts = [m.shortcut for m in network.modules() if isinstance(m, BasicBlock)]
    assert sum(isinstance(s, nn.Sequential) for s in shortcuts) == num_projections
    assert sum(isinstance(s, ZeroPadShortcut) for s in shortcuts) == num_zero_pads
    assert sum(isinstance(s, nn.Identity) for s in shortcuts) == num_identities
    assert count(network, nn.BatchNorm2d) == 19 + num_projections


def test_projections_have_the_names_of_the_published_networks():
    shapes = {
        k: tuple(x.shape) for k, x in build("cifar_resnet20", shortcut="B").state_dict().items()
    }
    assert shapes["layer2.0.shortcut.0.weight"] == (32, 16, 1, 1)
    assert shapes["layer2.0.shortcut.1.weight"] == (32,)
    assert "layer1.0.shortcut.0.weight" not in shapes


def test_zero_pad_shortcut_keeps_every_second_pixel_in_the_middle_channels():
    x = torch.randn(2, 4, 5, 6)
    y = ZeroPadShortcut(4, 8, stride=2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_zero_pad_shortcut_puts_an_odd_channel_last():
    y = ZeroPadShortcut(3, 6, stride=1)(torch.ones(1, 3, 1, 1))
    assert y.flatten().tolist() == [0, 1, 1, 1, 0, 0]


def test_a_plain_block_has_no_shortcut():
    block = build("cifar_plain20").layer1[0]
    nn.init.zeros_(block.conv2.weight)
    assert not block(torch.randn(2, 16, 4, 4)).any()


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_zero_init_makes_each_block_start_as_its_shortcut(shortcut, norm):
    network = build("cifar_resnet20", shortcut=shortcut, norm=norm, zero_init_last_gamma=True)
    for block in (m for m in network.modules() if isinstance(m, BasicBlock)):
        x = torch.randn(2, block.conv1.in_channels, 8, 8)
        torch.testing.assert_close(block(x), torch.relu(block.shortcut(x)), rtol=0, atol=0)


def test_without_zero_init_blocks_do_not_start_as_their_shortcut():
    x = torch.randn(2, 16, 8, 8)
    assert not torch.equal(build("cifar_resnet20").layer1[0](x), torch.relu(x))


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_plain20", "cifar_preact_resnet20"])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (32, 32)])
def test_takes_small_grey_images_of_any_size(name, size):
    network = build(name, in_channels=1, width=8)
    assert network(torch.randn(2, 1, *size)).shape == (2, 10)
    assert network.linear.in_features == 32
