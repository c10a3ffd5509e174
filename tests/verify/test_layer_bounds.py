"""L2: what rounding explains in one node, and what it does not."""

import numpy as np
import pytest

from resdeploy.verify.layer_bounds import judge_node, judge_nodes

N = 288
RNG = np.random.default_rng(0)
W, X = RNG.normal(size=(64, N)), RNG.normal(size=(N, 512)).astype(np.float32).astype(float)
W = W.astype(np.float32).astype(float)
EXACT, MAGNITUDE = W @ X, np.abs(W) @ np.abs(X)


def judge(computed, exact=EXACT, magnitude=MAGNITUDE):
    return judge_node("conv", computed, exact, magnitude, N)


def test_float32_in_any_order_is_within_the_bound():
    in_order = np.zeros(EXACT.shape, np.float32)
    for k in range(N):
        in_order += W[:, k : k + 1].astype(np.float32) * X[k].astype(np.float32)
    blocked = W.astype(np.float32) @ X.astype(np.float32)
    for computed in (in_order, blocked):
        error = judge(computed)
        assert 0.01 < error.of_estimate < 1
        assert error.of_bound < error.of_estimate


def truncated(array, bits):
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(mantissa * 2.0**bits) / 2.0**bits, exponent)


@pytest.mark.parametrize("bits", [11, 8])
def test_products_of_fewer_bits_are_not(bits):
    computed = truncated(W, bits) @ truncated(X, bits)
    assert judge(computed.astype(np.float32)).of_estimate > 10


def test_one_wrong_output_is_enough():
    computed = EXACT.astype(np.float32)
    computed[3, 5] += np.float32(1e-3)
    assert judge(EXACT.astype(np.float32)).of_estimate < 0.1
    assert judge(computed).of_estimate > 1


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_wrong(broken):
    computed = EXACT.astype(np.float32)
    computed[0, 0] = broken
    error = judge(computed)
    assert error.of_bound == np.inf
    assert judge_nodes([error], num_inputs=1).reasons


def test_what_float32_cannot_hold_has_to_be_infinite():
    exact = np.array([1e39, -1e39])
    magnitude = np.abs(exact)
    assert judge_node("c", np.float32([np.inf, -np.inf]), exact, magnitude, 9).of_bound == 0
    assert judge_node("c", np.float32([-np.inf, -np.inf]), exact, magnitude, 9).of_bound == np.inf


def test_subnormal_results_may_vanish():
    exact = np.array([1e-44])
    assert judge_node("c", np.float32([0]), exact, np.abs(exact), 9).of_bound < 1


def test_the_first_faulty_node_comes_first_and_the_worst_is_found():
    good, bad = judge(EXACT.astype(np.float32)), judge(EXACT.astype(np.float32) * 2)
    result = judge_nodes([good, bad, good], num_inputs=2)
    assert result.worst is bad
    assert len(result.reasons) == 1
    assert not result.passed
