"""Every condition of the torch fold, each fold checked against the float64 module."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from resdeploy.errors import UnsupportedModelError
from resdeploy.host.fold import fold_batchnorm


def lively(module: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and parameters that are far from the identity."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            if part.track_running_stats:
                part.running_mean.normal_(0, 0.5)
                part.running_var.uniform_(0.3, 3)
            if part.affine:
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return module.eval()


def fold_and_compare(module: nn.Module, x: torch.Tensor):
    """Fold, and hold the folded module in float32 against the original in float64."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    folded = fold_batchnorm(module, (x,))
    with torch.no_grad():
        got = folded.module(x).double()
        own = module(x).double()
        exact = copy.deepcopy(module).double()(x.double())
    # The yardstick is the unfolded module's own float32 error.
    noise = (own - exact).norm() + 2.0**-24 * exact.norm()
    assert (got - exact).norm() <= 4 * noise
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), f"fold_batchnorm changed {name} of its input"
    return folded


def reasons(folded) -> dict[str, str]:
    return {refusal.site: refusal.reason for refusal in folded.report.refused}


class Chain(nn.Sequential):
    """Modules in a row, by name, with lively BatchNorms."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        lively(self)


IMAGES = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("padding", [0, 1, "same"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_folds_a_convolution(bias, groups, padding, padding_mode):
    conv = nn.Conv2d(
        4, 8, 3, bias=bias, groups=groups, padding=padding, padding_mode=padding_mode, dilation=1
    )
    folded = fold_and_compare(Chain(conv=conv, bn=nn.BatchNorm2d(8)), IMAGES)
    (site,) = folded.report.folded
    assert (site.site, site.producer, site.op) == ("bn", "conv", "conv2d")
    assert 0 < site.max_ulp <= 0.5
    assert folded.report.complete
    assert set(folded.state_dict()) == {"conv.weight", "conv.bias"}


@pytest.mark.parametrize("dimensions", [1, 3])
def test_folds_convolutions_of_other_ranks(dimensions):
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dimensions](4, 6, 3, stride=2)
    norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[dimensions](6)
    folded = fold_and_compare(Chain(conv=conv, bn=norm), torch.randn(2, 4, *[7] * dimensions))
    assert folded.report.folded[0].op == f"conv{dimensions}d"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_folds_a_linear_layer(bias, affine):
    chain = Chain(fc=nn.Linear(5, 7, bias=bias), bn=nn.BatchNorm1d(7, affine=affine, eps=1e-2))
    folded = fold_and_compare(chain, torch.randn(3, 5))
    assert folded.report.folded[0].op == "linear"


def test_folds_two_batchnorms_in_a_row():
    folded = fold_and_compare(
        Chain(conv=nn.Conv2d(4, 6, 1), a=nn.BatchNorm2d(6), b=nn.BatchNorm2d(6)), IMAGES
    )
    assert [site.site for site in folded.report.folded] == ["a", "b"]


def test_steps_over_what_does_nothing_at_inference():
    chain = Chain(conv=nn.Conv2d(4, 6, 1), i=nn.Identity(), d=nn.Dropout(), bn=nn.BatchNorm2d(6))
    assert fold_and_compare(chain, IMAGES).report.complete


def test_in_place_activations_do_not_hide_a_fold():
    chain = Chain(
        conv=nn.Conv2d(4, 6, 1),
        bn=nn.BatchNorm2d(6),
        relu=nn.ReLU(inplace=True),
        c=nn.Conv2d(6, 2, 1),
    )
    assert fold_and_compare(chain, IMAGES).report.complete


def test_an_in_place_change_through_a_view_is_seen():
    """conv -> view -> relu_ -> BN: the BatchNorm reads the rectified value, by another name."""

    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x):
            y = self.conv(x)
            y.view(-1).relu_()
            return self.bn(y)

    folded = fold_and_compare(lively(Aliased()), IMAGES)
    assert "not from a convolution" in reasons(folded)["bn"]


def test_refuses_an_in_place_change_that_torch_loses():
    """In eval mode dropout returns its own input; torch's functionalisation takes it for a copy."""

    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.drop = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Dropout()

        def forward(self, x):
            y = self.conv(x)
            self.drop(y).add_(1)
            return self.bn(y)

    with pytest.raises(UnsupportedModelError, match="changes a value that is read elsewhere"):
        fold_batchnorm(lively(Aliased()), (IMAGES,))


