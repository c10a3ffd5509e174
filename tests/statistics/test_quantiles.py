"""Percentiles by their definition, and intervals of them by the binomial distribution."""

import functools
import math
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.statistics.coverage import alike, in_bursts, independent, run_cell
from resdeploy.statistics import quantiles
from resdeploy.statistics.quantiles import (
    effective_runs,
    least_runs,
    log_quantile,
    percentile,
    percentile_interval,
    runs_needed,
)

latencies = st.lists(st.integers(1, 10**12), min_size=1, max_size=200)
percents = st.integers(0, 1000).map(lambda tenths: tenths / 10)


@given(latencies, percents)
def test_a_percentile_is_the_least_value_that_enough_values_reach(values, q):
    result = percentile(values, q)
    tenths = round(q * 10)
    assert result in values
    assert 1000 * sum(v <= result for v in values) >= tenths * len(values)
    # No smaller one would do.
    smaller = [v for v in values if v < result]
    assert not smaller or 1000 * len(smaller) < tenths * len(values)


@given(latencies, percents, percents, st.randoms())
def test_a_percentile_grows_with_q_and_does_not_depend_on_the_order(values, q, r, random):
    low, high = sorted((q, r))
    assert percentile(values, low) <= percentile(values, high)
    shuffled = random.sample(values, len(values))
    assert percentile(shuffled, q) == percentile(values, q)


def test_the_ends_are_the_extremes():
    assert percentile([3, 1, 2], 0) == 1
    assert percentile([3, 1, 2], 100) == 3


@pytest.mark.parametrize("q", range(1, 101))
def test_the_rank_is_exact_where_floats_are_not(q):
    """55 / 100 * 100 is 55.00000000000001 in float64, which would give the 56th value."""
    assert percentile(range(1, 101), q) == q


def test_the_p99_of_100_runs_is_the_99th_and_of_50_runs_the_longest():
    assert percentile(range(1, 101), 99) == 99
    assert percentile(range(1, 51), 99) == 50


@pytest.mark.parametrize("q", [-0.1, 100.1, float("nan")])
def test_a_q_out_of_range_is_refused(q):
    with pytest.raises(ValueError, match=r"in \[0, 100\]"):
        percentile([1], q)


def test_no_values_have_no_percentile():
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)


# --- log_quantile --------------------------------------------------------------------------------


def test_the_position_lies_between_two_times():
    times = np.exp(range(1, 101))
    assert log_quantile(times, 50) == pytest.approx(50.5)
    assert log_quantile(times[::-1], 99) == pytest.approx(0.99 * (100 + 1 / 3) + 1 / 3)
    assert log_quantile([7.0], 99) == pytest.approx(math.log(7))


def test_the_mean_over_many_short_samples_is_the_percentile_and_by_nearest_rank_it_is_not():
    times = np.exp(0.5 * np.random.default_rng(0).standard_normal((3000, 100)))
    truth = 0.5 * 2.326348
    assert np.mean([log_quantile(x, 99) for x in times]) == pytest.approx(truth, abs=0.03)
    assert np.mean([math.log(percentile(x, 99)) for x in times]) < truth - 0.05


# --- percentile_interval -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "q", "low", "high"),
    [
        # The median's are those of the tables (Conover, Practical Nonparametric Statistics).
        (5, 50, 0, math.inf),
        (6, 50, 1, 6),
        (100, 50, 40, 61),
        (36, 90, 29, 36),
        (100, 90, 84, 96),
        (100, 99, 97, math.inf),
        (367, 99, 359, math.inf),
        (368, 99, 360, 368),
        (1000, 99, 983, 997),
    ],
)
def test_the_ends_are_the_times_of_their_ranks(size, q, low, high, monkeypatch):
    monkeypatch.setattr(quantiles, "effective_runs", lambda times, q: size)
    assert percentile_interval(range(1, size + 1), q) == (low, high)

    p = Fraction(q, 100)

    def chance(first, last):
        return sum(comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(first, last + 1))

    tail = Fraction(25, 1000)
    assert chance(0, low - 1) <= tail < chance(0, low)
    if high < math.inf:
        assert chance(high, size) <= tail < chance(high - 1, size)
    else:
        assert chance(size, size) > tail


@pytest.mark.parametrize(("q", "runs"), [(50, 6), (90, 36), (99, 368), (99.9, 3688), (5, 72)])
def test_a_percentile_has_both_ends_from_so_many_runs_on(q, runs):
    assert least_runs(q) == runs
    tail = max(q, 100 - q) / 100
    assert tail**runs <= 0.025 < tail ** (runs - 1)


@pytest.mark.parametrize("count", [1, 5, 100, 1000])
def test_times_that_are_all_equal_leave_no_doubt_but_of_the_longest(count):
    low, high = percentile_interval([3_000_000] * count, 99)
    assert (low, high) == (3_000_000, 3_000_000 if count > 367 else math.inf)


@given(latencies, st.sampled_from([50, 90, 99]))
def test_an_interval_surrounds_its_percentile(values, q):
    low, high = percentile_interval(values, q)
    assert low <= percentile(values, q) <= high


def test_a_percentile_of_nothing_has_no_interval():
    with pytest.raises(ValueError, match="at least one"):
        percentile_interval([], 50)


@pytest.mark.parametrize("times", ["normal", "lognormal", "pareto"])
@pytest.mark.parametrize("runs_are", ["independent", "AR(0.5)", "bursts"])
@pytest.mark.parametrize(("num_runs", "q"), [(100, 50), (100, 90), (200, 99), (1000, 99)])
def test_an_interval_covers_as_often_as_it_says(times, runs_are, num_runs, q):
    found = run_cell(
        np.random.default_rng(1),
        times=times,
        runs_are=runs_are,
        num_runs=num_runs,
        q=q,
        trials=500,
    )
    # Two standard errors below the 93 % that `benchmarks/statistics` holds with more trials.
    assert found["coverage"] >= 0.93 - 2 * math.sqrt(0.93 * 0.07 / 500)


# --- neighbours that are alike -------------------------------------------------------------------


def median_of_effective(make, q, size=1000):
    rng = np.random.default_rng(2)
    return np.median([effective_runs(make(rng, (size,)), q) for _ in range(50)])


def test_independent_runs_count_as_nearly_all_of_them():
    assert median_of_effective(independent, 50) > 900
    assert median_of_effective(independent, 99) > 950


def test_runs_that_are_like_the_one_before_count_as_fewer():
    """The autocorrelations of being above the median are 2 / pi * asin(0.5^k): 1000 / 2.3."""
    assert 370 < median_of_effective(functools.partial(alike, 0.5), 50) < 480


def test_interruptions_that_come_in_bursts_count_as_fewer_in_the_tail_alone():
    assert median_of_effective(in_bursts, 50) > 800
    assert median_of_effective(in_bursts, 99) < 700


def test_an_alternation_counts_as_no_more_than_there_are_and_one_step_as_hardly_any():
    assert effective_runs([1, 2] * 50, 50) == 100
    assert effective_runs([1] * 50 + [2] * 50, 50) < 6


def test_the_number_of_runs_needed_grows_with_their_likeness():
    rng = np.random.default_rng(3)
    times = rng.random(1000)
    assert 368 <= runs_needed(times, 99) < 400
    assert runs_needed(np.repeat(times[:250], 4), 99) > 1000
