"""ResNets on a real GPU: what each arithmetic is called there, and that nothing runs elsewhere."""

import onnx
import pytest
import torch

from resdeploy.export.export import export_onnx
from resdeploy.export.golden import golden_for
from resdeploy.export.source import SourceModel
from resdeploy.networks import build_network
from resdeploy.quant.float16 import convert
from resdeploy.quant.prepare import prepare
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.recipes import ModelSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.verify.outputs import judge_outputs

pytestmark = pytest.mark.cuda

EXACT = SessionSpec(provider="cuda")
SHAPE = (3, 64, 64)


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def made(request, tmp_path_factory):
    """Return an exported network with lifelike statistics, and its golden reference."""
    torch.manual_seed(0)
    network = build_network(ModelSpec(arch=request.param, num_classes=10))
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                # As made, a residual branch is multiplied by zero, and its faults would not show.
                part.weight.uniform_(0.5, 1.5)
        for _ in range(3):
            network(torch.randn(16, *SHAPE))
    source = SourceModel(
        module=network.eval(), input_shape=SHAPE, description=request.param, info=None
    )
    golden = golden_for(source, num_inputs=16)
    path = tmp_path_factory.mktemp("cuda") / "model.onnx"
    export_onnx(source, ExportSpec(), path, golden=golden)
    return path, golden


def verdict_of(path, golden, session, precision):
    (verdict,) = judge_outputs(path, golden, [session], precision=precision).verdicts
    assert not verdict.placement.reasons
    assert set(verdict.placement.executed) == {"CUDAExecutionProvider"}
    return verdict


def test_without_tf32_it_is_float32(made):
    verdict = verdict_of(*made, EXACT, "float32")
    assert verdict.passed, verdict.reasons
    assert verdict.comparison.precision.found == "float32"
    assert verdict.attribution.exact.found == "float32"


def test_tf32_is_called_tf32_and_passes_as_that_alone(made):
    session = SessionSpec(provider="cuda", use_tf32=True)
    claimed_exact = verdict_of(*made, session, "float32")
    assert not claimed_exact.passed
    assert claimed_exact.comparison.precision.found == "tf32"
    assert verdict_of(*made, session, "tf32").passed


@pytest.mark.parametrize("settings", [{}, {"prefer_nhwc": True}, {"cuda_graph": True}])
def test_float16_is_called_float16_whatever_the_layout(made, tmp_path, settings):
    path, golden = made
    half = tmp_path / "half.onnx"
    onnx.save(convert(prepare(onnx.load(path)), "float16", keep_io=True), half)
    session = SessionSpec(provider="cuda", **settings)
    assert not verdict_of(half, golden, session, "float32").passed
    verdict = verdict_of(half, golden, session, "float16")
    assert verdict.passed, verdict.reasons
    assert verdict.comparison.precision.found == "float16"
