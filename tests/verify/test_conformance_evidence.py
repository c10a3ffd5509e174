"""The same inputs called in other ways, as a verdict: the bound, its floors, and that it bites."""

import numpy as np
import pytest

from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.verify.conformance_evidence import (
    CONFORMANCE_LIMIT,
    Repetition,
    judge_conformance,
    noise_units,
    stress_units,
)
from resdeploy.verify.golden_file import Golden

N, K = 4, 10


@pytest.fixture
def golden():
    return Golden(
        inputs=np.zeros((N, 1), np.float32),
        reference=np.random.default_rng(0).normal(size=(N, K)),
        noise_l2=np.full(N, 1e-5),
        labels=None,
        info=GoldenInfo(source="a test", inputs="none", num_inputs=N),
    )


def repetition(distance, *, row=1, unit=1e-6):
    """A repetition of which one row is `distance` noise units off."""
    expected = np.ones((N, K))
    outputs = expected.copy()
    outputs[row, 3] += distance * unit
    return Repetition(outputs=outputs, expected=expected, units=np.full(N, unit))


ONE_RUN = (np.ones((2, K)),)


def judge(*, batches=(), levels=(), stress=(), runs=ONE_RUN, missing=()):
    return judge_conformance(
        batches=dict(batches),
        levels=dict(levels),
        stress=dict(stress),
        runs=runs,
        missing=tuple(missing),
    )


KINDS = [("batches", "batch 3"), ("levels", "graph level 3"), ("stress", "stress input 3")]


@pytest.mark.parametrize(("kind", "title"), KINDS)
def test_a_single_row_above_the_limit_fails_and_one_below_passes(kind, title):
    assert CONFORMANCE_LIMIT == 8
    fine = judge(**{kind: {"3": repetition(7.9)}})
    assert fine.passed
    assert getattr(fine, kind)["3"] == pytest.approx(7.9, rel=1e-6)
    off = judge(**{kind: {"2": repetition(1), "3": repetition(8.1)}})
    assert off.reasons == (f"{title}: a row is 8.1 noise units off (at most 8)",)


@pytest.mark.parametrize(("kind", "title"), KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_fails(kind, title, bad):
    one = repetition(0)
    one.outputs[2, 5] = bad
    assert judge(**{kind: {"3": one}}).reasons == (
        f"{title}: a row is not finite, or not of the same shape",
    )


def test_a_batch_of_one_that_is_not_finite_is_no_excuse():
    one = repetition(0)
    one.expected[2, 5] = one.outputs[2, 5] = np.nan
    assert not judge(batches={"3": one}).passed
    assert not judge(levels={"basic": one}).passed


def test_outputs_of_another_shape_fail():
    one = repetition(0)
    other = Repetition(outputs=one.outputs[:, :9], expected=one.expected, units=one.units)
    assert not judge(batches={"3": other}).passed


def test_what_overflows_in_the_other_implementation_too_is_not_asked_for():
    one = repetition(0)
    one.expected[2, 5] = np.inf
    one.outputs[2] = np.nan
    assert judge(stress={"extreme": one}).passed
    one.outputs[1, 0] += 1
    assert not judge(stress={"extreme": one}).passed


def test_stress_of_which_nothing_is_left_is_said_to_be_missing():
    one = repetition(0)
    one.expected[:] = np.inf
    verdict = judge(stress={"extreme": one}, missing=["a thing"])
    assert verdict.stress == {}
    assert verdict.missing == (
        "a thing",
        "stress input extreme: not finite on the CPU without optimisation either",
    )


# --- the noise unit ------------------------------------------------------------------------------


def test_the_unit_is_the_inputs_own_noise_where_that_is_large(golden):
    golden.noise_l2[2] = 1
    assert noise_units(golden)[2] == 1


def test_an_input_whose_noise_is_small_by_luck_gets_the_networks(golden):
    golden.noise_l2[1] = 0
    relative = np.linalg.norm(golden.noise_l2) / np.linalg.norm(golden.reference)
    norm = np.linalg.norm(golden.reference[1])
    assert noise_units(golden)[1] == pytest.approx(relative * norm, rel=1e-3)


def test_without_noise_the_unit_is_the_rounding_of_the_outputs(golden):
    golden.noise_l2[:] = 0
    norms = np.linalg.norm(golden.reference, axis=1)
    np.testing.assert_allclose(noise_units(golden), 2.0**-24 * norms)


def stepped(golden, noise, *, kink=0.0, seed=1):
    """Outputs of an affine function with rounding errors of norm `noise`, at three points."""
    rng = np.random.default_rng(seed)
    y, slope = rng.normal(size=(2, N, K))
    error = rng.normal(size=(7, N, K)) * noise / np.sqrt(K)
    steps = []
    for i, d in enumerate((0.1, 0.05, 0.02)):
        ahead = y + d * slope + error[2 * i] + (kink if i == 0 else 0)
        steps.append((ahead, y - d * slope + error[2 * i + 1]))
    return y + error[6], steps


def test_the_unit_of_stress_is_the_rounding_measured_between_steps(golden):
    units = stress_units(golden, *stepped(golden, 1e-3))
    assert np.all((units > 0.3e-3) & (units < 3e-3))


def test_a_kink_in_one_step_does_not_loosen_the_unit(golden):
    units = stress_units(golden, *stepped(golden, 1e-3, kink=1.0))
    assert np.all(units < 3e-3)


def test_the_unit_of_stress_is_never_below_the_relative_noise(golden):
    y, steps = stepped(golden, 0.0)
    relative = np.linalg.norm(golden.noise_l2) / np.linalg.norm(golden.reference)
    np.testing.assert_allclose(
        stress_units(golden, y, steps), relative * np.linalg.norm(y, axis=1), rtol=1e-6
    )


def test_a_row_of_stress_that_is_not_finite_has_no_unit(golden):
    y, steps = stepped(golden, 1e-3)
    y[2, 0] = np.inf
    assert stress_units(golden, y, steps).tolist().index(0.0) == 2


# --- run to run ----------------------------------------------------------------------------------


def test_the_same_bits_again_are_deterministic():
    run = np.full((2, K), 0.1, np.float32)
    verdict = judge(runs=[run, run.copy(), run.copy()])
    assert verdict.deterministic
    assert verdict.max_run_to_run == 0


def test_runs_that_differ_are_measured_and_not_judged():
    run = np.ones((2, K), np.float32)
    other = run.copy()
    other[1, 4] += 2.0**-10
    verdict = judge(runs=[run, run, other])
    assert verdict.passed
    assert not verdict.deterministic
    assert verdict.max_run_to_run == 2.0**-10


def test_a_run_that_is_suddenly_not_finite_differs_by_infinity():
    other = np.ones((2, K))
    other[0, 0] = np.nan
    assert judge(runs=[np.ones((2, K)), other]).max_run_to_run == np.inf
    assert judge(runs=[other, other.copy()]).deterministic
    assert judge(runs=[other, other.copy()]).max_run_to_run == 0
