"""Random networks: whatever is folded, the function stays, to the last rounding.

A network is a list of steps over earlier values, so that values fan out, modules are called again
and weights are tied at random.

The bound. Let M be the network's output with every parameter and input replaced by its magnitude
(ReLU and pooling are then what they were, and a BatchNorm is |scale| (x + |mean|) + |beta|). Each
output, folded or not, is a sum of products whose magnitudes add up to at most M, passed through
ReLU and maxima, which let no difference grow. If K roundings lie on a path, each product carries a
factor (1 + d)^K, |d| <= u: what is computed differs from the exact value by at most gamma_K M, with
gamma_K = K u / (1 - K u) (Higham, Accuracy and Stability, Lemma 3.1), for any order of summation,
with or without fused multiply-add. M itself is computed with K roundings, hence

    |folded - unfolded|  <=  2 gamma_K / (1 - gamma_K) M  =  2 K u / (1 - 2 K u) M.

In float64 that is some 1e-13 of M: a fold that is wrong anywhere is out by all of it.
"""

import copy
import dataclasses
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resdeploy.host.fold import fold_batchnorm


@dataclass(frozen=True)
class Step:
    """One operation: on which earlier values, by which module or with which number."""

    kind: str
    reads: tuple[int, ...]
    module: str = ""
    number: float = 0.0

    def __call__(self, network: "Network", values: list[Tensor]) -> Tensor:
        first, *others = (values[i] for i in self.reads)
        if self.module:
            return getattr(network, self.module)(first)
        return {
            "relu": lambda: first.relu(),
            "add": lambda: first + others[0],
            "cat": lambda: torch.cat([first, *others], 1),
            "flatten": lambda: first.flatten(1),
            "tokens": lambda: first.flatten(2).mT,
            "transpose": lambda: first.mT,
            "mean": lambda: first.mean((2, 3)),
            "slice": lambda: first[:, 1:],
            "multiply": lambda: first * self.number,
            "shift": lambda: first + self.number,
        }[self.kind]()


