"""Rounding that cancels, bias correction, and what overflows 16 bits."""

import numpy as np
import pytest
from small_networks import inputs, prepared_resnet

from resdeploy.graph.onnx_file import copy_of
from resdeploy.quant.calibration import calibrate
from resdeploy.quant.onnx_graph import Constants
from resdeploy.quant.qdq import insert_qdq, saturating_layers
from resdeploy.quant.quantize import lacks_vnni
from resdeploy.quant.ranges import find_range
from resdeploy.quant.runtime import Runner
from resdeploy.quant.weights import correct_biases, gptq, gptq_weights


def quantised(model, x, **options):
    found = calibrate(model, iter(x))
    ranges = {name: find_range("minmax", histogram) for name, histogram in found.items()}
    return insert_qdq(model, ranges, **({"types": "u8s8"} | options))


def test_rounding_that_cancels_loses_less_of_the_output_than_rounding_to_the_nearest():
    random = np.random.default_rng(0)
    # Inputs that are alike, as neighbouring pixels are.
    x_PK = random.normal(size=(500, 4)) @ random.normal(size=(4, 24))
    x_PK += 0.1 * random.normal(size=x_PK.shape)
    weight_OK = random.normal(size=(6, 24))
    scale_O = np.abs(weight_OK).max(axis=1) / 15
    nearest = np.clip(np.rint(weight_OK / scale_O[:, None]), -15, 15)
    found = gptq(weight_OK, scale_O, x_PK.T @ x_PK, limit=15)
    assert found.dtype == np.int8
    assert np.abs(found).max() <= 15

    def lost(q):
        return np.linalg.norm(x_PK @ (q * scale_O[:, None] - weight_OK).T)

    assert lost(found) < 0.5 * lost(nearest)


def test_rounding_that_cancels_gives_the_nearest_where_inputs_have_nothing_in_common():
    weight_OK = np.random.default_rng(1).normal(size=(4, 8))
    scale_O = np.full(4, 0.1)
    found = gptq(weight_OK, scale_O, np.eye(8) * 3, limit=127)
    assert np.array_equal(found, np.rint(weight_OK / 0.1))


def test_errors_are_taken_over_beyond_the_block_they_are_made_in(monkeypatch):
    random = np.random.default_rng(2)
    x_PK = random.normal(size=(900, 10)) @ random.normal(size=(10, 150))
    x_PK += 0.1 * random.normal(size=x_PK.shape)
    weight_OK, scale_O = random.normal(size=(3, 150)), np.full(3, 0.2)
    in_blocks = gptq(weight_OK, scale_O, x_PK.T @ x_PK, limit=127)
    monkeypatch.setattr("resdeploy.quant.weights._BLOCK", 1000)
    assert np.array_equal(in_blocks, gptq(weight_OK, scale_O, x_PK.T @ x_PK, limit=127))


def test_weights_of_inputs_that_are_always_zero_do_no_harm():
    weight_OK = np.random.default_rng(1).normal(size=(4, 8))
    found = gptq(weight_OK, np.full(4, 0.1), np.zeros((8, 8)), limit=127)
    assert np.array_equal(found, np.rint(weight_OK / 0.1))


def test_every_layer_is_rounded_within_the_limit_and_the_outputs_get_nearer():
    model, x = prepared_resnet(), inputs(64)
    plain = quantised(model, x, reduce_range=True)
    rounded = gptq_weights(model, plain, x, limit=64)
    assert len(rounded) == 6
    better = quantised(model, x, reduce_range=True)
    integers = Constants(better)
    for name, weight in rounded.items():
        assert weight.shape == integers[name].shape
        assert np.abs(weight.astype(int)).max() <= 64
        integers[name] = weight
    reference = Runner(model, optimize=False).run_rows(x)
    errors = [
        np.linalg.norm(Runner(m, optimize=False).run_rows(x) - reference) for m in (plain, better)
    ]
    assert errors[1] < 0.9 * errors[0]


def test_bias_correction_takes_out_a_mean_error_of_the_weights():
    model, x = prepared_resnet(), inputs(64)
    shifted = quantised(model, x)
    integers = Constants(shifted)
    # As if every weight of two layers had been rounded up.
    for name in ("block1.conv1.weight_quantized", "block2.conv2.weight_quantized"):
        integers[name] = np.minimum(integers[name].astype(int) + 2, 127).astype(np.int8)
    corrected = correct_biases(model, shifted, x)
    reference = Runner(model, optimize=False).run_rows(x)

    def mean_error(which):
        return np.abs((Runner(which, optimize=False).run_rows(x) - reference).mean(axis=0)).max()

    assert mean_error(corrected) < 0.3 * mean_error(shifted)
    assert Constants(corrected)["stem.bias_quantized"].dtype == np.int32


def test_how_a_layer_states_its_layout_makes_no_difference():
    """Once a Conv that leaves its kernel_shape to its weight was rounded to the nearest."""
    model, x = prepared_resnet(), inputs(16)
    other = copy_of(model)
    constants = Constants(other)
    constants["fc.weight"] = constants["fc.weight"].T
    for node in other.graph.node:
        kept = [a for a in node.attribute if a.name not in ("transB", "kernel_shape")]
        del node.attribute[:]
        node.attribute.extend(kept)
    integers = []
    for which in (model, other):
        plain = quantised(which, x)
        rounded = gptq_weights(which, plain, x, limit=127)
        biases = Constants(correct_biases(which, plain, x))
        found = {name: biases[f"{name}.bias_quantized"] for name in ("stem", "fc")}
        integers.append({**rounded, **found})
    first, second = integers
    second["fc.weight_quantized"] = second["fc.weight_quantized"].T
    assert first.keys() == second.keys()
    assert len(first) == 8
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name


def test_where_every_layer_stays_in_float_there_is_no_bias_to_correct():
    """Once the runtime was asked for no outputs at all, and quantize ended in its error."""
    model, x = prepared_resnet(), inputs(2)
    assert correct_biases(model, model, x).SerializeToString() == model.SerializeToString()


def test_full_8_bit_weights_can_overflow_16_bit_sums_and_7_bit_ones_cannot():
    model, x = prepared_resnet(), inputs(8)
    # Two neighbouring input channels with the largest weights of their row.
    constants = Constants(model)
    weight = constants["block1.conv1.weight"].copy()
    weight[0, 0:2, 1, 1] = np.abs(weight[0]).max() * 2
    constants["block1.conv1.weight"] = weight
    assert "block1.conv1/Conv" in saturating_layers(model, quantised(model, x))
    assert saturating_layers(model, quantised(model, x, reduce_range=True)) == ()


@pytest.mark.parametrize(
    ("features", "lacks"),
    [
        ({"avx2": True, "avx512_vnni": False, "avx_vnni": False, "amx_int8": False}, True),
        ({"avx2": True, "avx512_vnni": True, "avx_vnni": False, "amx_int8": False}, False),
        ({"avx2": True, "avx512_vnni": False, "avx_vnni": True, "amx_int8": False}, False),
        ({"neon": True, "i8mm": False}, False),
        ({}, False),
    ],
)
def test_only_x86_without_vnni_adds_products_in_16_bits(features, lacks):
    assert lacks_vnni(features) == lacks
