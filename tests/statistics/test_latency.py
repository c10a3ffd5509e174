"""Summaries, stability and queues, against their definitions."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.statistics.latency import (
    is_settled,
    is_stable,
    is_sustained,
    poisson_arrivals,
    service_times,
    summarise,
)

latencies = st.lists(st.integers(1, 10**12), min_size=1, max_size=200)


# --- summarise -----------------------------------------------------------------------------------


def test_a_summary_of_known_latencies():
    summary = summarise([3_000_000, 1_000_000, 2_000_000, 4_000_000], batch_size=8)
    assert dataclasses.asdict(summary) == {
        "num_runs": 4,
        "mean_ns": 2_500_000,
        "min_ns": 1_000_000,
        "p50_ns": 2_000_000,
        "p90_ns": 4_000_000,
        "p99_ns": 4_000_000,
        "p999_ns": 4_000_000,
        "max_ns": 4_000_000,
        "throughput_per_s": 3200,  # 4 batches of 8 in 10 ms
        # Four runs have no median at 95 %, and p90 and above have a lower end alone.
        "p50_interval_ns": (0, math.inf),
        "p90_interval_ns": (2_000_000, math.inf),
        "p99_interval_ns": (3_000_000, math.inf),
        "p999_interval_ns": (4_000_000, math.inf),
    }


@given(latencies, st.integers(1, 64), st.randoms())
def test_a_summary_is_ordered_and_does_not_depend_on_the_order_of_the_runs(values, batch, random):
    summary = summarise(values, batch_size=batch)
    assert summary.min_ns <= summary.p50_ns <= summary.p90_ns <= summary.p99_ns <= summary.max_ns
    assert summary.min_ns <= summary.mean_ns * (1 + 1e-12)
    assert summary.mean_ns <= summary.max_ns * (1 + 1e-12)
    shuffled = summarise(random.sample(values, len(values)), batch_size=batch)
    # The intervals count neighbours that are alike, and so depend on the order.
    same = {f"p{q}_interval_ns": () for q in (50, 90, 99, 999)}
    assert dataclasses.replace(summary, **same) == dataclasses.replace(shuffled, **same)


@given(latencies)
def test_twice_the_batch_in_the_same_time_is_twice_the_throughput(values):
    one, two = (summarise(values, batch_size=n).throughput_per_s for n in (1, 2))
    assert two == pytest.approx(2 * one, rel=1e-12)


def test_a_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        summarise([], batch_size=1)


# --- is_stable -----------------------------------------------------------------------------------


def noise(count, seed=0):
    return 1e6 * (1 + 0.02 * np.random.default_rng(seed).standard_normal(count))


def as_ns(values):
    return [int(value) for value in values]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_with_two_percent_of_noise_is_stable(seed):
    assert is_stable(as_ns(noise(100, seed))) == (True, "")


def test_a_few_interrupted_runs_do_not_count():
    values = noise(100)
    values[[3, 40, 97]] *= 20
    assert is_stable(as_ns(values)) == (True, "")


@pytest.mark.parametrize(
    ("factor", "word"), [(1.10, "slower"), (1 / 1.10, "faster")], ids=["slower", "faster"]
)
def test_a_change_of_ten_percent_half_way_is_seen(factor, word):
    values = noise(100)
    values[50:] *= factor
    stable, reason = is_stable(as_ns(values))
    assert not stable
    assert "second half" in reason
    assert word in reason


def test_a_slow_drift_that_the_halves_do_not_show_is_seen():
    values = 1e6 * np.linspace(1, 1.09, 100)
    stable, reason = is_stable(as_ns(values))
    assert not stable
    assert "drifts" in reason
    assert "slower" in reason


def test_a_run_that_is_interrupted_all_the_time_is_seen():
    """Seen on a busy machine: median 0.76 ms, p90 8.8 ms, the same in both halves."""
    values = noise(200)
    values[::8] *= 10
    stable, reason = is_stable(as_ns(values))
    assert not stable
    assert "one run in ten takes" in reason
    assert "times the median" in reason


def test_too_few_runs_are_not_called_stable():
    stable, reason = is_stable([1_000_000] * 19)
    assert not stable
    assert "too few" in reason
    assert is_stable([1_000_000] * 20) == (True, "")


# --- the end of a warm-up ------------------------------------------------------------------------


def stops_after(durations):
    return next(n for n in range(len(durations) + 1) if is_settled(durations[:n]))


@pytest.mark.parametrize("seed", range(10))
def test_a_warm_up_that_is_none_ends_soon(seed):
    assert stops_after(as_ns(noise(200, seed))) <= 40


@pytest.mark.parametrize("time_constant", [5, 20, 40])
def test_a_warm_up_ends_when_less_is_left_than_would_count_as_a_drift(time_constant):
    runs = np.arange(1000)
    for seed in range(5):
        jitter = 1 + 0.002 * np.random.default_rng(seed).standard_normal(1000)
        stop = stops_after(as_ns(1e6 * (1 + np.exp(-runs / time_constant)) * jitter))
        assert np.exp(-stop / time_constant) < 0.05


def test_it_takes_two_windows_to_tell():
    assert not is_settled([100] * 19)
    assert is_settled([100] * 20)
    assert not is_settled([200] * 10 + [100] * 10)
    assert not is_settled([100] * 10 + [200] * 10)


# --- queues --------------------------------------------------------------------------------------


def serve(arrivals, services):
    """Return the latencies of a queue with one server."""
    free, latencies = 0, []
    for arrival, service in zip(arrivals, services, strict=True):
        free = max(free, arrival) + service
        latencies.append(free - arrival)
    return latencies


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 1000)), min_size=1))
def test_service_times_are_found_again_behind_the_waiting(pairs):
    arrivals = sorted(arrival for arrival, _ in pairs)
    services = [service for _, service in pairs]
    assert service_times(arrivals, serve(arrivals, services)) == tuple(services)


def test_poisson_arrivals_have_their_rate_and_their_spread_and_come_again():
    arrivals = poisson_arrivals(20_000, per_second=100, seed=1)
    gaps = np.diff(arrivals)
    assert np.mean(gaps) == pytest.approx(1e7, rel=0.03)
    assert np.std(gaps) == pytest.approx(1e7, rel=0.03)  # as exponential gaps have it
    assert arrivals == poisson_arrivals(20_000, per_second=100, seed=1)
    assert arrivals != poisson_arrivals(20_000, per_second=100, seed=2)


@pytest.mark.parametrize(
    ("per_second", "sustained", "words"),
    [(50, True, ""), (97, False, "runs to show"), (120, False, "grows without end")],
)
def test_a_queue_near_its_limit_is_not_called_measured(per_second, sustained, words):
    arrivals = poisson_arrivals(300, per_second=per_second, seed=0)
    found, reason = is_sustained(arrivals, serve(arrivals, [10_000_000] * 300))
    assert found is sustained
    assert words in reason


def test_the_throughput_of_a_queue_is_that_of_the_time_it_took():
    summary = summarise([10, 20, 30], batch_size=2, arrivals_ns=[0, 0, 0])
    assert summary.throughput_per_s == pytest.approx(6 * 1e9 / 30)