def test_an_in_place_activation_after_dropout_is_harmless():
    chain = Chain(
        conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6), drop=nn.Dropout(), relu=nn.ReLU(inplace=True)
    )
    assert fold_and_compare(chain, IMAGES).report.complete


def test_a_layer_called_twice_gets_weights_for_each_call():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 1, bias=False)
            self.a, self.b = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

        def forward(self, x):
            return self.a(self.conv(x)) + self.b(self.conv(2 * x)) + self.a(self.conv(3 * x))

    folded = fold_and_compare(lively(Siamese()), IMAGES)
    assert [site.site for site in folded.report.folded] == ["a", "b", "a"]
    with pytest.raises(UnsupportedModelError, match="called more than once"):
        folded.state_dict()


def test_a_weight_also_used_without_a_batchnorm_keeps_its_value_there():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn = nn.Linear(5, 5), nn.BatchNorm1d(5)

        def forward(self, x):
            return self.bn(self.fc(x)) + F.linear(x, self.fc.weight, self.fc.bias)

    assert fold_and_compare(lively(Tied()), torch.randn(3, 5)).report.complete


def test_a_functional_call_folds_like_a_module():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(6, 4, 3, 3))
            self.register_buffer("mean", torch.randn(6))
            self.register_buffer("var", torch.rand(6) + 0.5, persistent=False)

        def forward(self, x):
            return F.batch_norm(F.conv2d(x, self.kernel), self.mean, self.var, eps=1e-3)

    assert fold_and_compare(Functional().eval(), IMAGES).report.complete


# --- refusals, by the numbers of the module docstring ---


def test_refuses_a_batchnorm_without_running_statistics():  # 1
    chain = Chain(conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6, track_running_stats=False))
    assert "tracks no running statistics" in reasons(fold_and_compare(chain, IMAGES))["bn"]


def test_refuses_parameters_computed_at_run_time():  # 2
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x):
            gamma = self.bn.weight * x.mean()
            mean, var = self.bn.running_mean, self.bn.running_var
            return F.batch_norm(self.conv(x), mean, var, gamma, self.bn.bias)

    folded = fold_and_compare(lively(Conditional()), IMAGES)
    assert "its parameters are computed at run time" in folded.report.refused[0].reason


def test_refuses_the_residual_stream():  # 3
    class PreActivation(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.bn, self.branch = (
                nn.Conv2d(4, 6, 1),
                nn.BatchNorm2d(6),
                nn.Conv2d(6, 6, 1),
            )

        def forward(self, x):
            stream = self.stem(x)
            return stream + self.branch(F.relu(self.bn(stream)))

    reason = reasons(fold_and_compare(lively(PreActivation()), IMAGES))["bn"]
    assert reason == (
        "its input, `stem` (conv2d), is read 2 times: it is the residual stream; "
        "no layer alone reads its output"
    )


def test_refuses_a_convolution_that_two_batchnorms_read():  # 3
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 1)
            self.a, self.b = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

        def forward(self, x):
            y = self.conv(x)
            return self.a(y) * self.b(y)

    folded = fold_and_compare(lively(Fork()), IMAGES)
    assert list(reasons(folded)) == ["a", "b"]


def test_refuses_a_convolution_that_is_an_output():  # 3
    class Feature(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y), y

    folded = fold_batchnorm(lively(Feature()), (IMAGES,))
    assert "is also an output of the model" in reasons(folded)["bn"]


def test_refuses_when_a_step_between_has_another_reader():  # 3
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.drop = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Dropout()

        def forward(self, x):
            y = self.conv(x)
            return self.bn(self.drop(y)) * y

    folded = fold_and_compare(lively(Between()), IMAGES)
    assert "is read 2 times" in reasons(folded)["bn"]


