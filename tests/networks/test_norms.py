"""The norm layers and the initialisation that all networks share."""

import math

import pytest
import torch
from torch import nn

from resdeploy.errors import ResdeployError
from resdeploy.networks.norms import (
    LayerNorm2d,
    NormSpec,
    init_he,
    make_norm1d,
    make_norm2d,
    zero_last_scale,
)


def spec(kind, *, eps=1e-5, momentum=0.1):
    return NormSpec(kind=kind, eps=eps, momentum=momentum)


@pytest.mark.parametrize(
    ("make", "kind", "layer"),
    [
        (make_norm2d, "batch", nn.BatchNorm2d),
        (make_norm2d, "layer", LayerNorm2d),
        (make_norm2d, "none", nn.Identity),
        (make_norm1d, "batch", nn.BatchNorm1d),
        (make_norm1d, "layer", nn.LayerNorm),
        (make_norm1d, "none", nn.Identity),
    ],
)
def test_each_kind_makes_its_layer(make, kind, layer):
    assert type(make(spec(kind), 8)) is layer


@pytest.mark.parametrize("make", [make_norm1d, make_norm2d])
def test_eps_and_momentum_reach_the_layer(make):
    norm = make(spec("batch", eps=0.25, momentum=0.5), 8)
    assert (norm.eps, norm.momentum) == (0.25, 0.5)
    assert make(spec("layer", eps=0.25), 8).eps == 0.25


def test_layernorm2d_is_its_formula():
    norm = LayerNorm2d(5, eps=0.1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 4)
    mean = x.mean(1, keepdim=True)
    var = x.var(1, keepdim=True, correction=0)
    weight, bias = norm.weight.reshape(5, 1, 1), norm.bias.reshape(5, 1, 1)
    torch.testing.assert_close(norm(x), weight * (x - mean) / torch.sqrt(var + 0.1) + bias)


def test_layernorm2d_looks_at_one_position_at_a_time():
    norm = LayerNorm2d(5, eps=1e-5)
    x = torch.randn(2, 5, 3, 4)
    changed = x.clone()
    changed[1, :, 2, 3] += torch.randn(5)
    differs = (norm(x) != norm(changed)).any(dim=1)
    assert differs.nonzero().tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("eps", [0.0, -1e-5, math.nan, math.inf])
def test_refuses_an_eps_that_is_not_positive(eps):
    with pytest.raises(ResdeployError, match="norm_eps must be positive"):
        spec("batch", eps=eps)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan])
def test_refuses_a_momentum_outside_0_and_1(momentum):
    with pytest.raises(ResdeployError, match="norm_momentum must be between 0 and 1"):
        spec("batch", momentum=momentum)


def test_he_initialisation_has_variance_2_over_fan_out_and_no_bias():
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(8, 64, 3), nn.Linear(50, 400)
    init_he([conv, linear])
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.05)
    assert not conv.bias.any()
    assert not linear.bias.any()


@pytest.mark.parametrize("kind", ["batch", "layer", "none"])
def test_zeroing_the_last_scale_zeroes_the_branch(kind):
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), make_norm2d(spec(kind), 4)
    x = torch.randn(2, 3, 5, 5)
    assert norm(conv(x)).any()
    zero_last_scale(conv, norm)
    assert not norm(conv(x)).any()


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_zeroing_the_last_scale_leaves_the_convolution_to_learn(kind):
    conv, norm = nn.Conv2d(3, 4, 3), make_norm2d(spec(kind), 4)
    zero_last_scale(conv, norm)
    assert conv.weight.any()
