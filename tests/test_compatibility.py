"""What each runtime reads: the table, and the runtime that is here."""

import onnxruntime
import pytest
from onnx import parser

from resdeploy.compatibility import readable_by
from resdeploy.errors import ResdeployError


@pytest.mark.parametrize(
    ("version", "opset", "ir_version"),
    [
        ("1.7.0", 13, 7),
        ("1.10.0", 15, 8),
        ("1.13.1", 17, 8),
        ("1.17.3", 20, 9),
        ("1.18.1", 21, 10),
        ("1.20.1", 21, 10),
        ("1.22.1", 22, 10),
        ("1.23.2", 23, 11),
        ("1.24.4", 25, 13),
        ("1.31.1", 26, 13),
        ("1.99.0.dev1+cu13", 26, 13),
        ("2.0", 26, 13),
    ],
)
def test_the_table_is_that_of_the_official_page_and_of_what_was_measured(
    version, opset, ir_version
):
    found = readable_by(version)
    assert (found.opset, found.ir_version) == (opset, ir_version)


@pytest.mark.parametrize("version", ["1.6.0", "0.5", "new", ""])
def test_a_version_outside_the_table_is_refused(version):
    with pytest.raises(ResdeployError):
        readable_by(version)


def opens(opset, ir_version):
    model = parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]>'
        " g (float[1] x) => (float[1] y) { y = Relu (x) }"
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:
        return False
    return True


def test_the_runtime_that_is_here_reads_what_the_table_says():
    here = readable_by(onnxruntime.__version__)
    assert opens(here.opset, here.ir_version)


def test_the_newest_runtime_of_the_table_reads_no_more_than_it_says():
    if not onnxruntime.__version__.startswith("1.31."):
        pytest.skip("the last row was measured with 1.31")
    here = readable_by(onnxruntime.__version__)
    assert not opens(here.opset + 1, 8)
    assert not opens(13, here.ir_version + 1)
