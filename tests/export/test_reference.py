"""The reference graph is the model, or there is none."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from resdeploy.errors import UnsupportedModelError
from resdeploy.export import reference as reference_module
from resdeploy.export.golden import golden_for
from resdeploy.export.reference import reference_graph
from resdeploy.export.source import SourceModel
from resdeploy.graph.float64 import evaluate_float64
from resdeploy.verify.normal_form import skeleton_of


@pytest.fixture(scope="module")
def source():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        )
        module(torch.randn(8, 3, 8, 8))
        nn.init.normal_(module[1].bias)
    return SourceModel(module=module.eval(), input_shape=(3, 8, 8), description="a test", info=None)


@pytest.fixture(scope="module")
def golden(source):
    return golden_for(source, num_inputs=4)


def test_it_computes_in_float64_what_the_module_does(source, golden):
    reference = reference_graph(source, golden)
    assert reference.is_exact
    name = reference.model.graph.input[0].name
    (y,) = evaluate_float64(reference.model, {name: golden.inputs}).values()
    assert np.abs(y - golden.reference).max() < 1e-13
    assert source.module[0].weight.dtype is torch.float32


def test_its_biases_know_what_they_were_added_up_from(source, golden):
    reference = reference_graph(source, golden)
    conv, norm = source.module[0], source.module[1]
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    terms = norm.bias.abs() + (scale * norm.running_mean).abs() + (scale * conv.bias).abs()
    found = reference.bias_magnitudes["0"]
    np.testing.assert_allclose(found, terms.detach().numpy(), rtol=1e-6)
    first = skeleton_of(reference.model, bias_magnitudes=reference.bias_magnitudes).nodes[0]
    np.testing.assert_allclose(first.affine.bias_magnitude, found)
    assert (found > 1.01 * np.abs(first.affine.bias)).any()


def test_a_graph_that_computes_something_else_is_no_reference(source, golden):
    shifted = golden.reference + golden.noise_l2[:, None] / 10
    with pytest.raises(UnsupportedModelError, match="no reference"):
        reference_graph(source, dataclasses.replace(golden, reference=shifted))


def test_a_single_input_proves_it_too(source, golden, monkeypatch):
    called = []
    honest = reference_module.evaluate_float64
    monkeypatch.setattr(
        reference_module, "evaluate_float64", lambda *a: called.append(1) or honest(*a)
    )
    one = golden_for(source, num_inputs=1)
    reference_graph(source, one)
    assert called


def test_a_model_of_fixed_batch_has_a_reference_too(golden):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, 192).sum(dim=1, keepdim=True)

    fixed = SourceModel(module=Fixed(), input_shape=(3, 8, 8), description="fixed", info=None)
    found = reference_graph(fixed, golden_for(fixed, num_inputs=2, batch=2), batch=2)
    assert found.model.graph.node


def test_a_model_and_its_yardstick_take_two_traces(source, monkeypatch):
    genuine, calls = torch.export.export, []
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: calls.append(1) or genuine(*a, **k))
    reference_graph(source, golden_for(source, num_inputs=4))
    assert len(calls) == 2
