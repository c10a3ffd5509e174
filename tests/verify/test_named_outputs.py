"""Outputs of any kind and number, each judged as what it is, and named where it is wrong."""

import dataclasses

import numpy as np
import pytest

from resdeploy.errors import BundleError, ResdeployError
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.verify.golden_file import load_golden, save_golden
from resdeploy.verify.named_outputs import golden_from_outputs, judge_named_outputs

N = 12
INPUTS = np.zeros((N, 1), np.float32)


def exact_outputs():
    rng = np.random.default_rng(3)
    return {
        "features": 1e3 * rng.normal(size=(N, 2, 3)),
        "box": 1e-3 * rng.normal(size=(N, 4)),
        "label": rng.integers(0, 5, size=N),
        "mask": rng.random((N, 2, 2)) > 0.5,
    }


def as_float32(outputs, *, seed=1):
    """Return outputs with the noise of a sum in float32."""
    rng = np.random.default_rng(seed)
    return {
        name: (y * (1 + 2e-7 * rng.normal(size=y.shape))).astype(np.float32)
        if y.dtype.kind == "f"
        else y
        for name, y in outputs.items()
    }


def golden_of(exact, own=None):
    info = GoldenInfo(source="a model", inputs="zeros", num_inputs=N)
    return golden_from_outputs(INPUTS, exact, own or as_float32(exact), info=info)


@pytest.fixture
def golden():
    return golden_of(exact_outputs())


def candidate(**changes):
    return as_float32(exact_outputs(), seed=2) | changes


def test_correct_outputs_pass_whatever_their_names(golden):
    assert judge_named_outputs(candidate(), golden).passed
    others = {f"other_{name}": y for name, y in candidate().items()}
    assert judge_named_outputs(others, golden).passed


def test_a_small_output_does_not_hide_behind_the_noise_of_a_large_one(golden):
    box = candidate()["box"] * np.float32(1.001)
    verdict = judge_named_outputs(candidate(box=box), golden)
    assert verdict.noise_ratio < 4
    assert {reason.partition(":")[0] for reason in verdict.reasons} == {"output 'box'"}


def test_drawn_noise_of_a_large_output_is_not_that_of_a_small_one(golden):
    sigma = np.concatenate([np.full((N, 6), 1.0), np.full((N, 4), 1e-9)], axis=1)
    info = dataclasses.replace(golden.info, drawn_noise=1e-3)
    noisy = dataclasses.replace(golden, sigma=sigma, info=info)
    assert judge_named_outputs(candidate(), noisy).passed
    box = candidate()["box"] * np.float32(1.0001)
    reasons = judge_named_outputs(candidate(box=box), noisy).reasons
    assert any(" times the noise of " in reason for reason in reasons)


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        ("label", (4,), "output 'label' of input 4 is 9, not "),
        ("mask", (7, 1, 0), "output 'mask'[1, 0] of input 7 is "),
        ("label", (0,), "output 'label' of input 0 is 9, not "),
    ],
)
def test_one_wrong_integer_fails_and_is_named(golden, name, place, words):
    values = candidate()[name].copy()
    values[place] = ~values[place] if name == "mask" else 9
    verdict = judge_named_outputs(candidate(**{name: values}), golden)
    (reason,) = verdict.reasons
    assert reason.startswith(words)


def test_many_wrong_integers_are_counted(golden):
    reasons = judge_named_outputs(candidate(label=candidate()["label"] + 1), golden).reasons
    assert len(reasons) == 4
    assert reasons[-1] == f"so are {N - 3} more integers"


def test_what_float32_itself_decides_is_excused():
    exact = exact_outputs()
    own = as_float32(exact)
    own["label"] = own["label"].copy()
    own["label"][5] += 1
    golden = golden_of(exact, own)
    assert judge_named_outputs(own, golden).passed
    own["label"][5] += 1
    assert not judge_named_outputs(own, golden).passed


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("label", np.int32), ("label", np.float32), ("mask", np.int64), ("box", np.float64)],
)
def test_another_type_fails(golden, name, dtype):
    verdict = judge_named_outputs(candidate(**{name: candidate()[name].astype(dtype)}), golden)
    assert verdict.reasons == (
        f"output {name!r} is {np.dtype(dtype)}, the reference's is {candidate()[name].dtype}",
    )


