"""Checking a bundle: intact and right, intact and wrong, damaged."""

import dataclasses

import numpy as np
import onnx
import pytest
from flat_bundle import write_small_bundle
from onnx import parser

from resdeploy.bundle import check as check_module
from resdeploy.bundle.check import check_bundle
from resdeploy.errors import BundleError
from resdeploy.schema.sessions import SessionSpec

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
        write_small_bundle(tmp_path / "bundle", "double", model, inputs, reference)
        return tmp_path / "bundle"

    return write


def test_an_intact_bundle_passes(bundle):
    report = check_bundle(bundle(), [SessionSpec()])
    assert report.passed
    assert (report.name, report.num_files) == ("double", 3)


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
