"""Plain programs are written by `plain_model`; whatever has a form it does not know is not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resdeploy.export.plain_translation import plain_model
from resdeploy.export.trace import trace
from tests.support.fold_judge import assert_same_function


class Plain(nn.Module):
    """Every operator that has a plain form, with every argument away from its default."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(
            4, 8, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2
        )
        self.norm = nn.BatchNorm2d(8, eps=3e-4)
        self.norm.running_mean.uniform_()
        self.norm.running_var.uniform_(0.5, 2)
        self.pool = nn.MaxPool2d((3, 2), padding=(1, 0), dilation=(1, 2), stride=(2, 1))
        self.head = nn.Linear(8, 5, bias=False)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        y = self.pool(self.norm(self.conv(x)))
        return self.last(self.head(torch.flatten(F.adaptive_avg_pool2d(y + F.relu(y), 1), 1)))


class Calls(nn.Module):
    """One function of the input and of a weight."""

    def __init__(self, function, weight, name="weight"):
        super().__init__()
        self.function = function
        self.register_parameter(name, nn.Parameter(weight))

    def forward(self, x):
        return self.function(x, *self.parameters())


ROW, FOUR = torch.ones(7), torch.ones(4)
NOT_PLAIN = {
    "a norm without scale and shift": (lambda x, w: F.batch_norm(x, w, w), FOUR),
    "a pool whose windows reach beyond": (lambda x, w: F.max_pool2d(x, 2, ceil_mode=True), ROW),
    "a pool to two pixels": (lambda x, w: F.adaptive_avg_pool2d(x, 2), ROW),
    "a flatten of the last axes": (lambda x, w: torch.flatten(x, 2), ROW),
    "a flatten of inner axes": (lambda x, w: torch.flatten(x, 1, 2), ROW),
    "a linear layer of pixels": (lambda x, w: F.linear(x, w), torch.ones(2, 7)),
    "a sum with a factor": (lambda x, w: torch.add(x, w, alpha=2), ROW),
    "a sum with a number": (lambda x, w: x + 2, ROW),
    "a sum of two types": (lambda x, w: x + w, ROW.double()),
    "an output twice": (lambda x, w: (F.relu(x),) * 2, ROW),
    "an input as output": (lambda x, w: (F.relu(x), x), ROW),
    "another operator": (lambda x, w: torch.sigmoid(x), ROW),
}


def inputs():
    return (torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0)),)


def test_a_plain_program_becomes_one_node_for_each_operator_and_computes_the_same():
    module = Plain().eval()
    model = plain_model(trace(module, inputs()), opset=18)
    assert model is not None
    assert [node.op_type for node in model.graph] == [
        *("Conv", "BatchNormalization", "MaxPool", "Relu", "Add"),
        *("GlobalAveragePool", "Flatten", "Gemm", "Gemm"),
    ]
    assert_same_function(model, module, inputs())


@pytest.mark.parametrize(("function", "weight"), NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_has_no_plain_form_is_left_to_the_exporter(function, weight):
    assert plain_model(trace(Calls(function, weight), inputs()), opset=18) is None


def test_two_values_of_one_name_are_left_to_the_exporter():
    for name, is_plain in (("relu", False), ("other", True)):
        module = Calls(lambda x, w: F.relu(x) + w, ROW, name)
        assert (plain_model(trace(module, inputs()), opset=18) is not None) == is_plain


def test_an_operator_of_another_library_is_not_taken_for_one_of_aten():
    with torch.library._scoped_library("resdeploy_test", "FRAGMENT") as library:
        library.define("relu(Tensor self) -> Tensor")
        library.impl("relu", lambda x: x * 2, "CompositeExplicitAutograd")
        module = Calls(lambda x, w: torch.ops.resdeploy_test.relu(x), ROW)
        assert plain_model(trace(module, inputs()), opset=18) is None


@pytest.mark.parametrize("function", [F.conv2d, lambda x, w: F.max_pool2d(x, 2)])
def test_windows_over_one_image_without_a_batch_are_left_to_the_exporter(function):
    module = Calls(function, torch.ones(1, 2, 1, 1))
    program = trace(module, (ROW.expand(2, 9, 7),), dynamic_batch=False)
    assert plain_model(program, opset=18) is None
