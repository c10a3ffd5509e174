"""The name of an arithmetic: by the nearest level, by what the session allows, or none."""

import pytest

from resdeploy.schema.verdicts import GoldenInfo, PrecisionNoise
from resdeploy.verify.precision import RunFacts, advice, find_precision, precision_levels

LEVELS = {"float32": 1.0, "tf32": 1.4e3, "float16": 1.7e3, "bfloat16": 1.2e4, "int8": 5e4}
TF32 = RunFacts(fast="tf32", advice="TF32 is on: set use_tf32=0")
BFLOAT16 = RunFacts(fast="bfloat16", advice="set INFERENCE_PRECISION_HINT=f32")
WIDENS = RunFacts(widens_float16=True)


@pytest.mark.parametrize(
    ("ratio", "facts", "found"),
    [
        (4.0, RunFacts(), "float32"),
        (4.1, RunFacts(), "unknown"),
        (300.0, RunFacts(), "unknown"),
        (500.0, RunFacts(), "float16"),
        (1.4e3, BFLOAT16, "float16"),
        (1.4e3, TF32, "tf32"),
        (1.7e3, TF32, "tf32"),
        (1.3e4, TF32, "bfloat16"),
        (4.0e4, RunFacts(), "int8"),
        (1.0e6, RunFacts(), "unknown"),
        (float("inf"), RunFacts(), "unknown"),
        (float("nan"), RunFacts(), "unknown"),
    ],
)
def test_an_error_is_named_after_the_nearest_level(ratio, facts, found):
    assert find_precision(ratio, LEVELS, facts) == found


def test_levels_are_in_units_of_the_noise_of_all_inputs():
    noise = PrecisionNoise(
        num_inputs=8, float32=3e-7, tf32=4e-4, float16=None, bfloat16=4e-3, int8=2e-2
    )
    info = GoldenInfo(source="s", inputs="i", num_inputs=9, precision_noise=noise)
    levels = precision_levels(info, 2e-7)
    assert levels == pytest.approx({"float32": 1, "tf32": 2e3, "bfloat16": 2e4, "int8": 1e5})


@pytest.mark.parametrize("float32", [0.0, float("inf"), 1e-7])
def test_without_levels_those_of_a_resnet_18_stand_in(float32):
    levels = precision_levels(GoldenInfo(source="s", inputs="i", num_inputs=9), float32)
    assert levels["float32"] == 1
    assert find_precision(1.31e4, levels, RunFacts()) == "bfloat16"
    assert find_precision(1.02e3, levels, RunFacts()) == "float16"


@pytest.mark.parametrize(
    ("found", "facts", "text"),
    [
        ("tf32", TF32, "TF32 is on: set use_tf32=0"),
        ("tf32", RunFacts(), ""),
        ("bfloat16", BFLOAT16, "INFERENCE_PRECISION_HINT=f32"),
        ("bfloat16", WIDENS, ""),
        ("float16", WIDENS, "computes in float32: with float16 weights"),
        ("unknown", TF32, ""),
    ],
)
def test_advice_is_given_where_the_cause_is_known(found, facts, text):
    given = advice("float32", found, facts)
    assert text in given
    assert bool(given) is bool(text)