@pytest.mark.parametrize("between", [nn.ReLU(), nn.MaxPool2d(2)])
def test_refuses_what_does_not_commute(between):  # 3
    chain = Chain(conv=nn.Conv2d(4, 6, 1), between=between, bn=nn.BatchNorm2d(6))
    folded = fold_batchnorm(chain, (IMAGES,))
    assert "`between`" in reasons(folded)["bn"]
    assert "not from a convolution or linear layer" in reasons(folded)["bn"]


def test_refuses_a_batchnorm_on_the_input():  # 3
    chain = Chain(bn=nn.BatchNorm2d(4), conv=nn.Conv2d(4, 6, 3, padding=1))
    reason = reasons(fold_and_compare(chain, IMAGES))["bn"]
    assert "the model's input" in reason
    assert "`conv` (conv2d), which reads it, pads with zeros that its shift would move" in reason


def test_refuses_a_weight_computed_at_run_time():  # 4
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x):
            return self.bn(F.conv2d(x, self.conv.weight * x.mean()))

    folded = fold_and_compare(lively(Dynamic()), IMAGES)
    assert reasons(folded)["bn"].startswith("the weight of `")
    assert reasons(folded)["bn"].endswith("is computed at run time")


@pytest.mark.parametrize(
    "parametrize",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", amount=0.3),
    ],
    ids=["weight_norm", "spectral_norm", "pruning"],
)
def test_weights_made_from_constants_are_computed_first(parametrize):
    conv = parametrize(nn.Conv2d(4, 6, 3))
    folded = fold_and_compare(Chain(conv=conv, bn=nn.BatchNorm2d(6)), IMAGES)
    assert folded.report.complete
    assert "conv.weight" in folded.state_dict()


def test_refuses_a_bias_computed_at_run_time():  # 4
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x):
            return self.bn(F.conv2d(x, self.conv.weight, self.conv.bias * x.mean()))

    folded = fold_and_compare(lively(Biased()), IMAGES)
    assert reasons(folded)["bn"].endswith("is computed at run time")


def test_a_hook_on_the_convolution_is_seen():
    chain = Chain(conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6))
    chain.conv.register_forward_hook(lambda module, args, output: output.tanh())
    assert "not from a convolution" in reasons(fold_and_compare(chain, IMAGES))["bn"]


def test_a_hook_that_scales_is_taken_in():
    chain = Chain(conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6))
    chain.conv.register_forward_hook(lambda module, args, output: 2 * output + 1)
    assert fold_and_compare(chain, IMAGES).report.complete


@pytest.mark.parametrize("length", [5, 7])
def test_refuses_a_linear_layer_whose_features_are_not_axis_1(length):  # 3
    """With length 7 == features the fold is wrong without a sign; every peer does it."""
    chain = Chain(fc=nn.Linear(3, 7), bn=nn.BatchNorm1d(length))
    folded = fold_and_compare(chain, torch.randn(2, length, 3))
    assert "features on the last axis of a rank-3 value" in reasons(folded)["bn"]


def test_refuses_statistics_without_a_finite_fold():  # 5
    chain = Chain(conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6))
    chain.bn.running_mean[3] = float("nan")
    folded = fold_batchnorm(chain, (IMAGES,))
    assert "channel 3 has no finite scale" in reasons(folded)["bn"]


def test_subnormal_results_are_flushed_and_counted():
    chain = Chain(conv=nn.Conv2d(4, 6, 1, bias=False), bn=nn.BatchNorm2d(6))
    with torch.no_grad():
        chain.bn.running_mean.zero_()
        chain.bn.bias[2] = 1e-40
    folded = fold_batchnorm(chain, (IMAGES,))
    assert folded.report.folded[0].num_flushed == 1
    assert folded.state_dict()["conv.bias"][2] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_fold_in_float64_and_round_once(dtype):
    chain = Chain(conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6)).to(dtype)
    folded = fold_batchnorm(chain, (IMAGES.to(dtype),))
    weight = chain.conv.weight.double()
    scale = chain.bn.weight.double() / (chain.bn.running_var.double() + chain.bn.eps).sqrt()
    exact = weight * scale.reshape(-1, 1, 1, 1)
    got = folded.state_dict()["conv.weight"]
    assert got.dtype is dtype
    ulp = torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(exact.abs()))
    # What is called exact here is itself rounded a few times in float64.
    allowed = 2.0 if dtype is torch.float64 else 0.5001
    assert ((got.double() - exact).abs() <= allowed * ulp).all()


