"""Intervals of proportions against their definitions, in fractions, and against printed tables."""

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.statistics.coverage import drop_cell
from resdeploy.statistics.proportions import (
    clopper_pearson,
    fewest_samples,
    mcnemar_exact,
    num_trials_to_show,
    paired_difference_interval,
    upper_bound,
)

counts = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def tail(p, n, first, last):
    """P(first <= X <= last), exactly."""
    p = Fraction(p)
    return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(first, last + 1))


# --- Clopper and Pearson -------------------------------------------------------------------------


@given(counts, st.sampled_from([0.5, 0.9, 0.95, 0.999]))
@settings(max_examples=40, deadline=None)
def test_both_ends_of_an_exact_interval_leave_half_of_alpha(count, confidence):
    hits, trials = count
    low, high = clopper_pearson(hits, trials, confidence=confidence)
    half = (1 - confidence) / 2
    assert low <= hits / trials <= high
    if hits > 0:
        assert float(tail(low, trials, hits, trials)) == pytest.approx(half, rel=1e-9)
    if hits < trials:
        assert float(tail(high, trials, 0, hits)) == pytest.approx(half, rel=1e-9)


@pytest.mark.parametrize(
    ("hits", "trials", "printed"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 5.
        (81, 263, (0.2527, 0.3676)),
        (15, 148, (0.0578, 0.1617)),
        (0, 20, (0.0000, 0.1684)),
        (1, 29, (0.0009, 0.1776)),
    ],
)
def test_an_exact_interval_is_the_printed_one(hits, trials, printed):
    assert clopper_pearson(hits, trials) == pytest.approx(printed, abs=5.1e-5)


def test_no_hits_and_only_hits_have_the_closed_form():
    assert clopper_pearson(0, 10) == pytest.approx((0, 1 - 0.025**0.1), rel=1e-12)
    assert clopper_pearson(10, 10) == pytest.approx((0.025**0.1, 1), rel=1e-12)


def test_the_size_of_imagenet_is_no_trouble():
    """Beta quantiles of scipy 1.17; the binomial coefficients have 15,000 digits."""
    expected = (0.7562314900, 0.7637383035)
    assert clopper_pearson(38_000, 50_000) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("wrong", [(-1, 5), (6, 5), (0, 0)])
def test_what_is_no_proportion_is_refused(wrong):
    with pytest.raises(ValueError, match="no proportion"):
        clopper_pearson(*wrong)
    with pytest.raises(ValueError, match="confidence"):
        clopper_pearson(1, 2, confidence=1.0)


# --- paired --------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_counts_what_is_as_unlikely_on_either_side(b, c):
    exact = 2 * tail(Fraction(1, 2), b + c, 0, min(b, c))
    assert mcnemar_exact(b, c) == pytest.approx(min(1.0, float(exact)), rel=1e-15)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_mcnemar_is_the_printed_one():
    """Bentur's airways, in Fagerland, Lydersen and Laake (2013): 1 and 7 discordant of 21."""
    assert mcnemar_exact(1, 7) == 0.0703125
    assert mcnemar_exact(0, 0) == 1.0
    assert 0.2049 < mcnemar_exact(3000, 3100) < 0.2050


def test_the_paired_interval_of_a_printed_example():
    """Bentur's airways again: by Tango -0.517 to -0.026, in the paper of 2014; wider here."""
    b, c, n = 1 / 21, 7 / 21, 21
    (low_1, high_1), (low_2, high_2) = clopper_pearson(1, n), clopper_pearson(7, n)
    r = -((b * c / ((1 - b) * (1 - c))) ** 0.5)
    x, y = b - low_1, high_2 - c
    below = (x**2 + y**2 - 2 * r * x * y) ** 0.5
    x, y = high_1 - b, c - low_2
    above = (x**2 + y**2 - 2 * r * x * y) ** 0.5
    found = paired_difference_interval(1, 7, n)
    assert found == pytest.approx((b - c - below, b - c + above), rel=1e-12)
    assert found == pytest.approx((-0.534, 0.002), abs=5e-4)


def test_samples_that_never_disagree_still_leave_a_width():
    low, high = paired_difference_interval(0, 0, 512)
    width = 1 - 0.025 ** (1 / 512)
    assert (low, high) == pytest.approx((-width, width), rel=1e-9)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 40))