class Network(nn.Module):
    """Steps, and which of their values are outputs; value 0 is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.outputs: list[int] = []

    def __repr__(self) -> str:
        lines = [f"{i}: {step}" for i, step in enumerate(self.steps, start=1)]
        return "\n".join([super().__repr__(), *lines, f"outputs {self.outputs}"])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for step in self.steps:
            values.append(step(self, values))
        return tuple(values[i] for i in self.outputs)


# What may come next, by the rank of the value: operations in a row, each of which reads the one
# before. A BatchNorm behind a ReLU can only go forward; a pool or a join before one is looked
# through.
_ROWS = {
    4: (
        *(("conv",), ("conv", "bn"), ("conv", "bn", "relu"), ("bn",)),
        *(("relu", "bn", "conv"), ("relu", "bn", "conv", "bn"), ("relu", "bn", "bn", "conv", "bn")),
        *(("conv", "max_pool", "bn"), ("conv", "avg_pool", "bn"), ("conv", "upsample", "bn")),
        *(("conv", "add", "bn"), ("conv", "cat", "bn"), ("conv", "slice", "bn")),
        *(("conv", "multiply", "bn"), ("conv", "shuffle", "bn"), ("conv", "shift", "bn")),
        *(("conv_transpose", "bn"), ("relu", "bn", "conv_transpose"), ("relu", "bn", "avg_pool")),
        *(("relu", "bn", "flatten", "linear"), ("flatten",), ("mean",), ("tokens", "linear")),
        *(("add",), ("cat",), ("relu",), ("dropout",)),
    ),
    3: (
        *(("linear", "bn"), ("linear", "transpose", "bn"), ("bn",), ("bn", "transpose", "linear")),
        *(("relu", "bn", "linear"), ("add", "bn"), ("cat",), ("flatten",), ("slice",)),
    ),
    2: (
        *(("linear", "bn"), ("linear", "bn", "relu"), ("relu", "bn", "linear"), ("bn",)),
        *(("linear", "add", "bn"), ("linear", "cat", "bn"), ("multiply",), ("shift", "dropout")),
    ),
}
_RANKS = {
    "conv": {4},
    "conv_transpose": {4},
    "max_pool": {4},
    "avg_pool": {4},
    "upsample": {4},
    "shuffle": {4},
    "mean": {4},
    "tokens": {4},
    "flatten": {3, 4},
    "transpose": {3},
    "linear": {2, 3},
}
_INPUTS = ((2, 2, 7, 7), (2, 4, 6, 5), (2, 4, 7, 7), (2, 4, 4), (3, 4))


class _Builder:
    """Adds steps to a network; a step that does not fit the value at hand becomes a ReLU."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.network = Network()
        self.generator = torch.Generator().manual_seed(1)
        self.input = torch.randn(self.one_of(*_INPUTS), generator=self.generator)
        self.values = [self.input]

    def one_of(self, *options):
        return self.random.choice(options)

    def add_row(self) -> None:
        # Mostly a chain; at times an earlier value is read once more.
        at = max(0, len(self.values) - 1 - self.one_of(0, 0, 0, 0, 0, 1, 2))
        for kind in self.one_of(*_ROWS[self.values[at].ndim]):
            self.add(kind, at)
            at = len(self.values) - 1

    def add(self, kind: str, at: int) -> None:
        if self.values[at].ndim not in _RANKS.get(kind, {2, 3, 4}):
            kind = "relu"
        step = self._step(kind, at)
        try:
            value = step(self.network, self.values)
        except (RuntimeError, ValueError):  # a kernel larger than the image, an odd channel count
            step = Step("relu", (at,))
            value = step(self.network, self.values)
        if value.numel() == 0 or value[0].numel() > 400:
            return
        self.network.steps.append(step)
        self.values.append(value)

    def _step(self, kind: str, at: int) -> Step:
        value = self.values[at]
        if kind in ("add", "cat"):
            free = 1 if kind == "cat" else None
            fitting = [
                i
                for i, other in enumerate(self.values)
                if other.ndim == value.ndim
                and all(
                    a == b or k == free
                    for k, (a, b) in enumerate(zip(other.shape, value.shape, strict=True))
                )
            ]
            return Step(kind, (at, self.one_of(*fitting)))
        if kind in ("multiply", "shift"):
            return Step(kind, (at,), number=self.one_of(0.5, -3.0))
        if kind in ("relu", "flatten", "tokens", "transpose", "mean", "slice"):
            return Step(kind, (at,))
        return Step(kind, (at,), self._module(kind, value))

    def _module(self, kind: str, value: Tensor) -> str:
        """Return the name of a new module, of one that is there, or of one with tied weights."""
        features = value.shape[-1 if kind == "linear" else 1]
        name = f"{kind}{len(list(self.network.children()))}"
        alike = [
            other
            for other, module in self.network.named_children()
            if other.rstrip("0123456789") == kind
            and _features_read(module) in (None, features)
            and (kind != "bn" or type(module) is _NORMS[value.ndim])
        ]
        sharing = self.one_of("new", "new", "again", "tied") if alike else "new"
        if sharing == "again":
            return self.one_of(*alike)
        if sharing == "tied":
            original = getattr(self.network, self.one_of(*alike))
            module = copy.deepcopy(original)
            if kind != "bn" and hasattr(module, "weight"):
                module.weight = original.weight
        else:
            module = self._new_module(kind, value.ndim, features)
        self._fill(module, keep_weight=sharing == "tied" and kind != "bn")
        self.network.add_module(name, module.eval())
        return name

    def _new_module(self, kind: str, rank: int, features: int) -> nn.Module:
        pick, flag = self.one_of, (True, False)
        if kind == "bn":
            return _NORMS[rank](features, affine=pick(True, True, False), eps=pick(1e-5, 1e-2))
        if kind == "linear":
            return nn.Linear(features, pick(2, 4), bias=pick(*flag))
        if kind == "conv":
            padding_mode = pick("zeros", "zeros", "reflect", "replicate", "circular")
            return nn.Conv2d(
                *(features, pick(2, 4), pick(1, 2, 3)),
                stride=pick(1, 1, 2),
                padding=pick(0, 0, 1, 2),
                dilation=pick(1, 1, 2),
                groups=pick(1, 2) if features % 2 == 0 else 1,
                bias=pick(*flag),
                padding_mode=padding_mode,
            )
        if kind == "conv_transpose":
            groups = pick(1, 2) if features % 2 == 0 else 1
            padding = pick(0, 1)
            return nn.ConvTranspose2d(
                features, pick(2, 4), 2, stride=pick(1, 2), padding=padding, groups=groups
            )
        if kind == "max_pool":
            return nn.MaxPool2d(2, stride=pick(1, 2), padding=pick(0, 1))
        if kind == "avg_pool":
            return nn.AvgPool2d(
                2, stride=pick(1, 2), padding=pick(0, 1), count_include_pad=pick(*flag)
            )
        if kind == "shuffle":
            return nn.ChannelShuffle(2)
        return {"upsample": nn.Upsample(scale_factor=2), "dropout": nn.Dropout()}[kind]

    def _fill(self, module: nn.Module, *, keep_weight: bool) -> None:
        """Give a module parameters and statistics far from the identity."""
        style = self.one_of("any", "any", "positive", "no shift") if _is_norm(module) else "any"
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if name == "running_var":
                    tensor.uniform_(0.3, 3, generator=self.generator)
                elif tensor.is_floating_point() and not (keep_weight and name == "weight"):
                    tensor.normal_(generator=self.generator)
                if style == "positive" and name == "weight":
                    tensor.abs_()
                if style == "no shift" and name in ("bias", "running_mean"):
                    tensor.zero_()

    def finish(self) -> tuple[Network, Tensor]:
        if not any(step.kind == "bn" for step in self.network.steps):
            self.add("bn", len(self.values) - 1)
        network = self.network
        read = {i for step in network.steps for i in step.reads}
        network.outputs = [i for i in range(1, len(self.values)) if i not in read]
        if self.one_of(False, False, False, True):
            network.outputs.append(self.one_of(*range(1, len(self.values))))
        return network.eval(), self.input


