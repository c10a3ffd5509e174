"""`resdeploy quantize`, from file to file."""

import dataclasses
import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import small_kinds
from click.testing import CliRunner
from small_kinds import noise
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
    result = quantize(files, "--precision", precision, "--max-flips", "0.2", "--json")
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


def test_what_is_not_shown_is_written_and_does_not_pass_and_is_said_beforehand(files):
    np.savez(files / "x.npz", x=images(28))
    result = quantize(files, *FAST[:4], "--pixel-grid", "off")
    assert result.exit_code == 1
    assert "NOT SHOWN" in result.stdout
    assert "PASS" not in result.stdout
    assert "warning: 7 held-out samples can show a change of at most 34.8 %" in result.stderr
    assert "what was written is not shown to hold the budget" in result.stderr
    assert (files / "out.onnx").is_file()


def test_samples_of_another_size_are_an_error_of_the_input(files):
    np.savez(files / "x.npz", x=np.zeros((40, 3, 16, 16), np.float32))
    model = onnx.load(files / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, files / "model.onnx")
    result = quantize(files, *FAST)
    assert result.exit_code == 2
    assert "is 3x16x16, the model's input 'input' 3x8x8" in result.stderr


def test_labels_beside_the_samples_judge_the_accuracy(files):
    np.savez(files / "x.npz", x=images(80), y=np.arange(80) % 5)
    result = quantize(files, *FAST[:4], "--max-drop", "30")
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout
    assert "are lost (exact, one-sided 95 %)" in result.stdout


PLAIN = (
    *("--method", "percentile", "--refine", "off", "--equalize", "off", "--rounding", "off"),
    *("--bias-correction", "off"),
)


def kind(files, model, *arguments, num=60):
    """Quantise another model on its noise; of several inputs, an array for each."""
    onnx.save(model, files / "model.onnx")
    samples = noise(model, num)
    names = samples.dtype.names
    arrays = {"x": samples} if names is None else {name: samples[name] for name in names}
    np.savez(files / "x.npz", **arrays)
    return quantize(files, *PLAIN, *arguments)


def test_a_model_of_two_inputs_takes_an_array_for_each(files):
    result = kind(files, small_kinds.siamese(), "--max-flips", "0.5")
    assert result.exit_code == 0, result.output
    assert "left, right" in result.stdout
    assert "changed sides" in result.stdout
    assert "flips" not in result.stdout.splitlines()[-1]
    assert "float32  n12/Sub (Sub): there is no integer kernel for it" in result.stdout
    assert "of the time" in result.stdout
    names = [value.name for value in onnx.load(files / "out.onnx").graph.input]
    assert names == ["left", "right"]


def test_maps_are_judged_by_their_error_and_no_argmax(files):
    result = kind(files, small_kinds.pyramid())
    assert result.exit_code == 0, result.output
    assert "p4 judged as map (Nx6x8x8, taken for a map of features)" in result.stdout
    assert "p3: relative error" in result.stdout
    assert "flips" not in result.stdout
    assert "predictions" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-flips", "0.1"), "--max-flips is for predictions, and 'p5' is a map of features"),
        (("--max-drop", "1"), "--max-drop is for predictions"),
        (("--output-kind", "p9=map"), "no output 'p9'"),
        (("--output-kind", "picture"), "'picture' is not one of scores, logit, classes"),
        (("--output-kind", "p5=logit"), "cannot be judged as logit"),
    ],
)
def test_what_does_not_fit_the_outputs_is_an_error_of_the_request(files, arguments, words):
    result = kind(files, small_kinds.pyramid(), *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (files / "out.onnx").exists()


def test_what_an_output_is_can_be_stated(files):
    result = kind(
        files, small_kinds.unet(), "--output-kind", "logits=classes", "--max-flips", "0.5"
    )
    assert result.exit_code == 0, result.output
    assert "logits judged as classes (as stated)" in result.stdout
    assert "of classes as before; shown: at most" in result.stdout
    result = kind(files, small_kinds.face_embedding(), "--output-kind", "embedding", "--force")
    assert result.exit_code == 0, result.output
    assert "nearest neighbour the same for" in result.stdout


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
