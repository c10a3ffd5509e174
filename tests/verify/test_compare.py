"""Distances: what they are for known arrays, and what they are never fooled by."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resdeploy.verify.compare import accuracy, error_norms, tensor_diff, top1_agreement

REFERENCE = np.array([[1.0, 2.0, 3.0], [0.0, -4.0, 3.0]])


@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(-1e6, 1e6)))
def test_nothing_differs_from_itself(values):
    diff = tensor_diff(values, values)
    assert (diff.max_abs, diff.rel_l2, diff.num_nonfinite) == (0, 0, 0)


def test_distances_of_a_known_change():
    candidate = REFERENCE + np.array([[0, 0, 0], [0, 3, 4]])
    diff = tensor_diff(candidate, REFERENCE)
    assert diff.max_abs == 4
    assert diff.rel_l2 == pytest.approx(5 / np.sqrt(39))
    assert error_norms(candidate, REFERENCE).tolist() == [0, 5]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_counted_and_infinitely_far(bad):
    candidate = REFERENCE.copy()
    candidate[1, 2] = bad
    diff = tensor_diff(candidate, REFERENCE)
    assert diff.num_nonfinite == 1
    assert diff.max_abs == diff.rel_l2 == np.inf
    assert error_norms(candidate, REFERENCE).tolist() == [0, np.inf]


def test_agreement_and_accuracy_count_rows():
    candidate = np.array([[9.0, 2, 3], [0, -4, 3]])
    assert top1_agreement(candidate, REFERENCE) == 0.5
    assert accuracy(candidate, np.array([0, 2])) == 1.0
    assert accuracy(candidate, np.array([0, 0])) == 0.5


def test_a_row_with_nan_is_never_right():
    candidate = np.array([[np.nan, 2, 3], [0, -4, 3]])
    assert accuracy(candidate, np.array([0, 2])) == 0.5
