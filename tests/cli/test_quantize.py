"""`resdeploy quantize`, from file to file."""

import dataclasses
import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner
from small_networks import PREPROCESS, images, small_resnet

from resdeploy.cli import cli
from resdeploy.fold.take_pixels import take_pixels
from resdeploy.schema.codec import dump_json, to_json
from resdeploy.schema.machines import Environment, ProbeReport, ProviderProbe
from resdeploy.schema.quants import QuantSpec


@pytest.fixture
def files(tmp_path):
    model = small_resnet()
    entry = model.metadata_props.add()
    entry.key, entry.value = "resdeploy.preprocess", json.dumps(to_json(PREPROCESS))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=images(80))
    return tmp_path


def quantize(files, *arguments, name="out.onnx"):
    command = ["quantize", str(files / "model.onnx"), "-o", str(files / name)]
    command += ["--calibration", str(files / "x.npz"), *arguments]
    return CliRunner().invoke(cli, command)


def warnings_on_opening(path, capfd):
    """Return what ONNX Runtime writes to standard error, at its default severity."""
    capfd.readouterr()
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return capfd.readouterr().err


FAST = ("--method", "percentile", "--refine", "off", "--max-flips", "0.2")


def test_int8_is_written_with_what_the_model_says_of_itself(files, capfd):
    result = quantize(files, *FAST)
    assert result.exit_code == 0, result.output
    assert "PASS" in result.stdout
    assert "pixel grid" in result.stdout
    model = onnx.load(files / "out.onnx")
    assert "QuantizeLinear" in [node.op_type for node in model.graph.node]
    assert model.metadata_props[0].key == "resdeploy.preprocess"
    assert warnings_on_opening(files / "out.onnx", capfd) == ""


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_model_of_pixels_stays_one(files, precision):
    model = ir.serde.deserialize_model(small_resnet())
    take_pixels(model, np.array(PREPROCESS.mean) * PREPROCESS.divisor)
    embedded = dataclasses.replace(PREPROCESS, embedded=True)
    model.metadata_props["resdeploy.preprocess"] = json.dumps(to_json(embedded))
    ir.save(model, files / "model.onnx")
    result = quantize(files, *FAST, "--equalize", "on", "--precision", precision)
    assert result.exit_code == 0, result.output
    (given,) = onnx.load(files / "out.onnx").graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_floats_are_written(files, precision, capfd):
    result = quantize(files, "--precision", precision, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["kind"] == "QuantReport"
    assert record["spec"]["precision"] == {"fp16": "float16", "bf16": "bfloat16"}[precision]
    assert (files / "out.onnx").is_file()
    if precision == "fp16":  # the CPU has no kernels of bfloat16
        assert warnings_on_opening(files / "out.onnx", capfd) == ""


def test_nothing_is_written_where_the_budget_does_not_hold(files):
    result = quantize(files, *FAST, "--max-error", "1e-9")
    assert result.exit_code == 1
    assert "nothing was written" in result.stderr
    assert "asked for" in result.stdout
    assert not (files / "out.onnx").exists()


def test_an_output_is_not_replaced_without_force(files):
    (files / "out.onnx").write_text("mine")
    assert quantize(files, *FAST).exit_code == 2
    assert (files / "out.onnx").read_text() == "mine"
    assert quantize(files, *FAST, "--force").exit_code == 0


def test_a_result_cannot_be_quantised_again(files):
    assert quantize(files, *FAST).exit_code == 0
    (files / "out.onnx").replace(files / "model.onnx")
    result = quantize(files, *FAST)
    assert result.exit_code == 2
    assert "quantised already" in result.stderr


def test_a_nan_in_the_data_is_an_error_of_the_input(files):
    x = np.zeros((8, 3, 8, 8), np.float32)
    x[5, 0, 0, 0] = np.nan
    np.savez(files / "x.npz", x=x)
    result = quantize(files, *FAST)
    assert result.exit_code == 2
    assert "sample 5 holds NaN" in result.stderr


def probe(files, *, machine="x86_64", features=(), starts=()):
    environment = Environment(
        machine=machine,
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
    names = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8") if machine == "x86_64" else ("neon",)
    report = ProbeReport(
        environment=environment,
        runtime="onnxruntime",
        runtime_version="1.23.0",
        available_providers=("CPUExecutionProvider",),
        providers=tuple(ProviderProbe(provider=n, ort_name=n, starts=True) for n in starts),
        plugins={},
        cpu_features={name: name in features for name in names},
    )
    path = files / "target.json"
    path.write_text(dump_json(report))
    return path


@pytest.mark.parametrize(
    ("target", "types", "reduce_range"),
    [
        ({"features": ("avx2", "avx512_vnni")}, "u8s8", False),
        ({"features": ("avx2",)}, "u8s8", True),
        ({"machine": "aarch64", "features": ("neon",)}, "s8s8", False),
        ({"machine": "aarch64", "starts": ("cuda",)}, "s8s8", False),
        (
            {"machine": "aarch64", "starts": ("NewExecutionProvider", "tensorrt")},
            "s8s8-symmetric",
            False,
        ),
    ],
)
def test_the_target_decides_the_integers(files, target, types, reduce_range):
    from resdeploy.quant.quantize import spec_for

    spec, warnings = spec_for(
        QuantSpec(), types=None, reduce_range=None, target=probe(files, **target)
    )
    assert (spec.types, spec.reduce_range) == (types, reduce_range)
    assert bool(warnings) == reduce_range


def test_what_the_user_says_goes_before_the_target_and_a_risk_is_told(files):
    from resdeploy.quant.quantize import spec_for

    target = probe(files, features=("avx2",))
    spec, warnings = spec_for(QuantSpec(), types="u8s8", reduce_range=False, target=target)
    assert not spec.reduce_range
    assert "cut off" in warnings[0]
    spec, _ = spec_for(QuantSpec(), types="s8s8", reduce_range=None, target=target)
    assert (spec.types, spec.reduce_range) == ("s8s8", False)
