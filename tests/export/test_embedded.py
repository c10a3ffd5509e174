"""Preprocessing embedded in the model: the same function, border included, and proof of it."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from resdeploy.api.bundle import bundle as make_bundle
from resdeploy.bundle.check import check_bundle
from resdeploy.bundle.folder import read_bundle
from resdeploy.data.preprocess import preprocess_batch
from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.export.embedded import EmbeddedNetwork, embed_preprocess
from resdeploy.export.export import export_onnx
from resdeploy.export.golden import golden_for, make_golden
from resdeploy.export.reference import reference_graph
from resdeploy.export.source import SourceModel
from resdeploy.networks import build_network
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.run import run_session
from resdeploy.session.session import open_session
from resdeploy.verify.certify import add_certificate, certify_file
from resdeploy.verify.outputs import judge_outputs
from resdeploy.verify.reference_file import load_reference
from resdeploy.verify.run_layers import expose

MODEL = ModelSpec(arch="resnet8_tiny", num_classes=10)
PREPROCESS = Preprocess(
    input_shape=(3, 12, 16),
    divisor=255.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def source_of(module, preprocess=PREPROCESS):
    info = CheckpointInfo(model=MODEL, preprocess=preprocess)
    shape = (3, 12, 16) if preprocess is None else preprocess.input_shape
    return SourceModel(module=module, input_shape=shape, description="test", info=info)


@pytest.fixture(scope="module")
def plain():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_network(MODEL)
        for _ in range(3):
            module(torch.randn(16, 3, 12, 16) * 1.3 + 0.2)
    return source_of(module.eval())


@pytest.fixture(scope="module")
def source(plain):
    return embed_preprocess(plain)


@pytest.fixture(scope="module")
def golden(source):
    return golden_for(source, num_inputs=32)


@pytest.fixture(scope="module")
def exported(source, golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("embedded") / "model.onnx"
    report = export_onnx(source, ExportSpec(), path, golden=golden)
    return path, report


def certified(model, source, golden, path):
    """Return the whole verdict on a model."""
    onnx.save(model, path)
    report = judge_outputs(path, golden, [SessionSpec()])
    candidate = certify_file(model, reference_graph(source, golden))

    def run_on(spec):
        return lambda model, inputs: open_session(model, spec).run(inputs)

    return add_certificate(report, candidate, golden.inputs, run_on)[0]


# --- the network ---------------------------------------------------------------------------------


def test_in_float64_the_normalisation_is_exact(plain, source):
    """mean and std as they were written, not as float32 holds them."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 12, 16, 3), dtype=np.uint8)
    wide = (pixels / 255 - np.array(PREPROCESS.mean)) / np.array(PREPROCESS.std)
    x = torch.from_numpy(wide.transpose(0, 3, 1, 2).copy())
    module = EmbeddedNetwork(nn.Identity(), source.preprocess)
    np.testing.assert_allclose(module(torch.from_numpy(pixels).double()), x, rtol=1e-14)
    raw = pixels.transpose(0, 3, 1, 2)
    explicit = torch.from_numpy(preprocess_batch(raw, PREPROCESS))
    with torch.no_grad():
        ours = source.module(torch.from_numpy(pixels).float())
        assert torch.equal(ours, plain.module(explicit))


def test_golden_inputs_are_pixels_and_every_output_has_its_deviation(golden):
    assert golden.inputs.dtype == np.uint8
    assert golden.inputs.shape == (32, 12, 16, 3)
    assert golden.info.inputs == "32 seeded images"
    assert golden.sigma is not None
    assert golden.info.sigma_missing is None


def test_rounding_the_centre_is_part_of_every_deviation(plain, golden):
    """Beside the same network whose inputs are exact."""
    inputs = preprocess_batch(golden.inputs.transpose(0, 3, 1, 2), PREPROCESS)
    exact = make_golden(plain.module, inputs, source="test", inputs_description="same")
    ratio = golden.sigma / exact.sigma
    assert ratio.min() > 1
    assert ratio.max() < 2


# --- the export ----------------------------------------------------------------------------------


def test_the_model_takes_pixels_and_is_certified_in_full(source, golden, exported, tmp_path):
    path, report = exported
    assert report.verification.passed
    assert (report.inputs[0].dtype, report.inputs[0].shape) == ("uint8", ("batch", 12, 16, 3))
    verdict = certified(onnx.load(path), source, golden, tmp_path / "model.onnx")
    assert verdict.passed, verdict.reasons
    assert verdict.structure.isomorphic
    assert verdict.static.limit_ulp < 0.51
    assert verdict.verdicts[0].node_local.passed
    assert "pixels/Sub" in [node.node for node in verdict.verdicts[0].node_local.nodes]


def test_it_predicts_as_the_explicit_model_does(plain, exported, tmp_path):
    export_onnx(plain, ExportSpec(), tmp_path / "plain.onnx")
    raw = np.random.default_rng(1).integers(0, 256, (100, 3, 12, 16), dtype=np.uint8)
    embedded = dataclasses.replace(PREPROCESS, embedded=True)
    explicit = run_session(
        open_session(tmp_path / "plain.onnx", SessionSpec()), preprocess_batch(raw, PREPROCESS)
    )
    ours = run_session(open_session(exported[0], SessionSpec()), preprocess_batch(raw, embedded))
    assert (ours.argmax(1) == explicit.argmax(1)).all()
    np.testing.assert_allclose(ours, explicit, atol=2e-6 * np.abs(explicit).max())


