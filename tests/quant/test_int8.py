import platform

import numpy as np
import onnx
import pytest
from small_networks import PREPROCESS, images, inputs, small_resnet

from resdeploy.data.preprocess import preprocess_batch
from resdeploy.errors import ResdeployError
from resdeploy.quant.int8 import quantize_int8
from resdeploy.quant.onnx_graph import Constants
from resdeploy.quant.runtime import Runner, prove_integer
from resdeploy.quant.samples import Samples
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.quants import QuantReport, QuantSpec

X86 = platform.machine().lower() in ("x86_64", "amd64")
SAMPLES = Samples.of_array(inputs(160))
PLAIN = {
    "equalize": "off",
    "pixel_grid": "off",
    "refine": "off",
    "rounding": "off",
    "bias_correction": "off",
    "method": "percentile",
}


@pytest.fixture(scope="module")
def best():
    return quantize_int8(small_resnet(), SAMPLES, QuantSpec(max_flips=0.2), preprocess=PREPROCESS)


def test_every_choice_is_measured_and_what_is_kept_errs_least(best):
    _, report = best
    tried = [(trial.stage, trial.name) for trial in report.trials]
    assert tried == [
        ("float model", "as it is"),
        ("weights", "GPTQ"),
        ("float model", "pixel grid"),
        ("float model", "SmoothQuant"),
        ("ranges", "minmax"),
        ("ranges", "percentile"),
        ("ranges", "mse"),
        ("ranges", "entropy"),
        ("ranges", "tensor by tensor"),
        ("weights", "bias correction"),
    ]
    methods = [trial for trial in report.trials if trial.stage == "ranges"][:4]
    assert [t.kept for t in methods] == [
        t.quality.error == min(m.quality.error for m in methods) for t in methods
    ]
    assert report.quality.error == min(t.quality.error for t in report.trials[8:] if t.kept)


def test_the_result_errs_less_than_plain_quantisation(best):
    _, report = best
    _, plain = quantize_int8(small_resnet(), SAMPLES, QuantSpec(max_flips=1.0, **PLAIN))
    assert plain.quality.error < 0.1
    assert report.quality.error < 0.8 * plain.quality.error


def test_the_report_is_about_the_model_that_is_returned(best):
    model, report = best
    held_out = inputs(160)[3::4]
    reference = Runner(small_resnet(), optimize=True).run_rows(held_out)
    found = Runner(model, optimize=True).run_rows(held_out)
    error = np.linalg.norm(found - reference) / np.linalg.norm(reference)
    assert report.quality.error == pytest.approx(error, rel=1e-4)
    assert report.num_calibration == 120
    assert report.quality.num_inputs == 40
    assert load_json(QuantReport, dump_json(report), where="test") == report


@pytest.mark.skipif(not X86, reason="ARM fuses signed activations too")
def test_every_layer_and_residual_addition_runs_in_integers(best):
    model, report = best
    assert report.passed
    assert report.proof.passed
    operators = report.proof.operators
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["QGemm"]) == (5, 2, 1)
    assert operators["QLinearGlobalAveragePool"] == 1
    onnx.checker.check_model(model)


def test_on_the_pixel_grid_the_step_is_one_pixel_even_if_all_images_are_dark():
    dark = Samples.of_array(preprocess_batch(images(80) // 2, PREPROCESS))
    spec = QuantSpec(max_flips=1.0, **(PLAIN | {"pixel_grid": "on"}))
    model, _ = quantize_int8(small_resnet(), dark, spec, preprocess=PREPROCESS)
    constants = Constants(model)
    assert constants["pixel_grid.grid_scale"] == 1
    assert constants["pixel_grid.grid_zero_point"] == 128


def test_scores_are_not_rounded_to_256_levels(best):
    model, _ = best
    scores = Runner(model, optimize=True).run_rows(inputs(160))
    assert len(np.unique(scores)) > 700


@pytest.mark.skipif(not X86, reason="ARM fuses signed activations too")
def test_signed_activations_on_x86_are_found_to_run_in_float_by_their_names():
    spec = QuantSpec(types="s8s8", max_flips=1.0, **PLAIN)
    model, report = quantize_int8(small_resnet(), SAMPLES, spec)
    assert report.passed  # as ARM fuses them
    proof = prove_integer(model, types="u8s8")  # as x86 does
    assert not proof.passed
    assert any("block1" in name and "(Add)" in name for name in proof.left_in_float)
    assert any("Conv)" in name for name in proof.left_in_float)


def test_symmetric_types_have_zero_points_of_zero():
    spec = QuantSpec(types="s8s8-symmetric", max_flips=1.0, **PLAIN)
    model, report = quantize_int8(small_resnet(), SAMPLES, spec)
    constants = Constants(model)
    points = [t.name for t in model.graph.initializer if t.name.endswith("_zero_point")]
    assert len(points) > 10
    assert all(not np.any(constants[name]) for name in points)
    assert report.quality.error < 0.1


def test_reduced_weights_have_7_bits_and_cannot_saturate():
    spec = QuantSpec(reduce_range=True, max_flips=1.0, **(PLAIN | {"rounding": "on"}))
    model, report = quantize_int8(small_resnet(), SAMPLES, spec)
    constants = Constants(model)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".weight_quantized"):
            assert np.abs(constants[tensor.name].astype(int)).max() <= 64, tensor.name
    assert report.saturating == ()


def test_layers_that_cost_most_stay_in_float_until_the_budget_holds():
    _, plain = quantize_int8(small_resnet(), SAMPLES, QuantSpec(max_flips=1.0, **PLAIN))
    limit = 0.8 * plain.quality.error
    spec = QuantSpec(max_flips=1.0, max_error=limit, **PLAIN)
    model, report = quantize_int8(small_resnet(), SAMPLES, spec)
    assert report.passed
    assert report.quality.error <= limit
    assert 1 <= len(report.kept_float) < 6
    assert "the error is" in report.kept_float[0].reason
    # Unasked, the same layers in float would be a failure.
    assert not prove_integer(model, types="u8s8").passed


def test_a_budget_that_cannot_hold_is_a_failure_with_its_reason():
    spec = QuantSpec(max_flips=1.0, max_error=1e-9, **PLAIN)
    _, report = quantize_int8(small_resnet(), SAMPLES, spec)
    assert not report.passed
    assert "1e-09 is asked for" in report.reasons[0]


def test_a_single_sample_is_warned_about_and_still_quantised():
    _, report = quantize_int8(small_resnet(), Samples.of_array(inputs(1)), QuantSpec(**PLAIN))
    assert "only 1 calibration sample" in report.warnings[0]
    assert np.isfinite(report.quality.error)


def test_equal_samples_are_warned_about_and_still_quantised():
    same = Samples.of_array(np.full((40, 3, 8, 8), 0.25, np.float32))
    _, report = quantize_int8(small_resnet(), same, QuantSpec(max_flips=1.0, **PLAIN))
    assert any("39 of 40 calibration samples are copies" in one for one in report.warnings)
    assert any("every value" in warning for warning in report.warnings)
    assert np.isfinite(report.quality.error)


def test_a_model_that_overflows_on_a_sample_is_an_error():
    huge = inputs(8)
    huge[2] = 3e38
    with pytest.raises(ResdeployError, match="computes NaN or infinity"):
        quantize_int8(small_resnet(), Samples.of_array(huge), QuantSpec(**PLAIN))
