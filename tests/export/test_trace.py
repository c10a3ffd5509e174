"""A traced program is functional: what a module changes in place is seen, or refused."""

import contextlib

import fold_judge as judge
import fold_suite as suite
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.trace import trace

IMAGES = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Named parts, and a forward pass over them; every BatchNorm far from the identity."""

    def __init__(self, run, **parts) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)
        with torch.no_grad():
            suite.lively(self)
        self.eval()

    def forward(self, *inputs):
        return self.run(self, *inputs)


def conv_bn(run, **more) -> Net:
    return Net(run, **({"conv": nn.Conv2d(4, 4, 1), "bn": nn.BatchNorm2d(4)} | more))


def chain(**parts) -> Net:
    def run(net, x):
        for part in net.children():
            x = part(x)
        return x

    return Net(run, **parts)


def fold_and_compare(module):
    model, report = judge.fold(module, (IMAGES,))
    judge.assert_same_function(model, module, (IMAGES,))
    return report


def reasons(report) -> dict[str, str]:
    return {refusal.site: refusal.reason for refusal in report.refused}


def test_an_in_place_change_through_a_view_is_seen():
    """conv -> view -> relu_ -> BN: the BatchNorm reads the rectified value, by another name."""

    def run(net, x):
        y = net.conv(x)
        y.view(-1).relu_()
        return net.bn(y)

    assert "not from a convolution" in reasons(fold_and_compare(conv_bn(run)))["bn"]


def test_refuses_an_in_place_change_that_torch_loses():
    """In eval mode dropout returns its own input; torch's functionalisation takes it for a copy."""

    def run(net, x):
        y = net.conv(x)
        net.drop(y).add_(1)
        return net.bn(y)

    with pytest.raises(UnsupportedModelError, match="changes a value that is read elsewhere"):
        trace(conv_bn(run, drop=nn.Dropout()), (IMAGES,))


def test_an_in_place_activation_after_dropout_is_harmless():
    module = chain(
        conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6), drop=nn.Dropout(), relu=nn.ReLU(inplace=True)
    )
    assert fold_and_compare(module).complete


def test_in_place_activations_do_not_hide_a_fold():
    module = chain(
        conv=nn.Conv2d(4, 6, 1),
        bn=nn.BatchNorm2d(6),
        relu=nn.ReLU(inplace=True),
        c=nn.Conv2d(6, 2, 1),
    )
    assert fold_and_compare(module).complete


def test_an_in_place_change_of_a_value_read_again_is_seen():
    def run(net, x):
        y = net.conv(x)
        view = y.view(-1, 4, 81)
        y.relu_()
        return net.rows(view)

    module = conv_bn(run, rows=nn.BatchNorm1d(4))
    assert "not from a convolution" in reasons(fold_and_compare(module))["rows"]


@pytest.mark.parametrize(
    "alias",
    [
        lambda y: F.dropout(y, training=False),
        lambda y: F.dropout2d(y, training=False),
        lambda y: F.alpha_dropout(y, training=False),
        lambda y: y.type_as(y),
        lambda y: torch.einsum("nchw->nchw", y),
    ],
    ids=["dropout", "feature_dropout", "alpha_dropout", "type_as", "einsum"],
)
def test_a_change_through_what_may_be_its_own_input_is_never_lost(alias):
    def run(net, x):
        y = net.conv(x)
        alias(y).add_(1)
        return net.bn(y)

    with contextlib.suppress(UnsupportedModelError):  # not folding at all is right as well
        fold_and_compare(conv_bn(run))


def test_a_forward_of_any_number_of_inputs_is_traced():
    module = conv_bn(lambda net, *images: net.bn(net.conv(sum(images))))
    assert judge.fold(module, (IMAGES, IMAGES))[1].complete


def test_what_cannot_be_traced_is_refused_with_the_line(capfd):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModelError, match="cannot trace Branching") as caught:
        trace(Branching(), (IMAGES,))
    assert "test_trace.py:" in caught.value.where
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_module_that_fails_by_itself_is_said_to():
    def failing(net, x):
        raise KeyError("no such head")

    with pytest.raises(UnsupportedModelError, match="KeyError: 'no such head'") as caught:
        trace(conv_bn(failing), (IMAGES,))
    assert "check --input" in caught.value.fix


def test_a_baked_batch_size_is_refused():
    class Baked(nn.Module):
        def forward(self, x):
            return x.reshape(2, -1)

    with pytest.raises(UnsupportedModelError) as caught:
        trace(Baked(), (IMAGES,))
    assert "--batch" in caught.value.fix
    assert trace(Baked(), (IMAGES,), dynamic_batch=False)


def test_a_computed_weight_is_rounded_once():
    """W = k / 3 * 7 has three roundings in float32, and half an ulp has room for one."""
    module = conv_bn(lambda net, x: net.bn(F.conv2d(x, net.conv.weight / 3 * 7)))
    model, report = judge.fold(module, (IMAGES,))
    assert report.complete
    (got,) = (value for value in judge.weights(model).values() if value.ndim == 4)
    scale = module.bn.weight.double() / (module.bn.running_var.double() + module.bn.eps).sqrt()
    exact = module.conv.weight.double() / 3 * 7 * scale.reshape(-1, 1, 1, 1)
    ulp = torch.finfo(torch.float32).eps * 2.0 ** torch.floor(torch.log2(exact.abs()))
    assert ((got - exact).abs() <= 0.5001 * ulp).all()