def test_the_folded_module_takes_any_batch():
    folded = fold_batchnorm(Chain(conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6)), (IMAGES,))
    for batch in (1, 2, 7):
        assert folded.module(torch.randn(batch, 4, 9, 9)).shape[0] == batch


@pytest.mark.parametrize("join", [torch.add, lambda a, b: torch.cat([a, b], dim=1)])
def test_a_constant_before_a_part_in_two_is_taken_in_once(join):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1)
            self.bn = nn.LazyBatchNorm2d()

        def forward(self, x):
            return self.bn(2 * (join(self.a(x), 3 * self.b(x)) + 1))

    module = Joined()
    module(IMAGES)  # gives the lazy BatchNorm its size
    assert fold_and_compare(lively(module), IMAGES).report.complete


def test_a_forward_of_any_number_of_inputs_is_traced():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

        def forward(self, *images):
            return self.bn(self.conv(sum(images)))

    folded = fold_batchnorm(lively(Sum()), (IMAGES, IMAGES))
    assert folded.report.complete
    assert folded.module(IMAGES[:1], IMAGES[:1]).shape[0] == 1


def test_what_cannot_be_traced_is_refused_with_the_line():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModelError, match="cannot trace Branching") as caught:
        fold_batchnorm(Branching(), (IMAGES,))
    assert "test_fold.py:" in caught.value.where


def test_a_baked_batch_size_is_refused():
    class Baked(nn.Module):
        def forward(self, x):
            return x.reshape(2, -1)

    with pytest.raises(UnsupportedModelError) as caught:
        fold_batchnorm(Baked(), (IMAGES,))
    assert "--batch" in caught.value.fix
    assert fold_batchnorm(Baked(), (IMAGES,), dynamic_batch=False).report.complete


# --- conditions that a broken fold once passed unnoticed (tests/mutations) ---------------


class Net(nn.Module):
    """Named parts and tensors, and a forward pass over them."""

    def __init__(self, run, **parts) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)
        lively(self)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def conv_bn(run, **more) -> Net:
    return Net(run, **({"conv": nn.Conv2d(4, 4, 1), "bn": nn.BatchNorm2d(4)} | more))


PER_CHANNEL = torch.tensor([0.5, -2.0, 3.0, 0.25]).reshape(4, 1, 1)


@pytest.mark.parametrize(
    "combine", [torch.add, torch.sub, torch.mul, torch.div], ids=["add", "sub", "mul", "div"]
)
@pytest.mark.parametrize("constant", [PER_CHANNEL, 2.5], ids=["tensor", "number"])
def test_takes_in_arithmetic_with_a_constant(combine, constant):
    module = conv_bn(lambda net, x: net.bn(combine(net.conv(x), constant)))
    assert fold_and_compare(module, IMAGES).report.complete


def test_a_factor_of_a_sum_is_seen():
    """torch.add(a, b, alpha=2) is a + 2 b, whether b is a constant, a layer or a shift."""
    other = nn.Conv2d(4, 4, 1)
    for run in (
        lambda net, x: net.bn(torch.add(net.conv(x), net.constant, alpha=3)),
        lambda net, x: net.bn(torch.add(net.conv(x), net.other(x), alpha=3)),
        lambda net, x: torch.add(net.conv(x) * net.constant, net.constant, alpha=3),
    ):
        fold_and_compare(conv_bn(run, other=other, constant=PER_CHANNEL), IMAGES)


def test_a_value_added_to_itself_is_not_scaled_twice():
    fold_and_compare(conv_bn(lambda net, x: net.bn((lambda y: y + y)(net.conv(x)))), IMAGES)


def test_refuses_a_value_joined_with_itself():
    module = conv_bn(
        lambda net, x: net.bn((lambda y: torch.cat([y, y], 1))(net.conv(x))), bn=nn.BatchNorm2d(8)
    )
    folded = fold_and_compare(module, IMAGES)
    assert "joins a value with itself" in reasons(folded)["bn"]


