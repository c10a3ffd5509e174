"""Networks from whose BatchNorm, by the algebra alone, a map reaches a layer, and their neighbours.

Each graph is held against the module in float64, by the module's own error.
"""

import fold_judge as judge
import pytest
import torch
from fold_suite import Net, lively
from torch import nn
from torch.nn import functional as F

IMAGES = (2, 3, 6, 6)


def build(run, **parts) -> Net:
    """A network of a convolution c of four channels, a BatchNorm of them, and more."""
    torch.manual_seed(0)
    net = Net(
        run,
        **{
            "c": nn.Conv2d(3, 4, 3),
            "b": nn.Conv2d(3, 4, 3, bias=False),
            "bn": nn.BatchNorm2d(4),
            "bn1": nn.BatchNorm1d(4),
            "d": nn.Conv2d(4, 5, 1),
            "fc": nn.Linear(4, 5),
            **{name: part for name, part in parts.items() if isinstance(part, nn.Module)},
        },
    )
    net.k = torch.randn(4, 1, 1)
    net.w = nn.Parameter(torch.randn(4, 5))
    with torch.no_grad():
        lively(net)
    return net.eval()


def up(run, shape=IMAGES):
    return run, shape


def down(run, shape=IMAGES):
    """The same behind a rectifier, so that the map must go down."""
    return lambda net, x: run(net, net.bn(F.relu(net.c(x)))), shape


def split_and_turned(net, x):
    first, second = net.c(x).split([1, 3], 1)
    return net.bn(torch.cat([second, first * 2], 1))


def cross_stage(net, x):
    y = net.c(x)
    return net.bn(torch.cat([y[:, 2:], y[:, :2]], 1))


def halves_added(net, x):
    first, second = net.c(x).chunk(2, 1)
    return F.batch_norm(first - second, net.bn.running_mean[:2], net.bn.running_var[:2])


def rolled(net, x):
    return net.bn(net.c(x).roll(1, 3))


def stacked(net, x):
    return net.bn(torch.stack(net.c(x).unbind(2)[::-1], 2))


