"""Python numbers of a forward pass, exact in the reference though ONNX holds float32."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from writers import Net

from resdeploy.errors import UnsupportedModelError
from resdeploy.export import reference as reference_module
from resdeploy.export.golden import golden_for
from resdeploy.export.source import model_of_module

FORWARDS = {
    "factor and term": lambda m, x: 0.1 * x + 0.3,
    "bounds": lambda m, x: x.clamp(-0.1, 0.7),
    "negative bounds": lambda m, x: torch.clamp(x, max=-0.3) / 0.7,
    "leaky relu": lambda m, x: F.leaky_relu(x, 0.01),
    "leaky relu of a third": lambda m, x: F.leaky_relu(x, 1 / 3),
    "elu": lambda m, x: F.elu(x, 0.7),
    "celu": lambda m, x: F.celu(x, 0.3),
    "selu": lambda m, x: F.selu(x),
    "hard sigmoid": lambda m, x: F.hardsigmoid(x),
    "hard swish": lambda m, x: F.hardswish(x),
    "gelu": lambda m, x: F.gelu(x),
    "a root": lambda m, x: x * 7**-0.5,
    "softplus": lambda m, x: F.softplus(x, beta=0.7),
    "power": lambda m, x: x.abs() ** 1.3,
}


def source(forward):
    torch.manual_seed(0)
    return model_of_module(
        nn.Sequential(nn.Linear(6, 12), Net(forward), nn.Linear(12, 4)).eval(), (6,)
    )


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_a_reference_computes_with_the_numbers_of_the_forward_pass(forward):
    model = source(forward)
    reference_module.reference_graph(model, golden_for(model, num_inputs=4, in_detail=False))


def test_a_number_that_was_not_recovered_is_seen(monkeypatch):
    model = source(FORWARDS["factor and term"])
    golden = golden_for(model, num_inputs=4, in_detail=False)
    monkeypatch.setattr(reference_module, "recover_numbers", lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="of float32's noise"):
        reference_module.reference_graph(model, golden)


def test_a_parameter_of_float32_stays_what_it_is():
    # The check would refuse a parameter that was taken for the decimal 0.1.
    torch.manual_seed(0)
    scaled = Net(
        lambda m, x: m.tenth * m.layer(x),
        tenth=nn.Parameter(torch.tensor(0.1)),
        layer=nn.Linear(6, 4),
    )
    model = model_of_module(scaled.eval(), (6,))
    reference_module.reference_graph(model, golden_for(model, num_inputs=4, in_detail=False))
