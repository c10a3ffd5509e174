"""Weights and constants of odd types, layouts and shapes: folded exactly, or refused by name."""

import fold_judge as judge
import pytest
import torch
from fold_suite import Net
from torch import nn
from torch.nn import functional as F

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.fold_module import fold_batchnorm

IMAGES, ROWS = (2, 3, 6, 6), (3, 5)


def randn(*shape: int, seed: int = 3, **more) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **more)


def statistics(channels: int) -> dict[str, torch.Tensor]:
    variance = randn(channels, seed=4).abs() + 0.5
    return {"mean": randn(channels), "var": variance, "gamma": randn(channels, seed=5)}


def build(run, parts) -> Net:
    torch.manual_seed(0)
    net = Net(run)
    for name, part in (parts() if callable(parts) else parts).items():
        if isinstance(part, nn.Module):
            net.add_module(name, part)
        else:
            net.register_buffer(name, part)
    return net.eval()


def norm(net, x):
    return F.batch_norm(x, net.mean, net.var, net.gamma)


def frozen(net, x):
    return net.conv(x) * net.s + net.t


def first(run):
    """Of the first sample alone, as an unbatched convolution takes it; a row for each sample."""
    return lambda net, x: run(net, x[0])[None] + 0 * x.flatten(1).sum(1).reshape(-1, 1, 1, 1)


def conv(channels: int = 4):
    return {"conv": nn.Conv2d(3, channels, 3)}


def constants(s, t, channels: int = 4):
    return frozen, lambda: {**conv(channels), "s": s, "t": t}, IMAGES