FOLDS = {
    # mean
    "bn, mean, linear": down(lambda n, y: n.fc(y.mean((2, 3)))),
    "bn, mean with its axes kept, conv": down(lambda n, y: n.d(y.mean((2, 3), keepdim=True))),
    "mean over one axis, bn": up(lambda n, x: n.bn1(n.c(x).mean(3))),
    # sum over positions
    "sum, bn": up(lambda n, x: n.bn1(n.c(x).sum((2, 3)))),
    "sum over one axis, bn": up(lambda n, x: n.bn1(n.c(x).sum(-1))),
    "bn, sum, linear": down(lambda n, y: n.fc(y.sum((2, 3)))),
    # slices, single places, chosen places
    "bn, slice, conv": down(lambda n, y: n.d(y[:, :, 1:, 1:])),
    "bn, every other column, conv": down(lambda n, y: n.d(y[..., ::2])),
    "every other channel, bn": up(
        lambda n, x: F.batch_norm(n.c(x)[:, ::2], n.bn.running_mean[1:3], n.bn.running_var[1:3])
    ),
    "flip, bn": up(lambda n, x: n.bn(n.c(x).flip(3))),
    "flip of the channels, bn": up(lambda n, x: n.bn(n.c(x).flip(1))),
    "bn, flip of the channels, conv": down(lambda n, y: n.d(y.flip(1))),
    "one pixel, bn": up(lambda n, x: n.bn1(n.c(x)[:, :, 0, 0])),
    "the last pixel, bn": up(lambda n, x: n.bn1(n.c(x)[:, :, -1, -2])),
    "bn, one pixel, linear": down(lambda n, y: n.fc(y[:, :, 0, -1])),
    "chosen channels, bn": up(lambda n, x: n.bn(n.c(x)[:, [2, 0, 3, 1]])),
    "chosen columns, bn": up(lambda n, x: n.bn(n.c(x).index_select(3, torch.tensor([1, 1, 0])))),
    "bn, chosen channels, conv": down(lambda n, y: n.d(y[:, [2, 0, 3, 3]])),
    "roll, bn": up(rolled),
    "unbind and stack, bn": up(stacked),
    # channel shuffle
    "bn, channel_shuffle, conv": down(lambda n, y: n.d(F.channel_shuffle(y, 2))),
    # parts
    "chunk and cat, bn": up(lambda n, x: n.bn(torch.cat(n.c(x).chunk(2, 1)[::-1], 1))),
    "split and cat, bn": up(split_and_turned),
    "two slices and cat, bn": up(cross_stage),
    "chunk and the difference, bn": up(halves_added),
    "bn, chunk, a layer each": down(
        lambda n, y: n.fc(y.chunk(2, 2)[0].mean((2, 3))) + n.d(y.chunk(2, 2)[1]).mean((2, 3))
    ),
    # constants
    "difference, bn": up(lambda n, x: n.bn(n.c(x) - n.b(x))),
    "1 - x, bn": up(lambda n, x: n.bn(1.0 - n.c(x))),
    "k - x, bn": up(lambda n, x: n.bn(n.k - n.c(x))),
    "-x, bn": up(lambda n, x: n.bn(-n.c(x))),
    "-(-x), bn": up(lambda n, x: n.bn(-n.c(x).neg())),
    "k * x, bn": up(lambda n, x: n.bn(n.k * n.c(x))),
    "x * -1, bn": up(lambda n, x: n.bn(n.c(x) * -1)),
    "x / k, bn": up(lambda n, x: n.bn(n.c(x) / n.k)),
    "an integer constant, bn": up(lambda n, x: n.bn(n.c(x) * torch.tensor(3))),
    "a float64 number that promotes nothing, bn": up(
        lambda n, x: n.bn(n.c(x) + torch.tensor(0.3, dtype=torch.float64))
    ),
    "x.rsub, bn": up(lambda n, x: n.bn(torch.rsub(n.c(x), 2.0, alpha=3))),
    "bn, -x, conv": down(lambda n, y: n.d(-y)),
    "bn, 1 - x, conv": down(lambda n, y: n.d(1 - y)),
    "bn, x - k, conv": down(lambda n, y: n.d(y - n.k)),
    "bn, x + k, conv": down(lambda n, y: n.d(y + n.k)),
    "bn, k * x, conv": down(lambda n, y: n.d(n.k * y)),
    "bn, x / k, conv": down(lambda n, y: n.d(y / n.k)),
    "bn, 3 - 2 * x / k, mean, linear": down(lambda n, y: n.fc((3 - 2 * y / n.k).mean((2, 3)))),
    # resizing
    "bilinear, bn": up(lambda n, x: n.bn(F.interpolate(n.c(x), scale_factor=2, mode="bilinear"))),
    "bilinear with aligned corners, bn": up(
        lambda n, x: n.bn(F.interpolate(n.c(x), (7, 9), mode="bilinear", align_corners=True))
    ),
    "bicubic, bn": up(lambda n, x: n.bn(F.interpolate(n.c(x), scale_factor=2, mode="bicubic"))),
    "made smaller, bn": up(lambda n, x: n.bn(F.interpolate(n.c(x), (3, 2), mode="bilinear"))),
    "nearest, bn": up(lambda n, x: n.bn(F.interpolate(n.c(x), scale_factor=3))),
    "trilinear, bn": up(
        lambda n, x: n.bn(
            F.interpolate(n.c(x)[:, :, None], scale_factor=(1, 2, 2), mode="trilinear").squeeze(2)
        )
    ),
    "bn, bilinear, conv": down(lambda n, y: n.d(F.interpolate(y, scale_factor=2, mode="bilinear"))),
    # matrices
    "W @ x, bn": up(lambda n, x: n.bn1(n.w @ x), (3, 5, 7)),
    "W @ x + b, bn": up(lambda n, x: n.bn1(n.w @ x + n.k[:, 0]), (3, 5, 7)),
    "W @ images, bn": up(
        lambda n, x: n.bn((n.w @ x).transpose(1, 2)).transpose(1, 2), (3, 6, 5, 7)
    ),
    "bn, W @ x": up(lambda n, x: n.w.mT @ n.bn1(F.relu(x)), (3, 4, 7)),
    "bn, W @ bn, bn": up(lambda n, x: n.w.mT @ n.bn1(n.w @ x), (3, 5, 7)),
    "permute, linear": down(lambda n, y: n.fc(y.permute(0, 2, 3, 1))),
    "einsum ni,oi->no, bn": up(lambda n, x: n.bn1(torch.einsum("ni,oi->no", x, n.w)), (3, 5)),
    "einsum, its operands exchanged, bn": up(
        lambda n, x: n.bn1(torch.einsum("oi,ni->no", n.w, x)), (3, 5)
    ),
    "einsum ni,io->no, bn": up(lambda n, x: n.bn1(torch.einsum("ni,io->no", x, n.w.mT)), (3, 5)),
    "einsum nil,oi->nol, bn": up(
        lambda n, x: n.bn1(torch.einsum("nil,oi->nol", x, n.w)), (3, 5, 7)
    ),
    "einsum nli,oi->nol, bn": up(
        lambda n, x: n.bn1(torch.einsum("nli,oi->nol", x, n.w)), (3, 7, 5)
    ),
    "einsum over images, bn": up(
        lambda n, x: n.bn(torch.einsum("nihw,oi->nohw", x, n.w)), (3, 5, 2, 3)
    ),
    "bn, einsum": up(lambda n, x: torch.einsum("ncl,co->nlo", n.bn1(F.relu(x)), n.w), (3, 4, 7)),
}


