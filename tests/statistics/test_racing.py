"""A race among candidates: who leaves, how seldom the fastest does, and what is lost by racing."""

import numpy as np
import pytest

from benchmarks.statistics.coverage import race_cell
from resdeploy.statistics.racing import race, standing

# One in twenty, and what 4000 trials leave uncertain of it (three standard errors).
AT_MOST = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)


def beaten(logs):
    behind, limit = standing(logs)
    return behind > limit


def times_of(speeds, rng, *, noise=0.02, drift=0.3):
    """Return a way to measure candidates of these true times on a machine that drifts."""

    def measure(alive, number):
        machine = np.exp(rng.normal(scale=drift))
        return [speeds[c] * machine * np.exp(rng.normal(scale=noise)) for c in alive]

    return measure


def test_a_clearly_slower_one_is_beaten_and_an_equal_one_is_not():
    rng = np.random.default_rng(0)
    logs = np.log([1.0, 1.0, 1.3]) + rng.normal(scale=0.01, size=(4, 3))
    assert beaten(logs).tolist() == [False, False, True]


def test_what_slows_the_machine_slows_all_and_does_not_count():
    rng = np.random.default_rng(0)
    machine = rng.normal(scale=0.5, size=(4, 1))
    logs = np.log([1.0, 1.1]) + machine + rng.normal(scale=0.005, size=(4, 2))
    assert beaten(logs).tolist() == [False, True]
    alone = np.log([1.0, 1.1]) + np.outer([1, -1, 1, -1], [0.0, 0.2])
    assert beaten(alone).tolist() == [False, False], "noise of each by itself does count"


def test_equals_call_one_of_them_beaten_in_at_most_one_race_of_twenty():
    rng = np.random.default_rng(1)
    for num_blocks, num_candidates in ((2, 16), (4, 3), (8, 2)):
        logs = rng.normal(scale=0.03, size=(4000, num_blocks, num_candidates))
        # Of equals, whoever happens to be the fastest is taken for the best; what must stay is a
        # given one of them.
        left = np.mean([beaten(trial)[0] for trial in logs])
        assert left <= AT_MOST


def test_the_true_best_stays_with_the_stated_confidence():
    rng = np.random.default_rng(2)
    speeds = np.log([1.0, 1.005, 1.01, 1.02, 1.05])
    trials = [beaten(speeds + rng.normal(scale=0.02, size=(2, 5)))[0] for _ in range(4000)]
    assert np.mean(trials) <= AT_MOST


@pytest.mark.parametrize("noise", ["normal", "skewed", "heavy"])
@pytest.mark.parametrize(("num_candidates", "times_as_noisy"), [(2, 1.0), (4, 1.0), (4, 3.0)])
def test_over_all_looks_one_of_equals_stays_as_often_as_it_says(
    noise, num_candidates, times_as_noisy
):
    """Each look at 95 %, and one noise for all, lost one of two in 8 %, and the noisy in 18 %."""
    found = race_cell(
        np.random.default_rng(6),
        noise=noise,
        num_candidates=num_candidates,
        times_as_noisy=times_as_noisy,
        trials=400,
    )
    assert found["coverage"] >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / 400)


def test_the_fastest_wins_and_those_left_are_told():
    result = race(3, times_of([1.2, 1.0, 1.5], np.random.default_rng(0)))
    assert result.winner == 1
    assert result.in_race == (1,)
    assert len(result.log_times[2]) < 8


def test_equals_stay_in_the_race_until_its_end():
    rng = np.random.default_rng(3)
    result = race(2, times_of([1.0, 1.0], rng), max_blocks=8, indifference=0.0)
    assert set(result.in_race) == {0, 1}
    assert result.num_blocks == 8
    assert [len(logs) for logs in result.log_times] == [8, 8]


def test_a_race_ends_where_none_can_be_better_by_what_matters():
    rng = np.random.default_rng(4)
    result = race(3, times_of([1.0, 1.001, 1.3], rng, noise=0.001), max_blocks=16)
    assert set(result.in_race) == {0, 1}
    assert result.num_blocks == 2
    noisy = race(2, times_of([1.0, 1.001], rng, noise=0.05), max_blocks=8)
    assert noisy.num_blocks == 8, "noise of 5 % hides a difference of 2 %"


def test_what_a_race_that_ends_early_takes_is_as_good_as_it_promises():
    rng = np.random.default_rng(5)
    speeds = [1.0, 1.01, 1.03, 1.06]
    lost = []
    early = 0
    for _ in range(1000):
        result = race(4, times_of(speeds, rng, noise=0.01), max_blocks=16)
        early += result.num_blocks < 16
        lost.append(speeds[result.winner] - 1)
    assert early > 500
    assert np.mean(np.array(lost) > 0.02) <= 0.05


def test_the_hopeless_leave_after_one_block():
    seen = []

    def measure(alive, number):
        seen.append(tuple(alive))
        return [{0: 1.0, 1: 2.9, 2: 10.0}[c] for c in alive]

    race(3, measure, max_blocks=2)
    assert seen == [(0, 1, 2), (0, 1)]


def test_a_race_of_one_is_measured_once():
    seen = []

    def measure(alive, number):
        seen.append(number)
        return [1.0]

    assert race(1, measure).winner == 0
    assert seen == [0]


def test_little_is_lost_by_not_measuring_everything_to_the_end():
    """The regret: how much slower the winner is than the true best, over many races."""
    rng = np.random.default_rng(4)
    regrets, blocks = [], []
    for _ in range(200):
        speeds = np.exp(rng.uniform(0, 0.7, size=16))
        result = race(16, times_of(speeds, rng, noise=0.03))
        regrets.append(speeds[result.winner] / speeds.min() - 1)
        blocks.append(sum(map(len, result.log_times)))
    assert np.mean(regrets) < 0.01
    assert np.quantile(regrets, 0.95) < 0.03
    assert np.mean(blocks) < 0.6 * 16 * 8, "that is what the race is for"


@pytest.mark.parametrize("time", [0.0, float("nan"), -1.0])
def test_a_time_that_is_none_is_refused(time):
    with pytest.raises(ValueError, match="is"):
        race(2, lambda alive, number: [1.0, time])


def test_a_race_without_candidates_is_refused():
    with pytest.raises(ValueError, match="needs a candidate"):
        race(0, lambda alive, number: [])
