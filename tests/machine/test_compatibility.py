"""What each runtime reads: the table, and the runtime that is here."""

import onnxruntime
import pytest
from onnx import parser

from resdeploy.errors import ResdeployError
from resdeploy.machine.compatibility import for_target, readable_by
from resdeploy.schema.codec import dump_json
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.machines import Environment, ProbeReport


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


def record_of(runtime_version):
    machine = Environment(
        machine="aarch64",
        system="Linux",
        cpu_model=None,
        num_cpus=4,
        num_cpus_allowed=4,
        ram_bytes=None,
        load_average_1min=None,
        cpu_governor=None,
        gpu_names=(),
        versions={},
    )
    return ProbeReport(
        environment=machine,
        runtime="onnxruntime",
        runtime_version=runtime_version,
        available_providers=(),
        providers=(),
        plugins={},
        cpu_features={},
    )


@pytest.mark.parametrize(
    ("runtime_version", "asked", "opset", "ir_version"),
    [
        ("1.13.1", None, 17, 8),
        ("1.13.1", 15, 15, 8),
        ("1.17.0", None, 18, 9),
        ("1.18.0", None, 18, 10),
        ("1.18.0", 21, 21, 10),
        ("1.31.1", None, 18, 13),
        ("1.31.1", 26, 26, 13),
    ],
)
def test_for_a_target_the_newest_form_that_it_reads_is_the_limit(
    tmp_path, runtime_version, asked, opset, ir_version
):
    (tmp_path / "target.json").write_text(dump_json(record_of(runtime_version)))
    spec = for_target(ExportSpec(batch=3), opset=asked, target=tmp_path / "target.json")
    assert spec == ExportSpec(opset=opset, batch=3, newest_ir_version=ir_version)


def test_without_a_target_the_newest_opset_that_a_runtime_reads_is_the_limit():
    assert for_target(ExportSpec(), opset=None, target=None) == ExportSpec()
    assert for_target(ExportSpec(), opset=26, target=None) == ExportSpec(opset=26)
    with pytest.raises(ResdeployError, match="There is no opset 99"):
        for_target(ExportSpec(), opset=99, target=None)


@pytest.mark.parametrize(("runtime_version", "asked"), [("1.18.0", 22), ("1.6.0", None)])
def test_what_the_target_does_not_read_is_refused(tmp_path, runtime_version, asked):
    (tmp_path / "target.json").write_text(dump_json(record_of(runtime_version)))
    with pytest.raises(ResdeployError, match=runtime_version):
        for_target(ExportSpec(), opset=asked, target=tmp_path / "target.json")
