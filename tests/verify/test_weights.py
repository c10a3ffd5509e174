"""L1: what is near enough to an exact weight."""

import dataclasses

import numpy as np
import pytest

from resdeploy.verify.compare_structure import Affine, Numbers, SkeletonNode
from resdeploy.verify.weights import FOLD_LIMIT_ULP, ROUNDED_ONCE_ULP, judge_static


def layer(weight, bias, *, magnitude=None, dtype="float32") -> SkeletonNode:
    weight, bias = np.asarray(weight, float), np.asarray(bias, float)
    numbers = Affine(
        weight=weight,
        bias=bias,
        dtype=dtype,
        num_products=1,
        bias_magnitude=np.abs(bias) if magnitude is None else np.asarray(magnitude, float),
    )
    return SkeletonNode(name="conv", op="Conv", attributes=(), sources=(-1,), affine=numbers)


EXACT = np.random.default_rng(0).normal(size=1000)


def judge(reference, candidate):
    return judge_static([(reference, candidate)])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_rounded_once_are_within_half_an_ulp(dtype):
    rounded = EXACT.astype(dtype)
    result = judge(layer(EXACT, [0.3]), layer(rounded, np.float32([0.3]), dtype=dtype))
    assert 0.4 < result.layers[0].weight_ulp <= ROUNDED_ONCE_ULP


@pytest.mark.parametrize("steps", [2, 4])
def test_a_single_weight_may_not_move(steps):
    exact = np.float32(EXACT).reshape(8, 125)
    moved = exact.copy()
    for _ in range(steps):
        moved[2, 17] = np.nextafter(moved[2, 17], np.float32(np.inf))
    result = judge(layer(exact, np.zeros(8)), layer(moved, np.zeros(8)))
    assert result.max_ulp == steps
    assert f"a weight of `conv` is {steps} ulp" in result.reasons[0]


def test_a_fold_in_float32_is_one_factor_for_each_row():
    rng = np.random.default_rng(1)
    weight = np.float32(rng.normal(size=(8, 40)))
    gamma, var = np.float32(rng.uniform(0.5, 2, (2, 8, 1)))
    exact = weight.astype(float) * gamma / np.sqrt(var.astype(float) + 1e-5)
    folded = weight * (gamma / np.sqrt(var + np.float32(1e-5)))
    assert folded.dtype == np.float32
    bias = np.zeros(8)
    result = judge(layer(exact, bias), layer(folded, bias))
    assert 0.5 < result.max_ulp < FOLD_LIMIT_ULP
    assert result.passed
    assert result.limit_ulp == FOLD_LIMIT_ULP
    folded[3, 7] = np.nextafter(np.nextafter(folded[3, 7], np.float32(9)), np.float32(9))
    assert not judge(layer(exact, bias), layer(folded, bias)).passed
    row_apart = folded * np.float32([[1]] * 7 + [[1 + 2.0**-20]])
    assert not judge(layer(exact, bias), layer(row_apart, bias)).passed


def test_a_fold_in_float32_is_one_factor_for_each_output_of_a_transposed_convolution():
    """Of a weight (inputs, outputs of a group, ...), outputs count group by group."""
    rng = np.random.default_rng(1)
    weight = np.float32(rng.normal(size=(4, 3, 5, 5)))
    factor = np.float32(rng.uniform(0.5, 2, 6))
    off = np.array([1, 1, 1, -1, -1, -1]) * np.float32(2**-22)

    def scaled(factor, kind):
        by_input = np.repeat(factor.reshape(2, 3), 2, axis=0)[:, :, None, None]
        folded = weight.astype(kind) * by_input
        numbers = layer(folded, np.zeros(6))
        return dataclasses.replace(numbers, op="ConvTranspose", attributes=(("group", "2"),))

    exact = scaled(factor.astype(float), float)
    folded = scaled(factor + factor * off, np.float32)
    result = judge(exact, folded)
    assert 0.5 < result.max_ulp < FOLD_LIMIT_ULP
    assert result.passed
    as_one_group = [dataclasses.replace(x, attributes=(("group", "1"),)) for x in (exact, folded)]
    assert not judge(*as_one_group).passed


def numbers(values, *, roundings=1) -> SkeletonNode:
    constants = Numbers.of(values, roundings=roundings)
    return SkeletonNode(
        name="scale", op="ScaleShift", attributes=(), sources=(-1,), numbers=(constants,)
    )


def test_constants_are_judged_by_the_roundings_behind_them():
    exact = 1 + np.arange(3) / 7
    off = np.float32(exact) + np.float32([0, 2.0**-23, 0])
    assert judge(numbers(exact), numbers(np.float32(exact))).passed
    assert not judge(numbers(exact), numbers(off)).passed
    assert judge(numbers(exact), numbers(off, roundings=3)).passed
    assert not judge(numbers(exact), numbers(off + 1e-5, roundings=3)).passed
    assert judge(numbers([-np.inf]), numbers([-np.inf])).passed
    for wrong in (np.inf, np.nan, 0.0):
        assert not judge(numbers([-np.inf]), numbers([wrong])).passed


def test_one_wrong_bias_is_a_fault():
    result = judge(layer([1.0], [1.0, 2.0]), layer([1.0], [1.0, 2.001]))
    assert "a bias of `conv`" in result.reasons[0]


def test_a_bias_is_measured_by_what_it_was_added_up_from():
    exact, candidate = [1e-6], [1e-6 + 5e-8]
    assert not judge(layer([1.0], exact), layer([1.0], candidate)).passed
    assert judge(layer([1.0], exact, magnitude=[1.0]), layer([1.0], candidate)).passed


def test_a_subnormal_may_be_zero():
    assert judge(layer([1e-40], [1e-39]), layer([0.0], [0.0])).passed
    assert not judge(layer([2.0**-126], [0.0]), layer([0.0], [0.0])).passed  # the first normal one


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_fails(broken):
    assert not judge(layer([1.0], [0.0]), layer([broken], [0.0])).passed


def test_layers_of_other_shapes_are_left_to_the_structure():
    assert judge(layer([1.0], [0.0]), layer([1.0, 2.0], [0.0])).layers == ()


def test_reasons_follow_the_order_of_the_network():
    pairs = []
    for name in ("first", "second"):
        wrong = dataclasses.replace(layer([2.0], [0.0]), name=name)
        pairs.append((layer([1.0], [0.0]), wrong))
    result = judge_static(pairs)
    assert [layer.layer for layer in result.layers] == ["first", "second"]
    assert "`first`" in result.reasons[0]
    assert "`second`" in result.reasons[1]