@pytest.mark.parametrize("name", FOLDS)
def test_it_folds(name):
    run, shape = FOLDS[name]
    net, x = build(run), torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    model, report = judge.fold(net, (x,))
    assert [site.reason for site in report.refused] == []
    assert len(report.folded) == 1
    judge.assert_same_function(model, net, (x,))


def joined_with_another(net, x):
    y = net.c(x)
    return F.batch_norm(
        torch.cat([y[:, :2], y[:, 1:3]], 1), net.bn.running_mean, net.bn.running_var
    )


STAYS = {
    "the largest, bn": up(lambda n, x: n.bn1(n.c(x).amax((2, 3)))),
    "the product, bn": up(lambda n, x: n.bn1(n.c(x).prod(3))),
    "sum over the channels, bn": up(
        lambda n, x: F.batch_norm(n.c(x).sum(1), n.bn.running_mean, n.bn.running_var)
    ),
    "bn, sum over the channels, linear": down(lambda n, y: n.fc(y.sum(1))),
    "sum over the batch, bn": up(lambda n, x: n.bn1(n.c(x).mean((2, 3)).sum(0, keepdim=True))),
    "k / x, bn": up(lambda n, x: n.bn(n.k / n.c(x))),
    "bn, k / x, conv": down(lambda n, y: n.d(n.k / y)),
    "x * x, bn": up(lambda n, x: (lambda y: n.bn(y * y))(n.c(x))),
    "a channel chosen twice, bn": up(lambda n, x: n.bn(n.c(x)[:, [0, 0, 2, 3]])),
    "parts that overlap, bn": up(joined_with_another),
    "a part that is read elsewhere too": up(
        lambda n, x: (lambda y: n.bn(torch.cat([y[:, 2:], y[:, :2]], 1)).sum() + y[:, :1])(n.c(x))
    ),
    "only one of two parts": up(
        lambda n, x: (lambda a, b: n.bn1(torch.cat([a, a * 2], 1).mean(3)) * b.mean(3).mean())(
            *n.c(x).chunk(2, 1)
        )
    ),
    "einsum over a diagonal, bn": up(
        lambda n, x: n.bn1(torch.einsum("nii,oi->no", x, n.w)), (3, 5, 5)
    ),
    "einsum that sums a label away, bn": up(
        lambda n, x: n.bn1(torch.einsum("nil,oi->no", x, n.w)), (3, 5, 7)
    ),
    "einsum of two inputs, bn": up(
        lambda n, x: n.bn1(torch.einsum("ni,oi->no", x, n.w * x.mean())), (3, 5)
    ),
    "another axis of W @ x, bn": up(lambda n, x: n.bn1((n.w @ x).mT), (3, 5, 4)),
}


@pytest.mark.parametrize("name", STAYS)
def test_it_stays(name):
    run, shape = STAYS[name]
    net, x = build(run), torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    model, report = judge.fold(net, (x,))
    assert report.folded == ()
    assert len(report.refused) == 1
    judge.assert_same_function(model, net, (x,))
