"""What torch's exporter would silently turn into another function is refused at the trace."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.trace import trace

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A forward pass over named parts: `Net(lambda net, x: net.bn(x), bn=...)`."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x):
        return self.run(self, x)


def block(run, **parts):
    """Return the network as a part of another, so that there is a path to name; in eval mode."""
    return nn.Sequential(Net(run, **parts)).eval()


def refusal(module):
    with pytest.raises(UnsupportedModelError) as caught:
        trace(module, (X,))
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("after", [lambda y: y, lambda y: y.relu_()])
def test_refuses_a_batchnorm_in_training_mode(after):  # 1
    module = block(lambda net, x: after(net.bn(x)), bn=nn.BatchNorm2d(3))
    module[0].bn.train()
    error = refusal(module)
    assert "training mode" in error.what
    assert error.where == "0.bn"


def test_refuses_a_function_call_in_training_mode():  # 1
    def run(net, x):
        return F.batch_norm(x, net.mean, net.mean + 1, training=True)

    error = refusal(block(run, mean=torch.zeros(3)))
    assert "training mode" in error.what
    assert error.where == "0"


@pytest.mark.parametrize(
    "call",
    [
        lambda x, m: torch.native_batch_norm(x, None, None, m, m + 1, True, 0.1, 1e-5)[0],
        lambda x, m: torch._native_batch_norm_legit(x, None, None, m, m + 1, True, 0.1, 1e-5)[0],
        lambda x, m: torch.ops.aten._batch_norm_with_update(
            x, m + 1, m, m.clone(), m + 1, 0.1, 1e-5
        )[0],
    ],
    ids=["native", "legit", "with_update"],
)
def test_refuses_training_mode_in_any_spelling(call):  # 1
    assert refusal(block(lambda net, x: call(x, net.mean), mean=torch.zeros(3))).where == "0"


def test_one_without_running_statistics_is_what_it_is():
    trace(block(lambda net, x: net.bn(x), bn=nn.BatchNorm2d(3, track_running_stats=False)), (X,))


@pytest.mark.parametrize(
    "drop", [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()]
)
def test_refuses_a_dropout_that_is_on(drop):  # 2
    module = block(lambda net, x: net.drop(x), drop=drop)
    trace(module, (X,))
    module[0].drop.train()
    error = refusal(module)
    assert "dropout" in error.what
    assert error.where == "0.drop"


def test_refuses_attention_that_drops():  # 2
    def attend(p):
        return block(lambda net, x: F.scaled_dot_product_attention(x, x, x, dropout_p=p))

    trace(attend(0.0), (X,))
    assert "dropout" in refusal(attend(0.5)).what


@pytest.mark.parametrize(
    "noise",
    [torch.rand_like, lambda x: torch.rand(8), lambda x: torch.bernoulli(x.sigmoid())],
    ids=["rand_like", "rand", "bernoulli"],
)
def test_refuses_random_numbers(noise):  # 3
    error = refusal(block(lambda net, x: x * noise(x)))
    assert "random numbers" in error.what
    assert error.where == "0"


def test_refuses_slopes_drawn_at_random():  # 3
    module = block(lambda net, x: net.act(x), act=nn.RReLU())
    trace(module, (X,))
    module[0].act.train()
    assert "random numbers" in refusal(module).what


def test_refuses_a_buffer_that_each_call_changes():  # 4
    def run(net, x):
        net.seen += 1
        return x * net.seen

    error = refusal(block(run, seen=torch.zeros(())))
    assert "`0.seen`" in error.what
    assert error.where == "0"


def test_refuses_a_parameter_that_each_call_changes():  # 4
    def run(net, x):
        net.conv.weight.mul_(2)
        return net.conv(x)

    assert refusal(block(run, conv=nn.Conv2d(3, 3, 1))).where == "0.conv"


def test_a_buffer_that_is_only_written_has_no_part_in_it():
    def run(net, x):
        net.seen += 1
        return x * 2

    trace(block(run, seen=torch.zeros(())), (X,))


def test_an_instance_norm_with_running_statistics_is_a_batchnorm():
    norm = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    program = trace(block(lambda net, x: net.norm(x), norm=norm), (X,))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.aten.batch_norm.default]
    torch.testing.assert_close(program.module()(X), norm(X))
