"""L1: what is near enough to an exact weight."""

import dataclasses

import numpy as np
import pytest

from resdeploy.verify.compare_structure import Affine, SkeletonNode
from resdeploy.verify.weights import ROUNDED_ONCE_ULP, STATIC_LIMIT_ULP, judge_static


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


def judge(reference, candidate, limit_ulp=STATIC_LIMIT_ULP):
    return judge_static([(reference, candidate)], limit_ulp=limit_ulp)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_rounded_once_are_within_half_an_ulp(dtype):
    rounded = EXACT.astype(dtype)
    result = judge(layer(EXACT, [0.3]), layer(rounded, np.float32([0.3]), dtype=dtype), 0.5)
    assert 0.4 < result.layers[0].weight_ulp <= ROUNDED_ONCE_ULP


@pytest.mark.parametrize(("steps", "passes"), [(4, True), (5, False)])
def test_the_limit_is_four_ulp(steps, passes):
    exact = np.float32(EXACT)
    moved = exact.copy()
    for _ in range(steps):
        moved[17] = np.nextafter(moved[17], np.float32(np.inf))
    result = judge(layer(exact, [0.0]), layer(moved, [0.0]))
    assert result.max_ulp == steps
    assert result.passed is passes
    assert passes or "a weight of `conv` is 5 ulp" in result.reasons[0]


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
