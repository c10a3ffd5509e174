"""The noise ratio as a verdict: what passes, what fails, and that the limit bites."""

import dataclasses

import numpy as np
import pytest

from resdeploy.errors import ResdeployError
from resdeploy.schema.verdicts import GoldenInfo, PrecisionNoise
from resdeploy.verify.end_to_end import NOISE_RATIO_LIMIT, SYSTEMATIC_LIMIT, judge_end_to_end
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.precision import RunFacts


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
    with pytest.raises(ResdeployError, match="reference outputs are NaN"):
        judge_end_to_end(np.zeros((6, 10)), golden)


# --- z -------------------------------------------------------------------------------------------

SIGMA = 1e-6


@pytest.fixture
def full():
    """A golden reference with everything in it: 200 inputs, errors of float32 like white noise."""
    return full_golden(num_outputs=10)


def full_golden(*, num_outputs, num_inputs=200, weight_noise_l2=1e-9, sigma=SIGMA):
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(num_inputs, num_outputs))
    norm = np.linalg.norm(reference)
    level = SIGMA * np.sqrt(reference.size) / norm
    noise = PrecisionNoise(
        num_inputs=8,
        float32=level,
        tf32=1.5e3 * level,
        float16=1.9e3 * level,
        bfloat16=1.2e4 * level,
        int8=5e4 * level,
    )
    return Golden(
        inputs=np.zeros((num_inputs, 1), np.float32),
        reference=reference,
        noise_l2=np.full(num_inputs, SIGMA * np.sqrt(num_outputs)),
        labels=None,
        sigma=np.full(reference.shape, sigma),
        info=GoldenInfo(
            source="a test",
            inputs="none",
            num_inputs=num_inputs,
            precision_noise=noise,
            weight_noise_l2=weight_noise_l2,
        ),
    )


def with_noise(golden, deviation, *, seed=2):
    rng = np.random.default_rng(seed)
    return golden.reference + deviation * rng.normal(size=golden.reference.shape)


def test_noise_within_sigma_passes_every_check(full):
    verdict = judge_end_to_end(with_noise(full, 0.5 * SIGMA), full)
    assert verdict.passed
    assert verdict.missing == ()
    assert verdict.z_rms == pytest.approx(0.5, rel=0.1)
    assert verdict.z_max == pytest.approx(0.5 * 3.5, rel=0.3)
    assert verdict.systematic < 3 < verdict.systematic_limit
    assert verdict.num_changed_top1 == 0


def test_an_error_above_sigma_fails_though_r_forgives_it(full):
    verdict = judge_end_to_end(with_noise(full, 1.1 * SIGMA), full)
    assert verdict.noise_ratio < NOISE_RATIO_LIMIT
    assert "1.1 times the propagated deviation" in verdict.reasons[0]


def test_one_output_too_far_off_fails_and_is_named(full):
    outputs = full.reference.copy()
    for z, passes in ((3.9, True), (4.1, False)):
        outputs[17, 3] = full.reference[17, 3] + z * SIGMA
        verdict = judge_end_to_end(outputs, full)
        assert verdict.passed is passes
        assert verdict.z_max == pytest.approx(z, rel=0.01)
    assert "output 3 of input 17 is 4.1 propagated deviations off" in verdict.reasons[0]


def test_errors_of_few_degrees_of_freedom_may_be_larger(full):
    """Of one output for two inputs 1.5 sigma may be luck; of the same for 200 x 10, it is not."""
    few = full_golden(num_outputs=1, num_inputs=2)
    signs = np.float64([[1.5], [-1.5]])
    assert judge_end_to_end(few.reference + SIGMA * signs, few).passed
    assert not judge_end_to_end(few.reference + 2 * SIGMA * signs, few).passed
    assert not judge_end_to_end(with_noise(full, 1.5 * SIGMA), full).passed


def test_an_error_that_all_inputs_share_counts_once():
    """Ten outputs that are constant err by ten roundings, however many inputs there are."""
    golden = full_golden(num_outputs=10, num_inputs=32)
    shared = 1.2 * SIGMA * np.where(np.arange(10) % 3, 1, -1)
    assert judge_end_to_end(golden.reference + shared, golden).passed
    assert not judge_end_to_end(golden.reference + 3 * shared, golden).passed
    assert not judge_end_to_end(with_noise(golden, 1.2 * SIGMA), golden).passed


def test_r_is_never_stricter_than_errors_drawn_for_any_order(full):
    info = dataclasses.replace(full.info, drawn_noise=40 * full.info.precision_noise.float32)
    drawn = dataclasses.replace(full, info=info, sigma=None)
    outputs = with_noise(full, 13 * SIGMA)
    assert judge_end_to_end(outputs, full).noise_ratio == pytest.approx(13, rel=0.05)
    assert judge_end_to_end(outputs, drawn).noise_ratio == pytest.approx(1.3, rel=0.05)


