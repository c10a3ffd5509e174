"""The affine part of a LayerNorm goes into the layers after it; its statistics stay."""

import copy

import pytest
import torch
from torch import nn

from resdeploy.host.build import fit_for_folded
from resdeploy.host.fold import fold_batchnorm


def disturb(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)
    return module.eval()


def fold(module: nn.Module, *shape: int):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    folded = fold_batchnorm(module, (x,), layernorm=True)
    with torch.no_grad():
        own = module(x).double()
        exact = copy.deepcopy(module).double()(x.double())
        got = folded.module(x).double()
    noise = (own - exact).norm() + 2.0**-24 * exact.norm()
    assert (got - exact).norm() <= 4 * noise
    for site in folded.report.folded:
        assert site.max_ulp <= 0.5
    return folded


@pytest.mark.parametrize("bias", [True, False])
def test_it_goes_into_the_linear_layer_after_it(bias):
    module = disturb(nn.Sequential(nn.LayerNorm(6, bias=bias), nn.Linear(6, 3, bias=bias)))
    folded = fold(module, 4, 6)
    (site,) = folded.report.folded
    assert (site.site, site.producer, site.norm) == ("0", "1", "layer")
    state = folded.state_dict()
    assert (state["0.weight"] == 1).all()
    assert not bias or (state["0.bias"] == 0).all()


def test_tokens_keep_their_axis():
    folded = fold(disturb(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))), 4, 5, 6)
    assert len(folded.report.folded) == 1


def test_several_axes_go_through_a_flatten():
    module = disturb(nn.Sequential(nn.LayerNorm([2, 3]), nn.Flatten(), nn.Linear(6, 3)))
    assert len(fold(module, 4, 2, 3).report.folded) == 1


def test_a_batchnorm_between_is_composed_with_it():
    module = nn.Sequential(nn.LayerNorm(6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    folded = fold(disturb(module), 4, 6)
    assert [site.norm for site in folded.report.folded] == ["batch", "layer"]


def test_it_is_left_alone_unless_asked_for():
    module = disturb(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)))
    report = fold_batchnorm(module, (torch.randn(4, 6),)).report
    assert report.folded == report.refused == ()


def test_one_without_an_affine_part_is_no_site():
    for norm in (nn.LayerNorm(6), nn.LayerNorm(6, elementwise_affine=False)):
        report = fold(nn.Sequential(norm, nn.Linear(6, 3)).eval(), 4, 6).report
        assert report.folded == report.refused == ()


def test_one_whose_scale_is_one_has_a_shift_to_fold():
    module = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))
    nn.init.constant_(module[0].bias, 0.5)
    assert len(fold(module.eval(), 4, 6).report.folded) == 1


def test_it_does_not_go_up():
    """Into the layer before it, its scale would be undone, and its shift taken for a mean."""
    report = fold(disturb(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))), 4, 6).report
    (refusal,) = report.refused
    assert refusal.reason.startswith("its statistics are those of each sample")


def test_one_whose_scale_is_computed_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(nn.functional.layer_norm(x, (6,), x[0].exp()))

    (refusal,) = fold(disturb(Net()), 4, 6).report.refused
    assert refusal.reason == "its parameters are computed at run time"


def test_folding_twice_changes_nothing():
    once = fold(disturb(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))), 4, 6)
    again = fold_batchnorm(once.module, (torch.randn(4, 6),), layernorm=True)
    assert again.report.folded == again.report.refused == ()


def test_shared_parameters_are_parted():
    norm = nn.LayerNorm(6)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = norm, nn.Linear(6, 6)

        def forward(self, x):
            return self.norm(self.fc(self.norm(x)).relu())

    report = fold(disturb(Net()), 4, 6).report
    assert len(report.folded) == len(report.refused) == 1


def test_refuses_what_no_layer_reads():
    folded = fold(disturb(nn.Sequential(nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))), 4, 6)
    (refusal,) = folded.report.refused
    assert refusal.reason == (
        "its statistics are those of each sample; no layer alone reads its output"
    )
    assert not folded.report.complete


def test_folded_weights_load_into_the_same_network_with_the_biases_it_gained():
    module = disturb(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3, bias=False)))
    folded = fold(module, 4, 6)
    fresh = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3, bias=False))
    fit_for_folded(fresh, folded.report.folded)
    fresh.load_state_dict(folded.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(fresh(x), folded.module(x))