_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _features_read(module: nn.Module) -> int | None:
    """The number of features a module takes; None if it takes any."""
    for name in ("in_channels", "in_features", "num_features"):
        if hasattr(module, name):
            return getattr(module, name)
    return None


@st.composite
def networks(draw) -> tuple[Network, Tensor]:
    # Choices by a seed are spread evenly, which Hypothesis's own are not; a failure is made small
    # by leaving rows out at the end.
    num_rows = draw(st.integers(1, 5))
    builder = _Builder(draw(st.randoms(use_true_random=True)))
    for _ in range(num_rows):
        builder.add_row()
    return builder.finish()


# --- the bound -----------------------------------------------------------------------------------


def magnitudes(network: Network, x: Tensor) -> tuple[Tensor, ...]:
    """Return M, in float64."""
    twin = copy.deepcopy(network).double()
    with torch.no_grad():
        for module in twin.modules():
            for tensor in module.parameters(recurse=False):
                tensor.abs_()
            if _is_norm(module):
                module.running_mean.abs_().neg_()  # |scale| (x - (-|mean|)) + |beta|
        twin.steps = [
            Step(step.kind, step.reads, step.module, abs(step.number)) for step in twin.steps
        ]
        return twin(x.double().abs())


def roundings(network: Network) -> list[int]:
    """Return K for each output: the most roundings on a way to it, folded or not."""
    paths = [0]
    for step in network.steps:
        module = getattr(network, step.module) if step.module else None
        if hasattr(module, "in_channels") or hasattr(module, "in_features"):
            outputs = getattr(module, "out_channels", None) or module.out_features
            # A product and its sum with the others and the bias, n + 1; a folded bias was summed
            # over the same n weights before.
            own = 2 * (module.weight.numel() // outputs) + 2
        elif module is not None and _is_norm(module):
            # Unfolded: var + eps, root, quotient, gamma, x, mean, beta, sum. Folded: scale and
            # shift take 5, their products with what was folded before 3, rounding to float64
            # and to the type of the weights 2, the product with the weight 1.
            own = 11
        elif step.kind == "avg_pool":
            own = 4 + 1
        elif step.kind == "mean":
            own = 400 + 1  # the builder makes no larger value
        else:
            own = 3  # a sum or a product; taken into a fold, two and the rounding of the map
        paths.append(max(paths[i] for i in step.reads) + own)
    return [paths[i] for i in network.outputs]


def assert_within_the_bound(folded, network: Network, x: Tensor) -> None:
    dtype = x.dtype
    with torch.no_grad():
        got, own = folded(x), network(x)
    unit = torch.finfo(dtype).eps / 2
    for mine, theirs, most, k in zip(
        got, own, magnitudes(network, x), roundings(network), strict=True
    ):
        allowed = 2 * k * unit / (1 - 2 * k * unit) * most
        assert ((mine.double() - theirs.double()).abs() <= allowed).all()


# --- the properties ------------------------------------------------------------------------------


def assert_folds_legally(network: Network, x: Tensor) -> None:
    num_norms = sum(step.kind == "bn" for step in network.steps)
    folded = fold_batchnorm(network, (x,))
    counts = len(folded.report.folded), len(folded.report.refused)
    assert sum(counts) == num_norms, "a BatchNorm is neither folded nor refused"

    # The function, in float64 and in float32.
    network64 = copy.deepcopy(network).double()
    folded64 = fold_batchnorm(network64, (x.double(),))
    assert folded64.report.folded == tuple(
        # The distances differ, of course.
        _with_distance(site, other)
        for site, other in zip(folded.report.folded, folded64.report.folded, strict=True)
    )
    assert folded64.report.refused == folded.report.refused
    assert_within_the_bound(folded64.module, network64, x.double())
    assert_within_the_bound(folded.module, network, x)

    # Each float32 weight is the float64 one, rounded once.
    weights, weights64 = folded.program.state_dict, folded64.program.state_dict
    assert list(weights) == list(weights64)
    for name, weight64 in weights64.items():
        assert_rounded_once(weights[name].detach().numpy(), weight64.detach().numpy(), name)

    # A second fold finds the refused BatchNorms where they were, and changes no bit.
    again = fold_batchnorm(folded.module, (x,))
    assert (len(again.report.folded), len(again.report.refused)) == (0, counts[1])
    assert sorted(again.program.state_dict) == sorted(weights)
    for name, weight in again.program.state_dict.items():
        assert torch.equal(weight, weights[name])


def _with_distance(site, other):
    return dataclasses.replace(site, max_ulp=other.max_ulp)


def assert_rounded_once(weight: np.ndarray, exact: np.ndarray, name: str) -> None:
    if weight.dtype != np.float32:  # how many batches a refused BatchNorm has seen
        assert np.array_equal(weight, exact)
        return
    _, exponent = np.frexp(exact)
    # Both are made from the same scales in extended precision; what is called exact here was
    # rounded to float64 and its twin, before its own rounding, in scale, product and result.
    slack = 5 * 2.0**-53 * np.abs(exact)
    distance = np.abs(weight.astype(np.float64) - exact)
    assert (distance <= 0.5 * 2.0 ** (exponent - 24.0) + slack).all(), name


def _settings(max_examples: int, *phases: Phase) -> settings:
    return settings(
        phases=(Phase.explicit, Phase.generate, *phases),
        max_examples=max_examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@_settings(80)  # a failure is told at once; the slow test makes it small first
@given(networks())
def test_a_random_network_keeps_its_function(made):
    assert_folds_legally(*made)


@pytest.mark.slow
@_settings(1000, Phase.shrink)
@given(networks())
def test_a_thousand_random_networks_keep_their_function(made):
    assert_folds_legally(*made)