def test_a_float_between_two_integers_is_neither(golden):
    verdict = judge_named_outputs(candidate(label=candidate()["label"] + np.float32(0.25)), golden)
    assert any("is no integer, not" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: {name: v for name, v in y.items() if name != "box"},
        lambda y: y | {"more": y["box"]},
        lambda y: y | {"features": y["features"].reshape(N, 3, 2)},
        lambda y: y | {"label": y["label"][:, None]},
        lambda y: {"box": y["box"]} | y,
    ],
    ids=["fewer", "more", "transposed", "one more axis", "another order"],
)
def test_another_number_or_shape_is_an_error(golden, change):
    with pytest.raises(ResdeployError, match="outputs have the shapes"):
        judge_named_outputs(change(candidate()), golden)


def test_decisions_alone_are_judged_and_counted():
    exact = {"label": exact_outputs()["label"]}
    golden = golden_of(exact)
    assert judge_named_outputs(exact, golden).passed
    wrong = exact["label"].copy()
    wrong[3] += 1
    verdict = judge_named_outputs({"label": wrong}, golden)
    assert (verdict.passed, verdict.num_changed_top1) == (False, 1)
    assert verdict.top1_agreement == pytest.approx(1 - 1 / N)


def masked(value=-np.inf):
    exact = exact_outputs()
    exact["features"][:, 0, 1] = value
    return exact


def test_the_infinity_of_a_mask_is_to_be_the_same():
    golden = golden_of(masked())
    assert judge_named_outputs(as_float32(masked(), seed=2), golden).passed
    for wrong in (np.inf, np.nan, -1e30):
        other = as_float32(masked(), seed=2)
        other["features"][3, 0, 1] = wrong
        verdict = judge_named_outputs(other, golden)
        assert any("1 outputs are NaN or infinite" in reason for reason in verdict.reasons)
    other = as_float32(masked(), seed=2)
    other["features"][3, 1, 1] = -np.inf
    assert not judge_named_outputs(other, golden).passed


@pytest.mark.parametrize(
    ("exact", "own"),
    [(masked(np.nan), masked(np.nan)), (masked(), exact_outputs()), (exact_outputs(), masked())],
    ids=["NaN", "infinite in float64 only", "infinite in float32 only"],
)
def test_outputs_that_are_infinite_by_accident_prove_nothing(exact, own):
    with pytest.raises(ResdeployError, match="prove nothing"):
        golden_of(exact, as_float32(own))


def test_a_model_without_outputs_is_refused():
    for outputs in ({}, {"none": np.zeros((N, 0))}):
        with pytest.raises(ResdeployError, match="no outputs, or empty ones"):
            golden_of(outputs, outputs or {})


def test_all_of_it_travels_in_the_golden_file(golden, tmp_path):
    save_golden(tmp_path / "g.npz", golden)
    read = load_golden(tmp_path / "g.npz")
    assert read.info == golden.info
    for name in ("exact", "near_ties", "output_noise"):
        assert getattr(read, name).tobytes() == getattr(golden, name).tobytes()
    assert judge_named_outputs(candidate(), read).passed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exact": np.zeros((N, 4), np.int64)}, "'exact' has 4 columns for outputs of 5"),
        ({"exact": np.zeros((N, 5))}, "'exact' is float64"),
        ({"near_ties": np.zeros((2, 2), np.int64)}, "'near_ties' is int64 of shape"),
        ({"output_noise": np.zeros((N, 3))}, "'output_noise' has 3 columns for 2 outputs"),
        ({"output_noise": -np.ones((N, 2))}, "'output_noise' holds a number that is no norm"),
        ({"reference": np.zeros((N, 9))}, "'reference' has 9 columns for outputs of 10"),
    ],
)
def test_refuses_arrays_that_do_not_fit_the_outputs(golden, tmp_path, changes, words):
    with pytest.raises(BundleError, match=words):
        save_golden(tmp_path / "g.npz", dataclasses.replace(golden, **changes))


def test_a_golden_file_of_before_takes_all_outputs_for_numbers(golden):
    columns = [y.reshape(N, -1) for y in exact_outputs().values()]
    old = dataclasses.replace(
        golden,
        reference=np.concatenate(columns, axis=1).astype(np.float64),
        info=dataclasses.replace(golden.info, outputs=()),
        exact=None,
        near_ties=None,
        output_noise=None,
    )
    assert judge_named_outputs(candidate(), old).passed


def test_the_sign_of_a_single_number_is_the_prediction():
    exact = {"logit": np.linspace(-1, 1, N)[:, None]}
    golden = golden_of(exact)
    flipped = {"logit": as_float32(exact)["logit"].copy()}
    flipped["logit"][4] *= -1
    assert judge_named_outputs(flipped, golden).num_changed_top1 == 1
