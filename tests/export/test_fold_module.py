"""A folded module is of the same class, and everything that works with one works with it."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.fold_module import fold_batchnorm

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """Named parts, and a forward pass over them; every norm far from the identity."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for value in (*self.parameters(), *self.buffers()):
                if value.is_floating_point():
                    value.add_(torch.rand(value.shape, generator=generator) / 2)
        self.eval()

    def forward(self, x):
        return self.run(self, x)


def conv_bn(run, **more):
    return Net(run, **({"conv": nn.Conv2d(3, 3, 3, bias=False), "bn": nn.BatchNorm2d(3)} | more))


def plain(net, x):
    return net.bn(net.conv(x)).relu()


def assert_same(folded, module, x):
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
        torch.testing.assert_close(folded(x).double(), exact, rtol=1e-5, atol=1e-5)


def test_it_is_of_the_same_class_and_computes_the_same():
    module = conv_bn(plain)
    before = copy.deepcopy(module.state_dict())
    folded = fold_batchnorm(module, X)
    assert type(folded.module) is Net
    assert isinstance(folded.module.bn, nn.Identity)
    assert set(folded.module.state_dict()) == {"conv.weight", "conv.bias"}
    assert [(s.site, s.producer) for s in folded.report.folded] == [("bn", "conv")]
    assert folded.report.comparison.passed
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert_same(folded.module, module, X)


def test_what_works_with_a_module_works_with_it():
    module = nn.Sequential(conv_bn(plain), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    folded = fold_batchnorm(module.eval(), X[:1]).module
    assert isinstance(folded[0].conv, nn.Conv2d)
    assert_same(folded.eval(), module, torch.randn(1, 3, 20, 17))
    assert folded.to(torch.float64)(X.double()).dtype is torch.float64
    torch.save(folded.state_dict(), io.BytesIO())


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(2304, 2)),
    ],
    ids=["images", "features", "28 x 28"],
)
def test_it_guesses_an_input(module):
    assert fold_batchnorm(module.eval()).report.complete


def test_no_guess_that_fits_is_an_error_with_a_fix():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 17 * 19, 2))
    with pytest.raises(UnsupportedModelError, match="cannot be guessed") as caught:
        fold_batchnorm(module.eval())
    assert "example" in caught.value.fix


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_keeps_its_layout(bias):
    module = Net(
        lambda net, x: net.bn(net.fc(x.flatten(1))),
        fc=nn.Linear(432, 5, bias=bias),
        bn=nn.BatchNorm1d(5),
    )
    folded = fold_batchnorm(module, X)
    assert folded.report.complete
    assert_same(folded.module, module, X)


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6)], ids=["rows", "tokens"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layernorm_keeps_ones_and_zeros(shape, bias):
    module = Net(
        lambda net, x: net.fc(net.norm(x)), norm=nn.LayerNorm(6), fc=nn.Linear(6, 3, bias=bias)
    )
    x = torch.randn(shape)
    assert fold_batchnorm(module, x).report.folded == ()
    folded = fold_batchnorm(module, x, layernorm=True)
    assert [site.norm for site in folded.report.folded] == ["layer"]
    assert (folded.module.norm.weight == 1).all()
    assert (folded.module.norm.bias == 0).all()
    assert_same(folded.module, module, x)


def test_a_norm_that_stays_is_as_it_was():
    module = conv_bn(lambda net, x: net.bn(net.conv(x).relu()))
    folded = fold_batchnorm(module, X)
    assert not folded.report.complete
    assert set(folded.module.state_dict()) == set(module.state_dict())


TWICE = {"again": nn.BatchNorm2d(3)}


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            conv_bn(lambda net, x: net.bn(net.conv(x)) * net.again(net.conv(-x)), **TWICE),
            "called 2 times",
        ),
        (
            conv_bn(lambda net, x: net.bn(net.conv(net.bn(net.conv(x)).relu()))),
            "called 2 times",
        ),
        (
            conv_bn(lambda net, x: net.bn(net.conv(x)) * net.bn(x[:, :, 1:-1, 1:-1].relu())),
            "one call",
        ),
        (
            conv_bn(
                lambda net, x: F.batch_norm(
                    net.conv(x), net.bn.running_mean, net.bn.running_var, net.bn.weight
                )
            ),
            "it fails",
        ),
        (conv_bn(lambda net, x: net.bn(F.conv2d(x, net.conv.weight))), "by itself"),
        (
            conv_bn(plain, conv=parametrizations.weight_norm(nn.Conv2d(3, 3, 3))),
            "computed from others",
        ),
        (conv_bn(lambda net, x: net.bn(net.conv(x) * 2)), "computes something else"),
    ],
    ids=[
        "layer twice",
        "both twice",
        "norm twice",
        "function",
        "weight",
        "weight_norm",
        "taken in",
    ],
)
def test_refuses_what_the_structure_cannot_hold(module, reason):
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        fold_batchnorm(module, X)
    assert "export" in caught.value.fix


def test_refuses_tied_weights():
    module = conv_bn(lambda net, x: net.bn(net.conv(x)) + net.tied(x), tied=nn.Conv2d(3, 3, 3))
    module.tied.weight = module.conv.weight
    with pytest.raises(UnsupportedModelError, match="shares its weight"):
        fold_batchnorm(module, X)
