"""The exported file: what it holds, what it must not hold, and when there is none."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resdeploy.api.arguments import model_of
from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.export import export as export_module
from resdeploy.export.channels_last import channels_last
from resdeploy.export.embedded import embed_preprocess
from resdeploy.export.export import export_onnx
from resdeploy.export.golden import golden_for, run_module
from resdeploy.export.source import SourceModel
from resdeploy.export.source_inputs import SourceInputs
from resdeploy.networks import build_network
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.files import InputSpec
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess

MODEL = ModelSpec(arch="cifar_resnet20", num_classes=10)
PREPROCESS = Preprocess(input_shape=(3, 16, 16), divisor=255.0)


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    network = build_network(MODEL)
    network(torch.randn(8, 3, 16, 16))  # gives the BatchNorms statistics
    return SourceModel(
        module=network.eval(),
        input_shape=(3, 16, 16),
        description="a ResNet-20",
        info=CheckpointInfo(
            model=MODEL, preprocess=PREPROCESS, labels=tuple(f"class {k}" for k in range(10))
        ),
    )


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return path, export_onnx(source, ExportSpec(), path)


def test_the_file_holds_layers_and_nothing_else(exported):
    path, report = exported
    model = onnx.load(path)
    kinds = {node.op_type for node in model.graph.node}
    assert kinds == {"Conv", "Relu", "Add", "GlobalAveragePool", "Reshape", "Gemm"}
    assert report.num_nodes == len(model.graph.node)
    assert report.fold.complete
    onnx.checker.check_model(model, full_check=True)


def test_input_output_and_batch_have_their_names(exported):
    path, report = exported
    (entry,), (result,) = report.inputs, report.outputs
    assert (entry.name, entry.dtype, entry.shape) == ("input", "float", ("batch", 3, 16, 16))
    assert (result.name, result.shape) == ("logits", ("batch", 10))
    session = ort.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 3, 16, 16]


def test_nodes_are_called_by_their_modules(exported):
    names = {node.name for node in onnx.load(exported[0]).graph.node}
    assert {"conv1/Conv", "layer2.0.conv2/Conv", "linear/Gemm"} <= names


def test_what_a_layer_gained_is_called_after_its_weight(exported):
    model = onnx.load(exported[0])
    biases = {node.input[-1] for node in model.graph.node if node.op_type == "Conv"}
    assert {"conv1.bias", "layer1.0.conv1.bias"} <= biases
    assert not any(node.metadata_props for node in model.graph.node)


def test_sites_are_called_by_their_modules(exported):
    report = exported[1].fold
    assert ("layer1.0.bn1", "layer1.0.conv1") in [(s.site, s.producer) for s in report.folded]


def test_a_model_is_traced_once(source, tmp_path, monkeypatch):
    genuine, calls = torch.export.export, []
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: calls.append(1) or genuine(*a, **k))
    export_onnx(source, ExportSpec(), tmp_path / "model.onnx")
    assert len(calls) == 1


def test_nothing_of_the_build_machine_is_in_the_file(exported):
    raw = exported[0].read_bytes()
    for trace in (str(Path(__file__).parents[2]), "site-packages", ".py", "torch", "stack"):
        assert trace.encode() not in raw


def test_labels_and_preprocessing_are_in_the_file(exported):
    metadata = {p.key: p.value for p in onnx.load(exported[0]).metadata_props}
    assert json.loads(metadata["resdeploy.labels"])[3] == "class 3"
    assert json.loads(metadata["resdeploy.preprocess"])["divisor"] == 255.0
    assert metadata["resdeploy.source"] == "a ResNet-20"


def test_the_same_model_gives_the_same_bytes(source, exported, tmp_path):
    again = tmp_path / "again.onnx"
    export_onnx(source, ExportSpec(), again)
    assert again.read_bytes() == exported[0].read_bytes()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_a_dynamic_batch_takes_any_size(source, exported, batch_size):
    x = np.random.default_rng(0).normal(size=(batch_size, 3, 16, 16)).astype(np.float32)
    outputs = ort.InferenceSession(exported[0]).run(None, {"input": x})[0]
    expected = run_module(source.module, x, dtype=torch.float32)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_fixed(source, tmp_path, batch):
    report = export_onnx(source, ExportSpec(batch=batch), tmp_path / "model.onnx")
    assert report.inputs[0].shape[0] == report.outputs[0].shape[0] == batch
    assert report.verification.passed


@pytest.mark.parametrize("opset", [9, 12, 17, 22])
def test_the_opset_is_the_one_that_was_asked_for(source, tmp_path, opset):
    """torch's exporter writes 18 for everything below, and says so only in its log."""
    export_onnx(source, ExportSpec(opset=opset), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert [item.version for item in model.opset_import] == [opset]


def test_inputs_and_outputs_have_the_names_that_were_asked_for(source, tmp_path):
    # The second is the name of a weight in the file.
    spec = ExportSpec(input_names=("data",), output_names=("conv1.weight",))
    report = export_onnx(source, spec, tmp_path / "model.onnx")
    assert report.verification.passed
    assert [one.name for one in (*report.inputs, *report.outputs)] == ["data", "conv1.weight"]
    with pytest.raises(ResdeployError, match="1 inputs, which are given 2 names"):
        export_onnx(source, ExportSpec(input_names=("a", "b")), tmp_path / "other.onnx")


def test_a_model_of_images_with_channels_last_keeps_its_names(source, tmp_path):
    turned = channels_last(source)
    report = export_onnx(turned, ExportSpec(), tmp_path / "model.onnx")
    assert report.verification.passed
    assert report.inputs[0].shape == ("batch", 16, 16, 3)
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert [node.op_type for node in nodes].count("Transpose") == 1
    assert "layer2.0.conv2/Conv" in {node.name for node in nodes}
    assert turned.preprocess.layout == "NHWC"
    assert not source.module._forward_pre_hooks


def test_stated_preprocessing_and_a_named_input_turn_with_the_channels():
    module = nn.Conv2d(3, 4, 3).eval()
    stated = SourceInputs(input_shape=(3, 8, 6), preprocess=PREPROCESS, labels=(), notes=())
    source = SourceModel(
        module=module,
        input_shape=(3, 8, 6),
        description="a layer",
        info=None,
        stated=stated,
        inputs=(InputSpec(name="x", shape=(3, 8, 6)),),
    )
    turned = channels_last(source)
    assert turned.preprocess.layout == "NHWC"
    assert turned.sample_shape == {"x": (8, 6, 3)}


@pytest.mark.parametrize("turn", [channels_last, embed_preprocess])
def test_several_inputs_have_no_one_layout_or_preprocessing(source, turn):
    inputs = tuple(InputSpec(name=name, shape=(3, 16, 16)) for name in ("left", "right"))
    with pytest.raises(ResdeployError, match="several inputs: left, right"):
        turn(dataclasses.replace(source, inputs=inputs))


def test_open_sides_are_those_of_channels_first(source):
    with pytest.raises(UnsupportedModelError, match="height and width are to stay open") as caught:
        model_of(source, layout="NHWC", dynamic=("height", "width"))
    assert "--layout or --dynamic" in caught.value.fix


@pytest.mark.parametrize("opset", [8, 99])
def test_refuses_an_opset_out_of_range(source, tmp_path, opset):
    with pytest.raises(ResdeployError, match="is not supported") as caught:
        export_onnx(source, ExportSpec(opset=opset), tmp_path / "model.onnx")
    assert "from 9 to" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_without_folding_every_batchnorm_stays(source, tmp_path):
    report = export_onnx(source, ExportSpec(fold=False), tmp_path / "model.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds.count("BatchNormalization") == 19
    assert report.fold is None
    assert report.verification.passed


def test_a_model_that_computes_something_else_is_not_written(source, tmp_path, monkeypatch):
    """One bias off by a part in ten thousand, planted after the fold."""
    genuine = export_module.optimize

    def off_by_a_little(model, **options):
        optimized = genuine(model, **options)
        weight = optimized.model.graph.initializers["layer2.0.conv1.weight"]
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1 + 1e-4))
        return optimized

    monkeypatch.setattr(export_module, "optimize", off_by_a_little)
    report = export_onnx(source, ExportSpec(), tmp_path / "model.onnx")
    assert not report.verification.passed
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_without_force(source, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("precious")
    with pytest.raises(ResdeployError, match="exists already"):
        export_onnx(source, ExportSpec(), path)
    assert path.read_text() == "precious"
    export_onnx(source, ExportSpec(), path, force=True)
    assert onnx.load(path).graph.node


def test_what_the_exporter_cannot_translate_is_an_error_with_a_fix(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    source = SourceModel(module=Odd().eval(), input_shape=(4, 4), description="odd", info=None)
    with pytest.raises(UnsupportedModelError, match=r"torch\.onnx\.export cannot translate"):
        export_onnx(source, ExportSpec(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_stages_are_announced_in_order(source, tmp_path):
    stages = []
    export_onnx(source, ExportSpec(), tmp_path / "model.onnx", on_stage=stages.append)
    assert stages == ["trace", "translate", "simplify", "fold", "verify"]


def test_golden_inputs_of_the_caller_are_used(source, tmp_path):
    golden = golden_for(source, num_inputs=5)
    report = export_onnx(source, ExportSpec(), tmp_path / "model.onnx", golden=golden)
    assert report.verification.golden.num_inputs == 5


@pytest.mark.parametrize(
    "reduce",
    [
        lambda y: F.adaptive_avg_pool2d(y, 1),
        lambda y: y.mean((2, 3), keepdim=True),
        lambda y: y.amax((-1, -2), keepdim=True),
        lambda y: y.sum(-1, keepdim=True),
    ],
)
def test_what_was_reduced_is_resized_in_any_batch(tmp_path, reduce):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            return F.interpolate(reduce(y), size=y.shape[-2:], mode="bilinear")

    torch.manual_seed(0)
    source = SourceModel(module=Net().eval(), input_shape=(3, 6, 8), description="", info=None)
    assert export_onnx(source, ExportSpec(), tmp_path / "model.onnx").verification.passed


@pytest.mark.parametrize(
    "module", [nn.Identity(), nn.Dropout(0.5), nn.Sequential(nn.Identity(), nn.Identity())]
)
def test_a_model_that_returns_its_input_is_one_identity(tmp_path, module):
    source = SourceModel(module=module.eval(), input_shape=(4,), description="", info=None)
    assert export_onnx(source, ExportSpec(), tmp_path / "model.onnx").verification.passed
    (node,) = onnx.load(tmp_path / "model.onnx").graph.node
    assert node.op_type == "Identity"


@pytest.mark.parametrize("open_sides", [(), ("height", "width")])
@pytest.mark.parametrize("resize", [{"size": (12, 12)}, {"scale_factor": 0.6}])
def test_a_nearest_value_that_rounding_chooses_is_refused(tmp_path, resize, open_sides):
    class Net(nn.Module):
        def forward(self, x):
            return F.interpolate(x * 2, mode="nearest", **resize)

    source = SourceModel(
        module=Net().eval(),
        input_shape=(3, 20, 20),
        description="",
        info=None,
        open_sides=open_sides,
    )
    with pytest.raises(UnsupportedModelError, match="nearest, where rounding may take") as caught:
        export_onnx(source, ExportSpec(), tmp_path / "model.onnx")
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale_factor", [2, 3.0, (2, 4)])
def test_nearest_by_a_whole_factor_takes_open_sides(tmp_path, scale_factor):
    class Net(nn.Module):
        def forward(self, x):
            return F.interpolate(x * 2, scale_factor=scale_factor, mode="nearest")

    source = SourceModel(
        module=Net().eval(),
        input_shape=(3, 6, 10),
        description="",
        info=None,
        open_sides=("height", "width"),
    )
    assert export_onnx(source, ExportSpec(), tmp_path / "model.onnx").verification.passed
