"""The noise ratio as a verdict: what passes, what fails, and that the limit bites."""

import dataclasses

import numpy as np
import pytest

from resdeploy.errors import ResdeployError
from resdeploy.evidence.end_to_end import NOISE_RATIO_LIMIT, judge_end_to_end
from resdeploy.golden_file import Golden
from resdeploy.schema import GoldenInfo


@pytest.fixture
def golden():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(6, 10))
    return Golden(
        inputs=np.zeros((6, 1), np.float32),
        reference=reference,
        noise_l2=np.full(6, 1e-6),
        labels=None,
        info=GoldenInfo(source="a test", inputs="none", num_inputs=6),
    )


def candidate_at(golden: Golden, ratio: float) -> np.ndarray:
    """Outputs whose error is `ratio` times the noise, for each input."""
    direction = np.zeros(golden.reference.shape)
    direction[:, 3] = 1
    return golden.reference + ratio * golden.noise_l2[:, None] * direction


@pytest.mark.parametrize("ratio", [0.0, 1.0, 3.9])
def test_passes_what_is_within_the_noise(golden, ratio):
    verdict = judge_end_to_end(candidate_at(golden, ratio), golden)
    assert verdict.passed
    assert verdict.noise_ratio == pytest.approx(ratio)
    assert verdict.worst_input_ratio == pytest.approx(ratio)
    assert verdict.top1_agreement == 1


def test_fails_just_above_the_limit(golden):
    verdict = judge_end_to_end(candidate_at(golden, 1.01 * NOISE_RATIO_LIMIT), golden)
    assert not verdict.passed
    assert verdict.reasons == (
        "the error is 4.04 times the noise of float32 arithmetic (at most 4)",
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_single_value_that_is_not_finite_fails(golden, bad):
    outputs = golden.reference.copy()
    outputs[2, 5] = bad
    verdict = judge_end_to_end(outputs, golden)
    assert verdict.reasons == ("1 outputs are NaN or infinite",)
    assert verdict.noise_ratio == np.inf


def test_without_noise_only_the_rounding_of_the_outputs_is_forgiven(golden):
    silent = dataclasses.replace(golden, noise_l2=np.zeros(6))
    rounded = golden.reference.astype(np.float32)
    assert judge_end_to_end(rounded, silent).passed
    off = (golden.reference * (1 + 2.0**-20)).astype(np.float32)
    assert not judge_end_to_end(off, silent).passed


def test_refuses_another_shape(golden):
    with pytest.raises(ResdeployError, match="shape"):
        judge_end_to_end(golden.reference[:, :9], golden)


def test_refuses_a_reference_that_is_not_finite(golden):
    golden.reference[0, 0] = np.nan
    with pytest.raises(ResdeployError, match="reference outputs are not finite"):
        judge_end_to_end(np.zeros((6, 10)), golden)