def test_refuses_a_sum_of_values_of_different_shapes():
    module = conv_bn(lambda net, x: net.bn(net.conv(x) + net.one(x)), one=nn.Conv2d(4, 1, 1))
    folded = fold_and_compare(module, IMAGES)
    assert "is a sum of values of different shapes" in reasons(folded)["bn"]


def test_refuses_a_shift_that_differs_between_positions():
    module = conv_bn(lambda net, x: net.bn(net.conv(x) + net.columns), columns=torch.arange(9.0))
    folded = fold_and_compare(module, IMAGES)
    assert "the map differs between positions of `conv`" in reasons(folded)["bn"]


def test_refuses_division_by_zero():
    module = conv_bn(lambda net, x: net.bn(net.conv(x) / net.zero), zero=torch.zeros(4, 1, 1))
    folded = fold_batchnorm(module, (IMAGES,))
    assert "not from a convolution" in reasons(folded)["bn"]


def test_refuses_a_constant_that_is_not_finite():
    module = conv_bn(lambda net, x: net.bn(net.conv(x) * net.c), c=torch.tensor(float("inf")))
    folded = fold_batchnorm(module, (IMAGES,))
    assert "not from a convolution" in reasons(folded)["bn"]


def test_max_pooling_lets_a_scale_of_zero_pass():
    module = conv_bn(lambda net, x: net.bn(F.max_pool2d(net.conv(x), 2)))
    with torch.no_grad():
        module.bn.weight.abs_()[1] = 0
    assert fold_and_compare(module, IMAGES).report.complete


def test_an_average_with_a_divisor_of_its_own_is_none():
    fold_and_compare(
        conv_bn(lambda net, x: net.bn(F.avg_pool2d(net.conv(x), 2, divisor_override=3))), IMAGES
    )


def test_refuses_channels_moved_into_the_batch():
    module = conv_bn(lambda net, x: net.bn(net.conv(x).view(-1, 4, 9, 9)), conv=nn.Conv2d(4, 8, 1))
    folded = fold_and_compare(module, IMAGES)
    assert "not from a convolution" in reasons(folded)["bn"]


def test_a_map_that_varies_within_a_window_does_not_cross_pooling():
    """Upwards it would meet a view of another size; downwards, a flattened image."""
    up = Net(
        lambda net, x: net.bn(F.avg_pool2d(net.conv(x).view(-1, 4, 3, 4), 2) * net.columns),
        conv=nn.Conv1d(4, 4, 1),
        bn=nn.BatchNorm2d(4),
        columns=torch.tensor([1.0, 2.0]),
    )
    assert not fold_and_compare(up, torch.randn(2, 4, 12)).report.complete
    down = Net(
        lambda net, x: net.fc(F.adaptive_avg_pool2d(x * net.scale + net.shift, 1).flatten(1)),
        fc=nn.Linear(4, 3),
        scale=torch.randn(4, 9, 9),
        shift=torch.randn(4, 9, 9),
    )
    fold_and_compare(down, IMAGES)


def test_follows_axes_downwards_in_their_order():
    module = Net(
        lambda net, x: net.fc(net.bn(x.tanh()).permute(0, 2, 3, 1)),
        fc=nn.Linear(4, 3),
        bn=nn.BatchNorm2d(4),
    )
    assert fold_and_compare(module, IMAGES).report.complete


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_padding_by_name_pads_nothing_for_a_kernel_of_one(padding):
    # A dilation makes the graph name the padding: "valid" alone is the default, and left out.
    conv = nn.Conv2d(4, 4, 1, padding=padding, dilation=2)
    module = conv_bn(lambda net, x: net.conv(net.bn(x.tanh())), conv=conv)
    assert fold_and_compare(module, IMAGES).report.complete


def test_a_batchnorm_that_makes_a_weight_is_not_folded_into_its_reader():
    module = Net(
        lambda net, x: F.conv2d(x, net.bn(net.kernel)),
        bn=nn.BatchNorm2d(4),
        kernel=torch.randn(6, 4, 1, 1),
    )
    assert not fold_and_compare(module, IMAGES).report.complete