@pytest.mark.parametrize("spec", [ExportSpec(fold=False), ExportSpec(batch=2, opset=13)])
def test_unfolded_and_with_a_fixed_batch_it_is_the_same(source, golden, spec, tmp_path):
    report = export_onnx(source, spec, tmp_path / "model.onnx", golden=golden)
    assert report.verification.passed
    assert (report.fold is None) == (not spec.fold)
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds[:4] == ["Transpose", "Cast", "Sub", "Conv"]
    assert ("BatchNormalization" in kinds) == (not spec.fold)


def test_as_a_reference_it_is_given_pixels_and_certifies_its_unfolded_self(
    source, golden, exported, tmp_path
):
    unfolded = tmp_path / "unfolded.onnx"
    export_onnx(source, ExportSpec(fold=False), unfolded, golden=golden)
    plain = SessionSpec(graph_level="disabled")
    pixels, reference = load_reference(
        unfolded,
        num_inputs=8,
        open_model=lambda model: open_session(model, plain).run,
    )
    assert pixels.inputs.dtype == np.uint8
    assert judge_outputs(exported[0], pixels, [SessionSpec()]).passed
    certificate = certify_file(onnx.load(exported[0]), reference)
    assert certificate.structure.isomorphic
    assert certificate.static.passed


# --- the border ----------------------------------------------------------------------------------


def naive(model):
    """Return the model with its centre folded into the bias of the first layer."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    arrays = {t.name: t for t in model.graph.initializer}
    difference, first = model.graph.node[2], model.graph.node[3]
    assert (difference.op_type, first.op_type) == ("Sub", "Conv")
    centre_C, weight, bias = (
        numpy_helper.to_array(arrays[name]).astype(np.float64)
        for name in (difference.input[1], *first.input[1:])
    )
    wrong = bias - weight.sum(axis=(2, 3)) @ centre_C.ravel()
    arrays[first.input[2]].CopyFrom(
        numpy_helper.from_array(wrong.astype(np.float32), first.input[2])
    )
    first.input[0] = difference.input[0]
    model.graph.node.remove(difference)
    return model


def first_layer(model, pixels):
    (name,) = next(node for node in model.graph.node if node.op_type == "Conv").output
    return open_session(expose(model, [name]), SessionSpec()).run({"input": pixels})[name]


def test_every_pixel_of_the_first_layer_is_right_and_naively_the_border_is_not(
    plain, exported, golden
):
    """Zeros around normalised images stand for pixels of the mean, not for black ones."""
    model = onnx.load(exported[0])
    x = torch.from_numpy(preprocess_batch(golden.inputs.transpose(0, 3, 1, 2), PREPROCESS)).double()
    conv, norm = (module.double() for module in first_modules(plain))
    with torch.no_grad():
        expected = norm(conv(x)).numpy()
    scale = np.abs(expected).max()
    ours = np.abs(first_layer(model, golden.inputs) - expected) / scale
    wrong = np.abs(first_layer(naive(model), golden.inputs) - expected) / scale
    assert ours.max() < 1e-6
    assert wrong[:, :, 1:-1, 1:-1].max() < 1e-5
    for border in (wrong[:, :, 0], wrong[:, :, -1], wrong[..., 0], wrong[..., -1]):
        assert border.max() > 0.1


def first_modules(source):
    import copy

    network = copy.deepcopy(source.module)
    conv = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    return conv, norm


def test_the_naive_fold_fails_and_is_no_longer_the_same_wiring(source, golden, exported, tmp_path):
    verdict = certified(naive(onnx.load(exported[0])), source, golden, tmp_path / "naive.onnx")
    assert not verdict.passed
    assert not verdict.structure.isomorphic
    assert verdict.verdicts[0].comparison.noise_ratio > 1000


# --- in a bundle ---------------------------------------------------------------------------------


def test_a_bundle_says_what_is_embedded_and_passes_its_check(source, tmp_path):
    bundle = tmp_path / "bundle"
    manifest = make_bundle(source, bundle, num_inputs=4)
    assert manifest.preprocess == dataclasses.replace(PREPROCESS, embedded=True)
    assert read_bundle(bundle).golden.inputs.dtype == np.uint8
    assert "takes pixels: uint8" in (bundle / "README.md").read_text()
    assert check_bundle(bundle, [SessionSpec()]).passed


# --- refusals ------------------------------------------------------------------------------------


def test_without_known_preprocessing_there_is_nothing_to_embed(plain):
    with pytest.raises(ResdeployError, match="nothing to embed") as caught:
        embed_preprocess(dataclasses.replace(plain, info=None))
    assert "--recipe" in caught.value.fix
    with pytest.raises(ResdeployError, match="nothing to embed"):
        embed_preprocess(source_of(plain.module, preprocess=None))


def test_the_preprocessing_of_vectors_is_refused():
    vectors = Preprocess(input_shape=(16,), color="none")
    with pytest.raises(ResdeployError, match="only that of images"):
        embed_preprocess(source_of(nn.Linear(16, 2), preprocess=vectors))


class Rectified(nn.Module):
    """Reads its input beside the first layer, where no scale can be folded."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return (self.conv(x) + torch.tanh(x)).mean((2, 3))


def test_a_scale_that_reaches_no_layer_is_refused_and_nothing_is_written(tmp_path):
    source = embed_preprocess(source_of(Rectified().eval()))
    with pytest.raises(UnsupportedModelError, match="cannot be folded") as caught:
        export_onnx(source, ExportSpec(), tmp_path / "model.onnx")
    assert "without --preprocess embed" in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_pixels_and_inputs_are_not_taken_for_each_other(plain, source, golden, exported, tmp_path):
    with pytest.raises(ResdeployError, match="takes uint8, not float32"):
        judge_outputs(
            exported[0],
            dataclasses.replace(golden, inputs=golden.inputs.astype(np.float32)),
            [SessionSpec()],
        )
