"""Every condition of the torch fold, each fold checked against the float64 module."""

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


def test_a_weight_changed_in_place_is_not_a_constant():
    class Drifting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
            self.register_buffer("kernel", torch.randn(6, 4, 1, 1))

        def forward(self, x):
            self.kernel.mul_(0.5)
            return self.bn(F.conv2d(x, self.kernel))

    folded = fold_batchnorm(lively(Drifting()), (IMAGES,))
    assert "computed at run time" in reasons(folded)["bn"]


def test_a_weight_that_changes_after_each_call_is_not_a_constant():
    class Decaying(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(6)
            self.register_buffer("kernel", torch.randn(6, 4, 1, 1))

        def forward(self, x):
            y = self.bn(F.conv2d(x, self.kernel))
            self.kernel.mul_(0.5)
            return y

    folded = fold_batchnorm(lively(Decaying()), (IMAGES,))
    assert "computed at run time" in reasons(folded)["bn"]


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


def test_refuses_a_batchnorm_in_training_mode():  # 1
    chain = Chain(conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6))
    chain.bn.train()
    folded = fold_batchnorm(chain, (IMAGES,))
    assert "training mode" in reasons(folded)["bn"]
    assert not folded.report.complete


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


@pytest.mark.parametrize("between", [nn.ReLU(), nn.MaxPool2d(2), nn.Dropout().train()])
def test_refuses_what_does_not_commute(between):  # 3
    chain = Chain(conv=nn.Conv2d(4, 6, 1), between=between, bn=nn.BatchNorm2d(6))
    if isinstance(between, nn.Dropout):
        chain.between.train()
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
