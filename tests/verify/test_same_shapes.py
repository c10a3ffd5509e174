"""A wrong reference is refused by its shapes, before its float64 outputs are computed."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import resdeploy
from resdeploy.errors import ResdeployError
from resdeploy.export import golden
from resdeploy.verify import reference_file
from resdeploy.verify.same_shapes import refuse_other_shapes


def network(num_classes: int, num_channels: int = 1) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * num_channels, num_classes)).eval()


def save(path, num_classes: int) -> None:
    weight = numpy_helper.from_array(np.zeros((64, num_classes), np.float32), "weight")
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", num_classes])
    graph = helper.make_graph(nodes, "graph", [x], [y], [weight])
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)


@pytest.fixture
def files(tmp_path):
    for num_classes in (10, 3):
        save(tmp_path / f"{num_classes}.onnx", num_classes)
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "shape", "message"),
    [
        (network(3), None, r"its output has shape \(3\), that of the model \(10\)"),
        (
            network(10, 3),
            (3, 8, 8),
            r"its input has shape \(3, 8, 8\), that of the model \(1, 8, 8\)",
        ),
        ("3.onnx", None, r"its output has shape \(3\), that of the model \(10\)"),
    ],
)
def test_another_network_is_refused_before_anything_is_computed(
    files, monkeypatch, reference, shape, message
):
    for module, name in ((golden, "make_golden"), (reference_file, "golden_from_outputs")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("it ran"))
    if isinstance(reference, str):
        reference = files / reference
    with pytest.raises(ResdeployError, match=message):
        resdeploy.verify(files / "10.onnx", reference, input_shape=shape)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([("batch", 3, 8, 8)], [(1, 3, 8, 8)]),
        ([("batch", 8, 8, 3)], [(1, 3, 8, 8)]),  # a layout, which others judge
        ([("batch", 3, "height", "width")], [(1, 3, 8, 8)]),
        ([(4, 10)], [("n", 10)]),
        ([], [(1, 3)]),
    ],
)
def test_what_may_be_the_same_is_left_to_the_proof(found, expected):
    refuse_other_shapes("input", found, expected, reference="a.pth")