def test_below_the_normal_numbers_a_rounding_is_absolute(full):
    tiny = dataclasses.replace(
        full,
        reference=full.reference * 1e-43,
        noise_l2=np.zeros(200),
        sigma=np.zeros_like(full.sigma),
    )
    assert judge_end_to_end(tiny.reference.astype(np.float32), tiny).passed
    assert not judge_end_to_end(tiny.reference + 8e-45, tiny).passed


def test_where_sigma_is_zero_nothing_but_the_last_bit_may_differ(full):
    silent = dataclasses.replace(full, sigma=np.zeros_like(full.sigma))
    assert judge_end_to_end(full.reference.astype(np.float32), silent).passed
    silent.reference[0, 0] = 0
    outputs = silent.reference.copy()
    outputs[0, 0] = 1e-30
    assert judge_end_to_end(outputs, silent).z_max > 1e14


def test_what_is_missing_is_said_and_not_judged(golden):
    verdict = judge_end_to_end(candidate_at(golden, 1.0), golden)
    assert (verdict.z_rms, verdict.z_max, verdict.systematic) == (None, None, None)
    assert verdict.missing == (
        "z: the golden file has no sigma",
        "T: takes 128 inputs, and there are 6",
        "the noise of lower precisions: not in the golden file, taken as a ResNet-18's",
    )
    info = dataclasses.replace(golden.info, sigma_missing="no rule for cumsum")
    named = dataclasses.replace(golden, info=info)
    assert "z: no rule for cumsum" in judge_end_to_end(golden.reference, named).missing


# --- T -------------------------------------------------------------------------------------------


def test_an_offset_below_the_noise_is_seen(full):
    offset = 0.3 * SIGMA
    verdict = judge_end_to_end(with_noise(full, 0.5 * SIGMA) + offset, full)
    assert verdict.noise_ratio < 1
    assert verdict.z_rms < 1
    assert "the same for every input: T = " in verdict.reasons[0]
    # 1 of noise and N offset^2 / (noise^2 + offset^2)
    assert verdict.systematic == pytest.approx(1 + 200 * 0.09 / 0.34, rel=0.3)


def test_an_offset_that_rounded_weights_explain_is_forgiven():
    offset = 0.3 * SIGMA
    for allowed, passes in ((0.3, True), (0.1, False)):
        golden = full_golden(num_outputs=10, weight_noise_l2=allowed * offset * np.sqrt(10))
        assert judge_end_to_end(with_noise(golden, 0.5 * SIGMA) + offset, golden).passed is passes


@pytest.mark.parametrize("num_outputs", [1, 3, 1000])
def test_noise_of_few_degrees_of_freedom_does_not_alarm(num_outputs):
    """With one output T is a chi-square of one degree: above 5 once in 40 times."""
    golden = full_golden(num_outputs=num_outputs, num_inputs=128, weight_noise_l2=0.0)
    verdicts = [
        judge_end_to_end(with_noise(golden, 0.3 * SIGMA, seed=seed), golden)
        for seed in range(300 if num_outputs < 10 else 20)
    ]
    assert all(verdict.passed for verdict in verdicts)
    largest = max(verdict.systematic for verdict in verdicts)
    assert (largest > SYSTEMATIC_LIMIT) is (num_outputs == 1)
    expected = {1: 27.5, 3: 12.1, 1000: SYSTEMATIC_LIMIT}[num_outputs]
    assert verdicts[0].systematic_limit == pytest.approx(expected, rel=0.1)


# --- predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("margin", "passes"), [(5.0, True), (6.0, False)])
def test_a_changed_prediction_is_excused_by_a_small_margin_only(full, margin, passes):
    """4 sqrt(2) = 5.66 deviations; the error itself is 3.1 of each of the two outputs."""
    first, second = np.argsort(-full.reference[7])[:2]
    full.reference[7, second] = full.reference[7, first] - margin * SIGMA
    outputs = full.reference.copy()
    outputs[7, first] -= 3.1 * SIGMA
    outputs[7, second] += 3.1 * SIGMA
    verdict = judge_end_to_end(outputs, full)
    assert verdict.num_changed_top1 == 1
    assert verdict.passed is passes
    if not passes:
        assert verdict.reasons[0].startswith(
            f"the prediction for input 7 is {second}, not {first}, whose margin of 6e-06"
        )