def test_the_paired_interval_holds_what_was_found_and_turns_with_its_sides(b, c, agreeing):
    num = b + c + agreeing
    low, high = paired_difference_interval(b, c, num)
    assert -1 <= low <= (b - c) / num <= high <= 1
    assert low < high
    turned = paired_difference_interval(c, b, num)
    assert (low, high) == pytest.approx((-turned[1], -turned[0]), abs=1e-12)


def test_where_every_sample_is_discordant_the_interval_ends_at_one():
    low, high = paired_difference_interval(21, 0, 21)
    assert high == 1.0
    assert 0.5 < low < 1
    assert paired_difference_interval(0, 21, 21) == pytest.approx((-1.0, -low))


@pytest.mark.parametrize(
    ("num_samples", "first_only", "second_only"),
    [(30, 9, 3), (100, 5.56, 0.17), (100, 30, 30), (64, 0.5, 0), (25, 8, 1), (359, 4, 0)],
)
def test_the_paired_interval_covers_as_often_as_it_says(num_samples, first_only, second_only):
    """All outcomes, weighed. Tango's score interval covers in 92.8 % of the second."""
    found = drop_cell(None, num_samples=num_samples, first_only=first_only, second_only=second_only)
    assert found["coverage"] >= 0.95


@pytest.mark.parametrize("wrong", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_counts_beyond_the_samples_are_refused(wrong):
    with pytest.raises(ValueError, match="no paired proportions"):
        paired_difference_interval(*wrong)


@pytest.mark.parametrize("difference", [0.001, 0.005, 0.01, 0.1, 0.5, 1.0])
def test_the_fewest_samples_are_just_enough_to_show_a_difference(difference):
    num = fewest_samples(difference)
    assert paired_difference_interval(0, 0, num)[1] <= difference
    if num > 1:
        assert paired_difference_interval(0, 0, num - 1)[1] > difference


@pytest.mark.parametrize("wrong", [0, -0.1, 1.5])
def test_a_difference_that_no_number_shows_is_refused(wrong):
    with pytest.raises(ValueError, match="cannot be shown"):
        fewest_samples(wrong)


# --- one-sided bounds ----------------------------------------------------------------------------


@given(counts, st.sampled_from([0.5, 0.9, 0.95, 0.999]))
@settings(max_examples=40, deadline=None)
def test_a_bound_leaves_all_of_alpha_on_one_side(count, confidence):
    hits, trials = count
    bound = upper_bound(hits, trials, confidence=confidence)
    if hits < trials:
        below = float(tail(bound, trials, 0, hits))
        assert below == pytest.approx(1 - confidence, rel=1e-9)
    else:
        assert bound == 1


def test_without_a_hit_the_bound_is_a_power():
    assert upper_bound(0, 380) == pytest.approx(1 - 0.05 ** (1 / 380), rel=1e-12)
    assert round(100 * upper_bound(0, 380), 2) == 0.79
    assert upper_bound(0, 7) > 0.34


@pytest.mark.parametrize("mean", [0.02, 0.1])
def test_the_bound_of_a_mean_covers_whatever_the_values_are_spread_like(mean):
    """Values of two kinds: none, or all of the same size, at each spread that has this mean."""
    num = 40
    for value in (mean, 2 * mean, 0.5, 1.0):
        chance = mean / value
        covered = sum(
            float(tail(chance, num, k, k))
            for k in range(num + 1)
            if upper_bound(k * value, num, is_counted=False) >= mean
        )
        assert covered >= 0.95, value


@pytest.mark.parametrize(
    ("limit", "rate", "num"),
    [(0.01, 0.0, 299), (0.05, 0.0, 59), (1.0, 0.5, 1), (0.01, 0.01, None), (0.0, 0.0, None)],
)
def test_the_number_of_trials_that_show_a_limit(limit, rate, num):
    assert num_trials_to_show(limit, rate=rate) == num


@pytest.mark.parametrize("is_counted", [True, False])
def test_hits_at_a_rate_need_more_trials_and_these_do(is_counted):
    num = num_trials_to_show(0.02, rate=0.005, is_counted=is_counted)
    assert num > num_trials_to_show(0.02)
    assert upper_bound(round(0.005 * num), num, is_counted=is_counted) <= 0.0201
