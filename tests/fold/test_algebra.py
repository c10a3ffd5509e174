"""The fold algebra against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resdeploy.fold.algebra import (
    BatchNormParams,
    NonFiniteFoldError,
    apply_edit,
    fold_batchnorm,
    map_after,
    map_before,
    no_edit,
    round_once,
    scale_and_shift,
)
from resdeploy.graph.affine_layer import LayerShape

FORMATS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


def random_bn(rng: np.random.Generator, channels: int, eps: float = 1e-5) -> BatchNormParams:
    return BatchNormParams(
        gamma=rng.normal(size=channels).astype(np.float32),
        beta=rng.normal(size=channels).astype(np.float32),
        mean=rng.normal(size=channels).astype(np.float32),
        var=rng.uniform(0.1, 2, size=channels).astype(np.float32),
        eps=eps,
    )


def exact_scale(bn: BatchNormParams, c: int) -> Fraction:
    """gamma / sqrt(var + eps) of channel c to 60 digits."""
    radicand = Fraction(float(bn.var[c])) + Fraction(bn.eps)
    shift = 10**60
    root = Fraction(math.isqrt(radicand.numerator * shift * shift // radicand.denominator), shift)
    return Fraction(float(bn.gamma[c])) / root


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_folded_value_is_within_half_an_ulp_of_the_exact_one(dtype):
    rng = np.random.default_rng(0)
    bn = random_bn(rng, 5)
    weight = round_once(rng.normal(size=(5, 3, 2, 2)), dtype)
    bias = round_once(rng.normal(size=5), dtype)
    folded = fold_batchnorm(weight, bias, bn, dtype=dtype)
    slack = 2.0 if dtype == "float64" else 0.5001  # float64 itself is the working precision
    for c in range(5):
        scale = exact_scale(bn, c)
        exact_bias = (Fraction(float(bias[c])) - Fraction(float(bn.mean[c]))) * scale + Fraction(
            float(bn.beta[c])
        )
        pairs = [(folded.bias[c], exact_bias)]
        pairs += [
            (got, Fraction(float(raw)) * scale)
            for got, raw in zip(folded.weight[c].ravel(), weight[c].ravel(), strict=True)
        ]
        for got, exact in pairs:
            ulp = 2.0 ** (math.frexp(float(exact))[1] - FORMATS[dtype])
            assert abs(float(Fraction(float(got)) - exact)) <= slack * ulp
    assert folded.max_ulp <= 0.5


def test_folding_does_not_change_the_function():
    rng = np.random.default_rng(1)
    bn = random_bn(rng, 4, eps=1e-3)
    weight, bias, x = rng.normal(size=(4, 6)), rng.normal(size=4), rng.normal(size=6)
    folded = fold_batchnorm(weight, bias, bn, dtype="float64")
    y = weight @ x + bias
    expected = bn.gamma * (y - bn.mean) / np.sqrt(bn.var.astype(np.float64) + bn.eps) + bn.beta
    np.testing.assert_allclose(folded.weight @ x + folded.bias, expected, rtol=1e-13, atol=1e-14)


def test_a_wrong_eps_is_visible():
    """The tolerance above bites: eps 1e-5 for 1e-3 is caught."""
    rng = np.random.default_rng(1)
    right, wrong = random_bn(rng, 4, eps=1e-3), random_bn(np.random.default_rng(1), 4, eps=1e-5)
    weight = rng.normal(size=(4, 6))
    a = fold_batchnorm(weight, None, right, dtype="float64").weight
    b = fold_batchnorm(weight, None, wrong, dtype="float64").weight
    assert np.abs(a / b - 1).max() > 1e-4


def test_an_identity_batchnorm_changes_no_bit():
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    bias = rng.normal(size=8).astype(np.float32)
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    bn = BatchNormParams(gamma=ones, beta=zeros, mean=zeros, var=ones, eps=0.0)
    folded = fold_batchnorm(weight, bias, bn, dtype="float32")
    assert folded.weight.astype(np.float32).tobytes() == weight.tobytes()
    assert folded.bias.astype(np.float32).tobytes() == bias.tobytes()


def test_missing_gamma_and_beta_are_one_and_zero():
    rng = np.random.default_rng(3)
    mean, var, weight = rng.normal(size=3), rng.uniform(1, 2, size=3), rng.normal(size=(3, 2))
    without = BatchNormParams(gamma=None, beta=None, mean=mean, var=var, eps=1e-5)
    explicit = BatchNormParams(gamma=np.ones(3), beta=np.zeros(3), mean=mean, var=var, eps=1e-5)
    a = fold_batchnorm(weight, None, without, dtype="float32")
    b = fold_batchnorm(weight, None, explicit, dtype="float32")
    assert a.weight.tobytes() == b.weight.tobytes()
    assert a.bias.tobytes() == b.bias.tobytes()


def test_the_channel_axis_is_honoured():
    rng = np.random.default_rng(4)
    bn, weight = random_bn(rng, 3), rng.normal(size=(2, 3))
    a = fold_batchnorm(weight, None, bn, dtype="float64", channel_axis=1).weight
    b = fold_batchnorm(weight.T, None, bn, dtype="float64").weight
    assert a.tobytes() == np.ascontiguousarray(b.T).tobytes()


def scaling(*scale: float, shift: float = 0) -> BatchNormParams:
    """A BatchNorm that multiplies its channels by these, and adds one number."""
    gamma = np.array(scale)
    nothing = np.zeros_like(gamma)
    return BatchNormParams(gamma=gamma, beta=nothing + shift, mean=nothing, var=nothing + 1, eps=0)


def test_subnormal_weights_that_change_no_output_become_zero_and_are_counted():
    """A dead channel makes ONNX Runtime 50 times slower; its bias takes the products in."""
    folded = fold_batchnorm(np.ones((2, 3)), None, scaling(1e-40, 1, shift=0.5), dtype="float32")
    assert folded.weight.tolist() == [[0] * 3, [1] * 3]
    assert folded.num_flushed == 3
    bias, largest = np.float32(0.5), np.float32(2.0**60)
    assert bias + np.float32(1e-40) * largest * 3 == bias


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_bias_must_be_large_enough(dtype):
    """At half the size, the fold has to keep the weight, as it was subnormal before."""
    smallest, precision = {"float32": (126, 24), "bfloat16": (126, 8), "float64": (1022, 53)}[dtype]
    weight = np.array([[2.0 ** -(smallest + 1)]])
    enough = 2.0 ** (60 + precision + 1 - smallest - 1)
    for bias, num_flushed in ((enough, 1), (enough / 2, 0), (-enough, 1)):
        folded = fold_batchnorm(weight, np.array([bias]), scaling(1), dtype=dtype)
        assert folded.num_flushed == num_flushed
        assert folded.weight == weight * (1 - num_flushed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_refuses_a_channel_that_the_fold_takes_below_the_normal_numbers(dtype):
    """A later layer may multiply by 1e38: there is no telling that its digits do not matter."""
    small = {"float64": 1e-310}.get(dtype, 1e-40)
    with pytest.raises(NonFiniteFoldError, match=f"channel 1 underflows {dtype}"):
        fold_batchnorm(np.ones((2, 3)), None, scaling(1, small), dtype=dtype)


def test_a_small_weight_beside_large_ones_is_kept():
    weight = np.array([[1.0, 1e-40]])
    folded = fold_batchnorm(weight, None, scaling(1), dtype="float32")
    assert folded.weight.tolist() == weight.astype(np.float32).tolist()


def test_a_dead_channel_whose_bias_alone_is_left_keeps_it_or_is_refused():
    dead = np.zeros((1, 3))
    exact = float(np.float32(1e-42))
    folded = fold_batchnorm(dead, None, scaling(1, shift=exact), dtype="float32")
    assert folded.bias.tolist() == [exact]
    with pytest.raises(NonFiniteFoldError, match="channel 0 underflows float32"):
        fold_batchnorm(dead, np.array([1.0]), scaling(1.0001e-42), dtype="float32")


@pytest.mark.parametrize("small", ["weight", "bias"])
def test_where_large_constants_are_about_no_number_may_lose_its_digits(small):
    weight = np.array([[1.0, 1.0001e-42 if small == "weight" else 1.0]])
    bias = np.array([1.0001e-42 if small == "bias" else 100.0])
    edit = no_edit(1, bias)
    assert apply_edit(weight, edit, dtype="float32").weight.size == 2
    with pytest.raises(NonFiniteFoldError, match="channel 0 underflows float32"):
        apply_edit(weight, edit, dtype="float32", is_calm=False)


def test_float16_keeps_its_subnormals():
    bn = BatchNormParams(gamma=None, beta=None, mean=np.zeros(1), var=np.ones(1), eps=0.0)
    folded = fold_batchnorm(np.array([[1.0, 2.0**-20]]), None, bn, dtype="float16")
    assert folded.weight.tolist() == [[1.0, 2.0**-20]]
    assert folded.num_flushed == 0


def test_refuses_a_channel_that_sinks_below_the_normal_numbers_of_float16():
    gamma = np.array([1.0, 1e-5])
    bn = BatchNormParams(gamma=gamma, beta=None, mean=np.zeros(2), var=np.ones(2), eps=0.0)
    with pytest.raises(NonFiniteFoldError, match="channel 1 underflows float16"):
        fold_batchnorm(np.ones((2, 3)), None, bn, dtype="float16")
    assert fold_batchnorm(np.ones((2, 3)), None, bn, dtype="bfloat16").num_flushed == 0


# --- maps before a layer, transposed and grouped layouts ---


def dense(weight: np.ndarray, shape: LayerShape) -> np.ndarray:
    """The same layer without groups and as (O, I, K), to check against."""
    groups = shape.groups
    if shape.transposed:
        per_group = weight.reshape(groups, -1, *weight.shape[1:])
        blocks = [block.swapaxes(0, 1) for block in per_group]
    else:
        blocks = list(weight.reshape(groups, -1, *weight.shape[1:]))
    outputs, inputs = blocks[0].shape[:2]
    full = np.zeros((groups * outputs, groups * inputs, *blocks[0].shape[2:]))
    for g, block in enumerate(blocks):
        full[g * outputs : (g + 1) * outputs, g * inputs : (g + 1) * inputs] = block
    return full


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_maps_before_and_after_leave_the_same_function(groups, transposed):
    rng = np.random.default_rng(5)
    shape = LayerShape(groups=groups, transposed=transposed)
    first, second = (4, 6 // groups) if transposed else (6, 4 // groups)
    weight, bias = rng.normal(size=(first, second, 3)), rng.normal(size=6)
    before = rng.normal(size=(2, 4)).astype(np.longdouble)
    after = rng.normal(size=(2, 6)).astype(np.longdouble)
    edit = no_edit(6, bias)
    edit = map_after(edit, *after)
    edit = map_before(edit, weight, shape, *before)
    edit = map_after(edit, *after)
    folded = apply_edit(weight, edit, dtype="float64", shape=shape)
    x = rng.normal(size=(4, 3))  # what one window of the kernel sees
    y = np.einsum("oik,ik->o", dense(weight, shape), before[0][:, None] * x + before[1][:, None])
    y = after[0] * (y + bias) + after[1]
    y = after[0] * y + after[1]
    got = np.einsum("oik,ik->o", dense(folded.weight, shape), x) + folded.bias
    np.testing.assert_allclose(got, y.astype(np.float64), rtol=1e-12, atol=1e-12)


def test_two_batchnorms_in_a_row_are_rounded_once():
    rng = np.random.default_rng(6)
    weight, first, second = rng.normal(size=(8, 20)), random_bn(rng, 8), random_bn(rng, 8)
    edit = no_edit(8, None)
    for bn in (first, second):
        edit = map_after(edit, *scale_and_shift(bn))
    once = apply_edit(weight.astype(np.float32), edit, dtype="float32").weight
    for c in range(8):
        scale = exact_scale(first, c) * exact_scale(second, c)
        for got, raw in zip(once[c], weight[c].astype(np.float32), strict=True):
            exact = Fraction(float(raw)) * scale
            ulp = 2.0 ** (math.frexp(float(exact))[1] - 24)
            assert abs(float(Fraction(float(got)) - exact)) <= 0.5001 * ulp


@pytest.mark.parametrize(
    "change",
    [
        {"var": np.zeros(2), "eps": 0.0},
        {"var": np.array([1.0, -1.0]), "eps": 1e-5},
        {"mean": np.array([0.0, np.nan])},
        {"gamma": np.array([np.inf, 1.0])},
    ],
)
def test_refuses_statistics_that_have_no_finite_fold(change):
    parameters = {"gamma": np.ones(2), "beta": np.zeros(2), "mean": np.zeros(2), "var": np.ones(2)}
    bn = BatchNormParams(**({"eps": 1e-5} | parameters | change))
    with pytest.raises(NonFiniteFoldError, match=r"channel [01] has no finite scale and shift"):
        fold_batchnorm(np.ones((2, 1)), None, bn, dtype="float32")


def test_refuses_a_fold_that_overflows_the_storage_type():
    bn = BatchNormParams(
        gamma=np.array([1e3]), beta=None, mean=np.zeros(1), var=np.array([1e-4]), eps=0.0
    )
    with pytest.raises(NonFiniteFoldError, match="overflows float16"):
        fold_batchnorm(np.ones((1, 1)), None, bn, dtype="float16")
    assert fold_batchnorm(np.ones((1, 1)), None, bn, dtype="float32").weight.item() == 1e5


def test_refuses_channels_that_do_not_match():
    bn = random_bn(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match="2 output channels, the BatchNorm 3"):
        fold_batchnorm(np.ones((2, 1)), None, bn, dtype="float32")


finite64 = hnp.arrays(
    np.float64, 16, elements=st.floats(-1e30, 1e30, allow_nan=False, allow_subnormal=False)
)


@given(finite64)
def test_bfloat16_is_rounded_once(values):
    """Against ml_dtypes on values that float32 holds exactly, and by hand on ties between."""
    import ml_dtypes

    as_float32 = values.astype(np.float32).astype(np.float64)
    expected = as_float32.astype(ml_dtypes.bfloat16).astype(np.float64)
    assert round_once(as_float32, "bfloat16").tolist() == expected.tolist()


def test_bfloat16_does_not_round_twice():
    """1 + 2^-8 is a tie between two bfloat16 numbers; a hair above must go up, not to even."""
    tie, hair = 1 + 2.0**-8, 2.0**-40
    assert round_once(np.array([tie, tie + hair, tie - hair]), "bfloat16").tolist() == [
        1.0,
        1 + 2.0**-7,
        1.0,
    ]


def test_an_unknown_storage_type_is_refused():
    with pytest.raises(ValueError, match="int8"):
        round_once(np.ones(1), "int8")


# --- what a broken algebra once passed unnoticed ---


def test_a_weight_of_several_blocks_is_folded_as_one():
    """Channels are folded some 65 thousand weights at a time."""
    rng = np.random.default_rng(7)
    bn, weight = random_bn(rng, 3), rng.normal(size=(3, 40_000)).astype(np.float32)
    weight[0, 0] = 1e-39  # becomes zero, in the first block
    # Only the first channel is inexact: the largest distance is not that of the last block.
    bn.gamma[1:], bn.mean[:], bn.beta[:], bn.var[1:] = 2, 0, 1, 1
    bn = BatchNormParams(gamma=bn.gamma, beta=bn.beta, mean=bn.mean, var=bn.var, eps=0.0)
    folded = fold_batchnorm(weight, None, bn, dtype="float32")
    alone = [
        fold_batchnorm(
            weight[c : c + 1],
            None,
            BatchNormParams(
                gamma=bn.gamma[c : c + 1],
                beta=bn.beta[c : c + 1],
                mean=bn.mean[c : c + 1],
                var=bn.var[c : c + 1],
                eps=0.0,
            ),
            dtype="float32",
        )
        for c in range(3)
    ]
    assert folded.weight.tobytes() == b"".join(part.weight.tobytes() for part in alone)
    assert folded.num_flushed == 1
    assert folded.max_ulp == alone[0].max_ulp > 0.4


def test_an_underflow_is_told_by_its_channel_in_any_block():
    bn = BatchNormParams(
        gamma=np.array([1, 1, 1e-6]), beta=None, mean=np.zeros(3), var=np.ones(3), eps=0.0
    )
    with pytest.raises(NonFiniteFoldError, match="channel 2 underflows float16"):
        fold_batchnorm(np.ones((3, 40_000)), None, bn, dtype="float16")


def test_a_dead_channel_of_float16_has_not_underflowed():
    bn = BatchNormParams(
        gamma=np.array([1.0, 0.0]), beta=None, mean=np.zeros(2), var=np.ones(2), eps=0.0
    )
    assert fold_batchnorm(np.ones((2, 3)), None, bn, dtype="float16").weight[1].tolist() == [0] * 3


def test_the_distance_of_a_bias_counts():
    bn = BatchNormParams(
        gamma=None, beta=np.array([1 + 2.0**-25]), mean=np.zeros(1), var=np.ones(1), eps=0.0
    )
    assert fold_batchnorm(np.ones((1, 1)), None, bn, dtype="float32").max_ulp == 0.25


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="long double is float64 here")
def test_float64_weights_are_rounded_once_where_the_machine_has_more():
    rng = np.random.default_rng(8)
    bn, weight = random_bn(rng, 4), rng.normal(size=(4, 200))
    folded = fold_batchnorm(weight, None, bn, dtype="float64").weight
    for c in range(4):
        scale = exact_scale(bn, c)
        for got, raw in zip(folded[c], weight[c], strict=True):
            exact = Fraction(float(raw)) * scale
            ulp = Fraction(2) ** (math.frexp(float(exact))[1] - 53)
            # Two roundings in extended precision come first.
            assert abs(Fraction(float(got)) - exact) <= Fraction(502, 1000) * ulp
