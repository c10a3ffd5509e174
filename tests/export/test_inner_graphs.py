"""BatchNorms inside the graphs of a traced program are folded like those around, or named."""

import fold_judge as judge
import pytest
import torch
from fold_suite import Net, lively
from torch import nn
from torch.nn import functional as F

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.trace import trace

IMAGES = (2, 3, 6, 6)


def net(run, **parts) -> Net:
    torch.manual_seed(0)
    made = Net(
        run,
        c=nn.Conv2d(3, 4, 3, bias=False),
        bn=nn.BatchNorm2d(4),
        d=nn.Conv2d(3, 4, 3),
        act=nn.ReLU(inplace=True),
        **parts,
    )
    with torch.no_grad():
        lively(made)
    return made.eval()


def images() -> torch.Tensor:
    return torch.randn(*IMAGES, generator=torch.Generator().manual_seed(1))


def choose(predicate, true, false, *values):
    """torch.cond, which compiles its branches where it is not traced: for each size anew."""
    if torch.compiler.is_exporting():
        return torch.cond(predicate, true, false, values)
    return (true if predicate else false)(*values)


def cond(true, false):
    return lambda net, x: choose(x.mean() > 0, lambda x: true(net, x), lambda x: false(net, x), x)


def region(make, run=lambda net, x: net.bn(net.c(x)), after=F.relu):
    def forward(net, x):
        with make():
            y = run(net, x)
        return after(y)

    return forward


def no_autocast():
    return torch.autocast("cpu", enabled=False)


def native(operator, *settings, result=0):
    return lambda net, x: operator(
        net.c(x), net.bn.weight, net.bn.bias, net.bn.running_mean, net.bn.running_var, *settings
    )[result]


ATEN = torch.ops.aten
FOLDED = {
    "no autocast": (region(no_autocast), 1),
    "no autocast, on the accelerator": (region(lambda: torch.autocast("cuda", enabled=False)), 1),
    "gradients on": (region(torch.enable_grad), 1),
    "gradients off": (region(torch.no_grad), 1),
    "the result of a region is the output": (
        region(torch.enable_grad, after=lambda y: y),
        1,
    ),
    "a region in a region": (region(torch.enable_grad, region(no_autocast)), 1),
    "a norm in a region, its layer before it": (
        lambda net, x: region(torch.enable_grad, lambda net, y: net.bn(y))(net, net.c(x)),
        1,
    ),
    "an in-place operation in a region": (
        region(torch.enable_grad, lambda net, x: net.act(net.bn(net.c(x)))),
        1,
    ),
    "both branches": (cond(lambda n, x: n.bn(n.c(x)), lambda n, x: n.bn(n.d(x)) * 2), 2),
    "one branch": (cond(lambda n, x: n.bn(n.d(x)), lambda n, x: n.d(x)), 1),
    "a branch in a region": (
        region(torch.enable_grad, cond(lambda n, x: n.bn(n.c(x)), lambda n, x: n.d(x))),
        1,
    ),
    "a region in a branch": (cond(region(no_autocast), lambda n, x: n.d(x).relu()), 1),
    "a branch in a branch": (
        cond(cond(lambda n, x: n.bn(n.c(x)), lambda n, x: n.d(x)), lambda n, x: n.d(x) * 3),
        1,
    ),
    "an in-place operation in a branch": (
        cond(lambda n, x: n.act(n.bn(n.d(x))), lambda n, x: n.d(x)),
        1,
    ),
    "native_batch_norm": (native(torch.native_batch_norm, False, 0.1, 1e-5), 1),
    "_native_batch_norm_legit": (native(ATEN._native_batch_norm_legit, False, 0.1, 1e-3), 1),
    "without training": (native(ATEN._native_batch_norm_legit_no_training, 0.1, 1e-2), 1),
    "without update": (native(ATEN._batch_norm_no_update, 0.1, 1e-5), 1),
    "native_batch_norm in a branch": (
        cond(native(torch.native_batch_norm, False, 0.1, 1e-5), lambda n, x: n.d(x)),
        1,
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_norm_inside_is_folded(name):
    run, count = FOLDED[name]
    module = net(run)
    model, report = judge.fold(module, (images(),))
    assert len(report.folded) == count, report
    assert not report.refused
    for sign in (1, -1):  # each branch
        judge.assert_same_function(model, module, (sign * images().abs(),))


NAMED = {
    "a layer around, the norm in a branch": (
        lambda n, x: choose(x.mean() > 0, lambda y: n.bn(y), lambda y: y.clone(), n.d(x)),
        "",
    ),
    "a norm around, its layers in the branches": (
        lambda n, x: n.bn(cond(lambda n, x: n.d(x), lambda n, x: n.c(x))(n, x)),
        "If",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_norm_across_the_border_is_named(name):
    run, reason = NAMED[name]
    module = net(run)
    model, report = judge.fold(module, (images(),))
    assert not report.folded
    assert reason in report.refused[0].reason
    judge.assert_same_function(model, module, (images(),))


def under_autocast(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.bn(net.c(x)).float()


def scanned(net, x):
    return torch._higher_order_ops.while_loop(
        lambda i, y: i < 2, lambda i, y: (i + 1, y * 2), (torch.zeros((), dtype=int), x)
    )[1]


REFUSED = {
    "autocast": (under_autocast, "Autocast chooses the types"),
    "a loop": (scanned, "by way of `while_loop`"),
    "a norm in training in a branch": (
        cond(native(torch.native_batch_norm, True, 0.1, 1e-5), lambda n, x: n.d(x)),
        "training",
    ),
    "dropout in a branch": (
        cond(lambda n, x: F.dropout(n.d(x)), lambda n, x: n.d(x)),
        "A dropout is left on",
    ),
    "dropout in a region": (region(torch.enable_grad, lambda n, x: F.dropout(n.d(x))), "dropout"),
    "the statistics of the batch": (native(torch.native_batch_norm, True, 0.1, 1e-5), "training"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_onnx_would_drop_is_refused_inside_too(name):
    run, said = REFUSED[name]
    with pytest.raises(UnsupportedModelError) as caught:
        trace(net(run), (images(),))
    assert said in caught.value.what
    assert caught.value.where