COLUMN = (4, 1, 1)
FOLDED = {
    "float16 constants": constants(randn(*COLUMN).half(), randn(*COLUMN).half()),
    "integer constants": constants(torch.tensor([1, 2, -3, 4]).view(COLUMN), torch.tensor(7)),
    "logical constants": constants(torch.tensor([True, False, True, True]).view(COLUMN), randn(1)),
    "0-d float64 constants": constants(randn().double(), randn().double()),
    "a constant that is expanded": constants(randn(1, 1, 1).expand(4, 1, 1), randn(*COLUMN)),
    "a weight that is expanded": (
        lambda n, x: norm(n, F.linear(x, n.w)),
        {"w": randn(4, 1).expand(4, 5), **statistics(4)},
        ROWS,
    ),
    "a weight that is transposed": (
        lambda n, x: norm(n, F.linear(x, n.w)),
        {"w": randn(5, 4).T, **statistics(4)},
        ROWS,
    ),
    "a negated view": (
        lambda n, x: norm(n, F.linear(x, n.w)),
        {"w": torch._neg_view(randn(4, 5)), **statistics(4)},
        ROWS,
    ),
    "the imaginary part of a conjugate": (
        lambda n, x: norm(n, F.linear(x, n.w)),
        {"w": torch.complex(randn(4, 5), randn(4, 5, seed=9)).conj().imag, **statistics(4)},
        ROWS,
    ),
    "a negated gamma": (
        lambda n, x: norm(n, n.conv(x)),
        lambda: {**conv(), **statistics(4), "gamma": torch._neg_view(randn(4))},
        IMAGES,
    ),
    "an empty part": (
        lambda n, x: norm(n, torch.cat([n.conv(x), n.e], 1)),
        lambda: {**conv(), **statistics(4), "e": torch.empty(0)},
        IMAGES,
    ),
    "a vector as a weight": (
        lambda n, x: F.linear(norm(n, F.relu(x)), n.w)[:, None],
        {"w": randn(1, 5), **statistics(5)},
        ROWS,
    ),
    "a value changed in place": (
        lambda n, x: (lambda y: (y.add_(1), norm(n, y))[1])(n.conv(x)),
        lambda: {**conv(), **statistics(4)},
        IMAGES,
    ),
}
STAYS = {
    "float64 constants": constants(randn(*COLUMN).double(), randn(*COLUMN).double()),
    "a float64 shift": constants(randn(*COLUMN), randn(*COLUMN).double()),
    "constants that add an axis": constants(randn(2, 1, *COLUMN), randn(2, 1, *COLUMN)),
    "constants that add channels": constants(randn(*COLUMN), randn(*COLUMN), 1),
    "a constant for each pixel": constants(randn(4, 4, 4), randn(4, 4, 4)),
    "an unbatched convolution": (
        first(lambda n, x: norm(n, n.conv(x))),
        lambda: {**conv(), **statistics(4)},
        (2, 3, 6, 7),
    ),
    "an unbatched volume": (
        lambda n, x: norm(n, n.c3(x[0]))[None] + 0 * x.flatten(1).sum(1).view(-1, 1, 1, 1, 1),
        lambda: {"c3": nn.Conv3d(3, 4, 3), **statistics(4)},
        (2, 3, 6, 5, 5),
    ),
    "an unbatched sequence": (
        lambda n, x: norm(n, n.c1(x[0]))[None] + 0 * x.flatten(1).sum(1).view(-1, 1, 1),
        lambda: {"c1": nn.Conv1d(3, 4, 3), **statistics(4)},
        (2, 3, 6),
    ),
    "a norm before an unbatched convolution": (
        first(lambda n, x: n.conv(norm(n, F.relu(x)))),
        lambda: {**conv(), **statistics(3)},
        (2, 3, 3, 7),
    ),
    "a layer of no inputs": (
        lambda n, x: norm(n, n.fc(x[:, :0])),
        lambda: {"fc": nn.Linear(0, 4), **statistics(4)},
        ROWS,
    ),
    "a value part of which is changed in place": (
        lambda n, x: (lambda y: (y[:, 0].mul_(2), norm(n, y))[1])(n.conv(x)),
        lambda: {**conv(), **statistics(4)},
        IMAGES,
    ),
    "the same memory read in another order": (
        lambda n, x: norm(n, n.conv(x).as_strided((2, 4, 4, 4), (64, 1, 16, 4))),
        lambda: {**conv(), **statistics(4)},
        IMAGES,
    ),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("name", [*FOLDED, *STAYS])
def test_the_graph_computes_what_the_module_does(name):
    run, parts, shape = {**FOLDED, **STAYS}[name]
    net, x = build(run, parts), randn(*shape, seed=1)
    model, report = judge.fold(net, (x,))
    assert len(report.folded) == (name in FOLDED), report
    judge.assert_same_function(model, net, (x,))


MADE = {
    "cut to half precision": lambda w: w.half().float(),
    "rounded to tenths": lambda w: (w * 10).round() / 10,
    "cut to integers": lambda w: (w * 3).int() * 0.3,
    "of a sign": lambda w: w.sign() * 0.7,
    "where they are large": lambda w: torch.where(w.abs() > 0.5, w * 3, w * 0.1),
    "made in float64": lambda w: (w.double() * 3).float(),
}


@pytest.mark.parametrize("how", MADE)
def test_a_weight_is_made_in_its_own_types(how):
    """In float64 alone, what is rounded on purpose would not be."""
    net = build(
        lambda n, x: norm(n, F.conv2d(x, MADE[how](n.w))),
        {"w": randn(4, 3, 3, 3), **statistics(4)},
    )
    x = randn(*IMAGES)
    model, report = judge.fold(net, (x,))
    assert len(report.folded) == 1
    (weight,) = (value for value in judge.weights(model).values() if value.ndim == 4)
    scale = net.gamma.double() / (net.var.double() + 1e-5).sqrt()
    expected = MADE[how](net.w).double() * scale.view(-1, 1, 1, 1)
    torch.testing.assert_close(weight, expected, rtol=2e-7, atol=0)


REFUSED = {
    "complex weights": (
        lambda n, x: torch.view_as_real(n.fc(x.to(torch.complex64)) * n.s),
        lambda: {"fc": nn.Linear(5, 4, dtype=torch.complex64), "s": randn(4)},
        ROWS,
        "complex numbers",
    ),
    "complex constants": (
        lambda n, x: torch.view_as_real(n.conv(x) * n.s),
        lambda: {**conv(), "s": torch.complex(randn(*COLUMN), randn(*COLUMN))},
        IMAGES,
        "complex numbers",
    ),
    "no row for each sample": (
        lambda n, x: norm(n, n.conv(x)).mean(),
        lambda: {**conv(), **statistics(4)},
        IMAGES,
        "The module cannot hold its fold",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_folded_is_refused_by_name(name):
    run, parts, shape, said = REFUSED[name]
    with pytest.raises(UnsupportedModelError) as caught:
        fold_batchnorm(build(run, parts), randn(*shape))
    assert said in caught.value.what


def test_an_output_without_a_row_for_each_sample_is_no_traceback():
    net = Net(lambda n, x: n.bn(n.conv(x)).mean(), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))
    with pytest.raises(UnsupportedModelError, match="no row for each sample"):
        fold_batchnorm(net.eval(), randn(*IMAGES))