def test_a_product_read_twice_is_no_frozen_batchnorm():
    module = conv_bn(lambda net, x: (lambda y: (y + net.c) * y)(net.conv(x) * net.c), c=PER_CHANNEL)
    fold_and_compare(module, IMAGES)


def test_mm_lays_its_weight_out_by_input():
    module = Net(
        lambda net, x: net.bn(torch.mm(x, net.kernel)),
        bn=nn.BatchNorm1d(4),
        kernel=torch.randn(4, 4),
    )
    assert fold_and_compare(module, torch.randn(3, 4)).report.complete


def test_refuses_products_that_are_no_linear_layer():
    vector = Net(lambda net, x: net.bn(x @ net.w), bn=nn.BatchNorm1d(6), w=torch.randn(5))
    assert not fold_and_compare(vector, torch.randn(2, 6, 5)).report.complete
    matrix_bias = Net(
        lambda net, x: net.bn(torch.addmm(net.b, x, net.w)),
        bn=nn.BatchNorm1d(7),
        w=torch.randn(5, 7),
        b=torch.randn(1, 7),
    )
    assert not fold_and_compare(matrix_bias, torch.randn(3, 5)).report.complete


@pytest.mark.parametrize("frozen", [False, True], ids=["batchnorm", "arithmetic"])
def test_a_constant_for_each_sample_is_not_taken_in(frozen):
    def run(net, x):
        y = net.conv(x).view(2, 8, -1)
        return y * net.c + net.c if frozen else net.wide(y * net.c)

    constant = torch.randn(2, 8, 1)
    module = conv_bn(run, conv=nn.Conv2d(4, 8, 1), wide=nn.BatchNorm1d(8), c=constant)
    folded = fold_batchnorm(module, (IMAGES,), dynamic_batch=False)
    assert not folded.report.folded
    torch.testing.assert_close(folded.module(IMAGES), module(IMAGES), rtol=0, atol=0)


def test_a_constant_of_higher_rank_moves_the_axes():
    """(4, 4, 9, 9) and (1, 1, 1, 1, 1) are (1, 4, 4, 9, 9): axis 1 is now the batch."""
    module = conv_bn(
        lambda net, x: net.cube(net.conv(x) * net.c),
        cube=nn.BatchNorm3d(4),
        c=torch.full((1, 1, 1, 1, 1), 2.0),
    )
    images = torch.randn(4, 4, 9, 9)
    folded = fold_batchnorm(module, (images,), dynamic_batch=False)
    assert "not from a convolution" in reasons(folded)["cube"]


# --- weights that are made, and what changes in place ---


def test_a_computed_weight_is_rounded_once():
    """W = k / 3 * 7 has three roundings in float32, and half an ulp has room for one."""
    module = conv_bn(lambda net, x: net.bn(F.conv2d(x, net.conv.weight / 3 * 7)))
    weight = fold_batchnorm(module, (IMAGES,)).program.state_dict
    (got,) = (value.double() for name, value in weight.items() if name.endswith("weight"))
    scale = module.bn.weight.double() / (module.bn.running_var.double() + module.bn.eps).sqrt()
    exact = module.conv.weight.double() / 3 * 7 * scale.reshape(-1, 1, 1, 1)
    ulp = torch.finfo(torch.float32).eps * 2.0 ** torch.floor(torch.log2(exact.abs()))
    assert ((got - exact).abs() <= 0.5001 * ulp).all()


def test_a_buffer_that_is_only_written_stays():
    def run(net, x):
        net.last.copy_(x.mean())
        return net.bn(net.conv(x))

    module = conv_bn(run, last=torch.zeros(()))
    folded = fold_batchnorm(module, (IMAGES,))
    assert folded.report.complete
    candidate = folded.module
    candidate(IMAGES)
    assert dict(candidate.named_buffers())["last"] == IMAGES.mean()


def test_an_in_place_change_of_a_value_read_again_is_seen():
    def run(net, x):
        y = net.conv(x)
        view = y.view(-1, 4, 81)
        y.relu_()
        return net.rows(view)

    module = conv_bn(run, rows=nn.BatchNorm1d(4))
    assert "not from a convolution" in reasons(fold_and_compare(module, IMAGES))["rows"]


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
        fold_and_compare(conv_bn(run), IMAGES)
