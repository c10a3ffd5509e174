"""Boards by name: what is written for each, and what is refused."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.export.export import export_onnx
from resdeploy.export.source import model_of_module
from resdeploy.machine.boards import BOARDS
from resdeploy.machine.compatibility import for_target
from resdeploy.schema.exports import ExportSpec


class Network(nn.Module):
    """What residual networks are made of, and the activations of small ones."""

    def __init__(self, extra=None):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(8, 5)
        self.extra = extra or nn.Identity()

    def forward(self, x):
        y = nn.functional.relu6(self.norm(self.conv(x)))
        y = self.pool(y + nn.functional.hardswish(y))
        return self.fc(self.extra(y).mean((2, 3)))


def source(extra=None):
    torch.manual_seed(0)
    return model_of_module(Network(extra).eval(), (3, 12, 12))


@pytest.mark.parametrize("name", BOARDS)
def test_a_file_for_a_board_is_in_its_form(name, tmp_path):
    board = BOARDS[name]
    spec = for_target(ExportSpec(), opset=None, target=Path(name))
    report = export_onnx(source(), spec, tmp_path / "model.onnx")
    assert report.verification.passed
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (opset,) = model.opset_import
    assert board.oldest <= opset.version == board.writes <= board.newest
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_value == (board.batch or 0)
    assert not board.lacks.intersection(node.op_type for node in model.graph.node)
    assert board.sources
    assert all(url.startswith("https://") for url in board.sources)


@pytest.mark.parametrize(
    ("board", "extra", "operator"),
    [
        ("tensorrt8", nn.LayerNorm(5), "LayerNormalization"),
        ("jetpack5", nn.LayerNorm(5), "LayerNormalization"),
        ("rknn", nn.SELU(), "Selu"),
    ],
)
def test_an_operator_that_a_board_lacks_is_refused_by_name(board, extra, operator, tmp_path):
    spec = for_target(ExportSpec(), opset=None, target=Path(board))
    with pytest.raises(UnsupportedModelError, match=f"has no {operator}") as caught:
        export_onnx(source(extra), spec, tmp_path / "model.onnx")
    assert "https://" in caught.value.fix
    assert not [*tmp_path.iterdir()]


def test_an_opset_that_a_board_does_not_read_is_refused():
    with pytest.raises(ResdeployError, match="reads opsets 12 to 19, not 11"):
        for_target(ExportSpec(), opset=11, target=Path("rknn"))


def test_a_batch_that_a_board_does_not_take_is_refused():
    with pytest.raises(ResdeployError, match="1 sample at a time, not 4"):
        for_target(ExportSpec(batch=4), opset=None, target=Path("rknn"))


def test_an_unknown_board_is_answered_with_the_known_ones():
    with pytest.raises(ResdeployError, match="no board called 'rkn'") as caught:
        for_target(ExportSpec(), opset=None, target=Path("rkn"))
    assert all(name in caught.value.fix for name in BOARDS)


def test_a_runtime_is_a_target_by_its_version():
    spec = for_target(ExportSpec(), opset=None, target=Path("onnxruntime-1.9"))
    assert (spec.opset, spec.newest_ir_version) == (15, 8)
