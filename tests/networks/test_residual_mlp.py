"""The residual networks of linear layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resdeploy.errors import ResdeployError
from resdeploy.networks import build_network
from resdeploy.networks.residual_mlp import ZeroPad
from resdeploy.schema.recipes import ModelSpec


def build(**options):
    return build_network(ModelSpec(arch="residual_mlp", num_classes=10, options=options))


def names_of(network, kind):
    return [name for name, module in network.named_modules() if isinstance(module, kind)]


@pytest.mark.parametrize("block", ["post", "pre"])
def test_has_one_norm_fewer_than_hidden_layers(block):
    network = build(block=block)
    assert names_of(network, nn.Linear) == [f"linear{i}" for i in range(1, 8)]
    assert names_of(network, nn.BatchNorm1d) == [f"norm{i}" for i in range(2, 7)]


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_post_blocks_normalise_what_their_linear_layer_gives(norm):
    net = build(block="post", norm=norm, hidden_layers=3)
    x = torch.randn(5, 40)
    h = net.linear1(x)
    h = h + F.relu(net.norm2(net.linear2(h)))
    h = h + F.relu(net.norm3(net.linear3(h)))
    torch.testing.assert_close(net(x), net.linear4(h))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_pre_blocks_normalise_the_stream_that_they_read(norm):
    net = build(block="pre", norm=norm, hidden_layers=3)
    x = torch.randn(5, 40)
    h = net.linear1(x)
    h = h + net.linear2(F.relu(net.norm2(h)))
    h = h + net.linear3(F.relu(net.norm3(h)))
    torch.testing.assert_close(net(x), net.linear4(h))


@pytest.mark.parametrize(
    ("block", "norm_widths"),
    [("post", [64, 128, 128, 256, 256]), ("pre", [64, 64, 128, 128, 256])],
)
@pytest.mark.parametrize("widen", ["projection", "pad"])
def test_widths_give_each_hidden_layer_its_own(block, norm_widths, widen):
    net = build(widths="64,64,128,128,256,256", block=block, widen=widen)
    linears = [net.get_submodule(f"linear{i}") for i in range(1, 8)]
    assert [layer.in_features for layer in linears] == [40, 64, 64, 128, 128, 256, 256]
    assert [layer.out_features for layer in linears] == [64, 64, 128, 128, 256, 256, 10]
    norms = [net.get_submodule(f"norm{i}") for i in range(2, 7)]
    assert [norm.num_features for norm in norms] == norm_widths
    assert net(torch.randn(3, 40)).shape == (3, 10)


def test_shortcuts_are_projected_without_bias_only_where_the_width_changes():
    net = build(widths="64,64,128,32")
    assert type(net.shortcut2) is nn.Identity
    assert (net.shortcut3.in_features, net.shortcut3.out_features) == (64, 128)
    assert (net.shortcut4.in_features, net.shortcut4.out_features) == (128, 32)
    assert net.shortcut3.bias is None


def test_padding_appends_zeros_and_learns_nothing():
    pad = build(widths="4,6", widen="pad").shortcut2
    assert type(pad) is ZeroPad
    assert pad(torch.tensor([[1.0, 2, 3, 4]])).tolist() == [[1, 2, 3, 4, 0, 0]]


def test_padding_refuses_to_narrow():
    with pytest.raises(ResdeployError, match="narrows from 128 to 64") as error:
        build(widths="64,128,64", widen="pad")
    assert 'widen="projection"' in error.value.fix


@pytest.mark.parametrize("widths", ["64,,64", "64,x", "64,-1", "0", "64;64", "64.0", ","])
def test_refuses_widths_that_are_not_positive_numbers(widths):
    with pytest.raises(ResdeployError, match="widths must be positive whole numbers"):
        build(widths=widths)


def test_without_a_norm_the_post_form_keeps_its_layers():
    net = build(norm="none")
    assert names_of(net, (nn.BatchNorm1d, nn.LayerNorm)) == []
    assert set(net.state_dict()) == {
        f"linear{i}.{x}" for i in range(1, 8) for x in ("weight", "bias")
    }


def test_the_pre_form_has_no_folded_form():
    with pytest.raises(ResdeployError, match='block="pre" has no form with norm="none"'):
        build(block="pre", norm="none")


def test_hidden_layers_start_with_he_initialisation():
    torch.manual_seed(0)
    net = build()
    for i in range(1, 7):
        layer = net.get_submodule(f"linear{i}")
        assert layer.weight.var().item() == pytest.approx(2 / 100, rel=0.15)
        assert not layer.bias.any()


def test_takes_vectors_of_another_length():
    assert build(in_features=7, hidden_layers=1)(torch.randn(3, 7)).shape == (3, 10)
