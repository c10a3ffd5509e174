"""A real trained network on real images, before folding, after, and through ONNX Runtime."""

import numpy as np
import onnx
import pytest
import torch

from resdeploy.export.embedded import embed_preprocess
from resdeploy.export.export import export_onnx
from resdeploy.export.fold_checkpoint import fold_checkpoint
from resdeploy.export.golden import golden_for, run_module
from resdeploy.export.reference import reference_graph
from resdeploy.export.source import SourceModel, load_source
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.recipes import DataSpec, SourceSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.run import run_session
from resdeploy.session.session import open_session
from resdeploy.verify.certify import certify_file
from resdeploy.verify.golden_file import Golden


@pytest.fixture(scope="module")
def paths(shared_data):
    return (
        str(shared_data / "resnet20-12fca82f.th"),
        str(shared_data / "cifar10-sample.npz"),
    )


@pytest.fixture(scope="module")
def source(paths) -> SourceModel:
    weights, _ = paths
    return load_source(SourceSpec(path=weights, arch="cifar_resnet20", recipe="cifar10-resnet20"))


@pytest.fixture(scope="module")
def golden(source, paths) -> Golden:
    return golden_for(source, data=DataSpec(name="npz", path=paths[1]))


def test_all_512_predictions_survive_folding_and_export(source, golden, tmp_path):
    folded_path, onnx_path = tmp_path / "folded.safetensors", tmp_path / "model.onnx"
    report = fold_checkpoint(source, folded_path)
    assert len(report.folded) == 19
    assert report.complete
    folded = load_source(SourceSpec(path=str(folded_path)))
    assert export_onnx(folded, ExportSpec(), onnx_path, golden=golden).verification.passed

    session = open_session(onnx_path, SessionSpec(num_threads=2))
    predictions = {
        "float64": golden.reference.argmax(axis=1),
        "before": run_module(source.module, golden.inputs, dtype=torch.float32).argmax(axis=1),
        "folded": run_module(folded.module, golden.inputs, dtype=torch.float32).argmax(axis=1),
        "onnx": run_session(session, golden.inputs).argmax(axis=1),
    }
    assert len(golden.labels) == 512
    for name, predicted in predictions.items():
        assert np.array_equal(predicted, predictions["float64"]), name
    accuracy = float(np.mean(predictions["onnx"] == golden.labels))
    assert 0.90 < accuracy < 0.93  # its authors report 91.78 % on all 10,000


def test_a_wrong_normalisation_is_caught(source, golden):
    """The mean of red off by 0.005: a fault that top-1 alone would hardly show."""
    from resdeploy.verify.end_to_end import judge_end_to_end

    shifted = golden.inputs.copy()
    shifted[:, 0] += np.float32(0.005 / 0.229)
    outputs = run_module(source.module, shifted, dtype=torch.float32)
    verdict = judge_end_to_end(outputs, golden)
    assert not verdict.passed
    assert verdict.top1_agreement > 0.97


@pytest.mark.slow
def test_embedded_the_preprocessing_changes_no_prediction(source, golden, paths, tmp_path):
    """The acceptance of `--preprocess embed`: identical on all images, and PASS."""
    embedded = embed_preprocess(source)
    pixels = golden_for(embedded, data=DataSpec(name="npz", path=paths[1]))
    assert pixels.inputs.dtype == np.uint8
    assert np.array_equal(pixels.labels, golden.labels)
    plain_path, path = tmp_path / "plain.onnx", tmp_path / "embedded.onnx"
    assert export_onnx(source, ExportSpec(), plain_path).verification.passed
    report = export_onnx(embedded, ExportSpec(), path, golden=pixels)
    assert report.verification.passed
    explicit = run_session(open_session(plain_path, SessionSpec()), golden.inputs)
    ours = run_session(open_session(path, SessionSpec()), pixels.inputs)
    assert len(ours) == 512
    assert np.array_equal(ours.argmax(axis=1), explicit.argmax(axis=1))
    certificate = certify_file(onnx.load(path), reference_graph(embedded, pixels))
    assert certificate.structure.isomorphic
    assert certificate.static.passed
    assert len(certificate.static.layers) == 21  # the centre is one