def test_without_sigma_a_changed_prediction_is_reported_as_not_judged(golden):
    first, second = np.argsort(-golden.reference[2])[:2]
    golden.reference[2, second] = golden.reference[2, first] - 1e-7
    outputs = golden.reference.copy()
    outputs[2, [first, second]] = outputs[2, [second, first]]
    verdict = judge_end_to_end(outputs, golden)
    assert verdict.passed
    assert "whether the changed predictions are excused: that takes sigma" in verdict.missing


# --- precision -----------------------------------------------------------------------------------

IN_R = {"float32": 1.0, "tf32": 1.5e3, "float16": 1.9e3, "bfloat16": 1.2e4, "int8": 5e4}


@pytest.mark.parametrize("claimed", ["float32", "tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("computed", IN_R)
def test_each_precision_passes_as_itself_and_not_as_a_finer_one(full, computed, claimed):
    verdict = judge_end_to_end(
        with_noise(full, 0.9 * IN_R[computed] * SIGMA), full, precision=claimed
    )
    # TF32 and float16 round alike; without a session that may use TF32 it is float16.
    assert verdict.precision.found == {"tf32": "float16"}.get(computed, computed)
    assert verdict.precision.claimed == claimed
    order = [*IN_R]
    coarser = order.index(computed) > order.index(claimed) and computed != "float16"
    assert verdict.passed is not (coarser or (computed, claimed) == ("float16", "float32"))


def test_the_reason_names_the_arithmetic_and_what_was_claimed(full):
    outputs = with_noise(full, IN_R["bfloat16"] * SIGMA)
    verdict = judge_end_to_end(outputs, full)
    assert verdict.reasons[:2] == (
        "the error is 1.2e+04 times the noise of float32 arithmetic (at most 4)",
        "the error is that of bfloat16 arithmetic (R = 1.2e+04), not of float32",
    )
    advised = judge_end_to_end(
        outputs, full, facts=RunFacts(fast="bfloat16", advice="set HINT=f32")
    )
    assert advised.reasons[1].endswith("set HINT=f32")


def test_a_claim_of_lower_precision_has_its_own_limit(full):
    for ratio, passes in ((3.8, True), (4.2, False)):
        outputs = full.reference + ratio * IN_R["tf32"] * SIGMA * np.sign(full.reference)
        verdict = judge_end_to_end(outputs, full, precision="tf32")
        assert verdict.precision.ratio == pytest.approx(ratio)
        assert verdict.passed is passes
        assert verdict.z_rms is None
    assert verdict.reasons[0] == "the error is 4.2 times the noise of TF32 arithmetic (at most 4)"


def test_a_claim_does_not_excuse_a_wrong_prediction(full):
    """The error is within bfloat16's noise, as it sits in one input alone."""
    outputs = full.reference.copy()
    first, second = np.argsort(-full.reference[7])[:2]
    full.reference[7, first] = full.reference[7, second] + 1.5
    outputs[7, second] = full.reference[7, first] + 0.01
    outputs[7, first] = full.reference[7, first]
    sure = dataclasses.replace(full, reference=full.reference)
    verdict = judge_end_to_end(outputs, sure, precision="bfloat16")
    assert any("the prediction for input 7" in reason for reason in verdict.reasons)


def test_a_precision_that_overflows_cannot_be_claimed(full):
    noise = dataclasses.replace(full.info.precision_noise, float16=None)
    full = dataclasses.replace(full, info=dataclasses.replace(full.info, precision_noise=noise))
    verdict = judge_end_to_end(full.reference + 1e-3, full, precision="float16")
    assert verdict.reasons[0] == "float16 arithmetic overflows in this network"


def test_inputs_without_sigma_are_said_to_be_unjudged_by_z(full):
    some = dataclasses.replace(full, sigma=full.sigma[:7])
    outputs = full.reference.copy()
    outputs[9] += 100 * SIGMA  # beyond the seven
    verdict = judge_end_to_end(outputs, some)
    assert verdict.z_max == 0
    assert "z beyond the first 7 inputs" in verdict.missing
    outputs[3] += 100 * SIGMA
    assert judge_end_to_end(outputs, some).z_max > 4


def test_a_prediction_beyond_them_is_excused_by_the_largest_sigma_seen(full):
    some = dataclasses.replace(full, sigma=full.sigma[:7])
    outputs = full.reference.copy()
    right = int(outputs[9].argmax())
    outputs[9, (right + 1) % outputs.shape[1]] = outputs[9, right] * (1 + 1e-3)
    assert any("the prediction for input 9" in r for r in judge_end_to_end(outputs, some).reasons)
    wide = np.full_like(some.sigma, 1e3)
    excused = judge_end_to_end(outputs, dataclasses.replace(some, sigma=wide)).reasons
    assert not any("the prediction for input 9" in reason for reason in excused)
