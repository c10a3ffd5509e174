"""Checking a bundle: intact and right, intact and wrong, damaged."""

import dataclasses

import numpy as np
import onnx
import pytest
from flat_bundle import write_small_bundle
from onnx import parser

from resdeploy.bundle import check as check_module
from resdeploy.bundle import folder
from resdeploy.bundle.check import check_bundle
from resdeploy.bundle.folder import read_bundle
from resdeploy.errors import BundleError
from resdeploy.graph.float64 import to_float64
from resdeploy.graph.onnx_file import load_onnx
from resdeploy.schema.sessions import SessionSpec
from resdeploy.verify.certify import Reference
from resdeploy.verify.verdict import prove_file

DOUBLE = """
<ir_version: 8, opset_import: ["": 18]>
double (float[batch, 3] input) => (float[batch, 3] logits) <float two = {2}>
{ logits = Mul (input, two) }
"""


@pytest.fixture
def bundle(tmp_path):
    def write(golden_factor=2.0):
        onnx.save(parser.parse_model(DOUBLE), tmp_path / "double.onnx")
        inputs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        reference = golden_factor * inputs.astype(np.float64)
        model = tmp_path / "double.onnx"
        write_small_bundle(tmp_path / "bundle", "double", model, inputs, reference, proof=None)
        return tmp_path / "bundle"

    return write


def test_an_intact_bundle_passes(bundle):
    report = check_bundle(bundle(), [SessionSpec()], accepts="outputs")
    assert report.passed
    assert (report.name, report.num_files) == ("double", 3)


def test_without_a_proof_of_its_file_a_bundle_agrees_at_best(bundle):
    report = check_bundle(bundle(), [SessionSpec()])
    assert report.verification.verdict == "AGREES"
    assert not report.passed


def proved(path, **changes):
    """Give a bundle the proof of its model, sealed anew."""
    opened = read_bundle(path)
    golden = opened.golden
    reference = Reference(
        model=to_float64(load_onnx(opened.model)), bias_magnitudes={}, is_exact=True
    )
    proof = dataclasses.replace(prove_file(opened.model, reference, golden), **changes)
    (path / "manifest.json").unlink()
    folder._seal(path, dataclasses.replace(opened.manifest, files=(), proof=proof))
    return path


def test_the_proof_of_the_same_bytes_is_carried_to_the_device(bundle):
    report = check_bundle(proved(bundle()), [SessionSpec()])
    assert report.verification.verdict == "PROVED"
    assert report.verification.structure.isomorphic
    assert report.passed


@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"unproved": ("structure: why",)}])
def test_the_proof_of_another_file_or_of_nothing_proves_nothing(bundle, changes):
    report = check_bundle(proved(bundle(), **changes), [SessionSpec()])
    assert report.verification.verdict == "AGREES"


def test_outputs_that_differ_here_fail_a_file_that_was_proved_elsewhere(bundle):
    report = check_bundle(proved(bundle(golden_factor=2.0001)), [SessionSpec()])
    assert report.verification.verdict == "FAIL"


def test_a_bundle_is_held_to_the_digest_that_was_promised(bundle):
    path = bundle()
    digest = read_bundle(path).digest
    assert folder.digest_of(read_bundle(path).manifest) == digest
    check_bundle(path, [SessionSpec()], digest=digest.upper())
    with pytest.raises(BundleError, match=f"digest is {digest}, not 1234"):
        check_bundle(path, [SessionSpec()], digest="1234")


def test_an_intact_bundle_whose_model_computes_something_else_fails(bundle):
    assert not check_bundle(bundle(golden_factor=2.0001), [SessionSpec()]).passed


def test_nothing_runs_of_a_damaged_bundle(bundle, monkeypatch):
    path = bundle()
    model = path / "model.onnx"
    model.write_bytes(model.read_bytes().replace(b"logits", b"LOGITS"))
    monkeypatch.setattr(check_module, "judge_outputs", lambda *_: pytest.fail("it ran"))
    with pytest.raises(BundleError, match=r"model\.onnx"):
        check_bundle(path, [SessionSpec()])


def test_the_verdict_is_that_of_every_provider(bundle):
    report = check_bundle(bundle(), [SessionSpec(), SessionSpec(graph_level="disabled")])
    assert len(report.verification.verdicts) == 2
    failed = dataclasses.replace(
        report.verification.verdicts[1],
        comparison=dataclasses.replace(
            report.verification.verdicts[1].comparison, reasons=("it differs",)
        ),
    )
    verdicts = (report.verification.verdicts[0], failed)
    mixed = dataclasses.replace(
        report, verification=dataclasses.replace(report.verification, verdicts=verdicts)
    )
    assert not mixed.passed
