"""Which of two is faster: the interval covers the truth as often as it says, in simulations."""

import math

import numpy as np
import pytest

from benchmarks.statistics.coverage import PAIRS, blocks_cell
from resdeploy.schema.benchmarks import BenchBlock, SpeedRatio
from resdeploy.statistics.paired import (
    block_log_ratios,
    mean_ratio,
    ratio_of_single_runs,
    runs_per_process,
    speed_ratio,
    student_interval,
)
from resdeploy.statistics.paired import student_quantile as quantile


def simulate(rng, *, num_blocks=8, ratio=1.0, process_sd=0.01, num_runs=40):
    """Return blocks whose processes differ by chance, and whose minute slows both alike."""
    blocks = []
    for number in range(num_blocks):
        minute = math.exp(rng.normal(0, 0.2))
        sides = []
        for factor in (ratio, 1.0):
            process = math.exp(rng.normal(0, process_sd))
            runs = 1e6 * minute * factor * process * np.exp(rng.normal(0, 0.02, num_runs))
            runs[rng.random(num_runs) < 0.05] *= 10  # interrupted
            sides.append(tuple(tuple(map(int, burst)) for burst in np.array_split(runs, 4)))
        blocks.append(
            BenchBlock(candidate_ns=sides[0], baseline_ns=sides[1], candidate_first=number % 2 == 0)
        )
    return blocks


def share(verdicts, wanted):
    return sum(verdict == wanted for verdict in verdicts) / len(verdicts)


def test_a_model_is_called_other_than_itself_in_one_of_twenty():
    rng = np.random.default_rng(0)
    verdicts = [speed_ratio(simulate(rng), 50).verdict for _ in range(400)]
    # 0.05 expected, standard deviation 0.011.
    assert 0.02 <= 1 - share(verdicts, "cannot tell") <= 0.083


def test_an_interval_over_runs_would_call_it_so_most_of_the_time():
    """Why the block is the unit: the runs of a process share its luck."""
    rng = np.random.default_rng(1)
    false_calls = 0
    for _ in range(100):
        logs = []
        for side in ("candidate_ns", "baseline_ns"):
            blocks = simulate(np.random.default_rng(rng.integers(2**32)), process_sd=0.03)
            runs = [math.log(x) for b in blocks for burst in getattr(b, side) for x in burst]
            logs.append(runs)
        low, high = student_interval(np.subtract(*map(np.sort, logs)).tolist())
        false_calls += low > 0 or high < 0
    assert false_calls > 40


def test_resampling_eight_blocks_covers_less_than_it_says():
    """Why it is Student's interval: the percentile bootstrap is too narrow for a few blocks."""
    rng = np.random.default_rng(2)
    covered = {"student": 0, "bootstrap": 0}
    for _ in range(600):
        values = rng.normal(0, 1, 8)
        draws = rng.choice(values, (400, 8)).mean(axis=1)
        for name, (low, high) in {
            "student": student_interval(values),
            "bootstrap": np.quantile(draws, (0.025, 0.975)),
        }.items():
            covered[name] += low <= 0 <= high
    assert 0.93 <= covered["student"] / 600 <= 0.97
    assert covered["bootstrap"] / 600 < 0.925


def test_three_percent_are_seen_and_their_size_is_right():
    rng = np.random.default_rng(3)
    ratios = [speed_ratio(simulate(rng, ratio=1.03), 50) for _ in range(100)]
    assert share([r.verdict for r in ratios], "slower") > 0.9
    assert sum(r.low <= 1.03 <= r.high for r in ratios) >= 88
    assert np.median([r.ratio for r in ratios]) == pytest.approx(1.03, abs=0.003)


def test_faster_is_the_mirror_image_of_slower():
    blocks = simulate(np.random.default_rng(4), ratio=1.2)
    turned = [
        BenchBlock(candidate_ns=b.baseline_ns, baseline_ns=b.candidate_ns, candidate_first=True)
        for b in blocks
    ]
    one, other = speed_ratio(blocks, 50), speed_ratio(turned, 50)
    assert (one.verdict, other.verdict) == ("slower", "faster")
    assert (1 / one.low, 1 / one.high) == pytest.approx((other.high, other.low))


def test_a_block_is_the_ratio_of_the_percentiles_of_all_its_runs():
    block = BenchBlock(
        candidate_ns=((10, 30), (20,)), baseline_ns=((5, 5), (40,)), candidate_first=True
    )
    assert block_log_ratios([block], 50) == pytest.approx([math.log(20 / 5)])
    assert block_log_ratios([block], 99) == pytest.approx([math.log(30 / 40)])


@pytest.mark.parametrize(
    ("confidence", "degrees", "expected"),
    # Abramowitz and Stegun, table 26.10.
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 7, 2.365),
        (0.95, 10, 2.228),
        (0.99, 5, 4.032),
        (0.90, 30, 1.697),
        (0.95, 120, 1.980),
    ],
)
def test_students_quantiles_are_those_of_the_table(confidence, degrees, expected):
    assert quantile(confidence, degrees=degrees) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 3), (1.0, 3), (0.9, 0)])
def test_a_quantile_that_means_nothing_is_refused(confidence, degrees):
    with pytest.raises(ValueError, match="confidence between"):
        quantile(confidence, degrees=degrees)


def test_one_block_has_no_interval():
    with pytest.raises(ValueError, match="at least two"):
        student_interval([1.0])


def test_p99_takes_the_runs_of_its_interval_in_each_process():
    blocks = simulate(np.random.default_rng(5), num_runs=400)
    assert 368 <= runs_per_process(blocks, 99) <= 400
    # Each run twice says no more than once.
    twice = [
        BenchBlock(
            candidate_ns=tuple(tuple(np.repeat(burst, 2)) for burst in b.candidate_ns),
            baseline_ns=tuple(tuple(np.repeat(burst, 2)) for burst in b.baseline_ns),
            candidate_first=True,
        )
        for b in blocks
    ]
    assert runs_per_process(twice, 99) > 600


@pytest.mark.parametrize("times", PAIRS)
def test_the_ratio_of_p99_covers_where_tails_are_not_alike(times):
    """By nearest rank of 100 runs it covered in 70 % where one tail is heavy."""
    found = blocks_cell(
        np.random.default_rng(6),
        times=times,
        runs_are="independent",
        processes="skewed",
        num_blocks=8,
        num_runs=400,
        q=99,
        trials=200,
    )
    assert found["given"] > 0.9
    assert found["coverage"] >= 0.93 - 2 * math.sqrt(0.93 * 0.07 / 200)


# --- two runs that were not paired ---------------------------------------------------------------


@pytest.mark.parametrize(("num_runs", "q"), [(100, 50), (1000, 99)])
def test_the_ratio_of_single_runs_covers_without_the_allowance_for_their_minutes(num_runs, q):
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        new, old = np.exp(0.5 * rng.standard_normal((2, num_runs)))
        found = ratio_of_single_runs(1.5 * new, old, q, unknown=0.0)
        covered += found.low <= 1.5 <= found.high
    assert covered >= 0.93 * 300


def test_the_allowance_widens_both_sides_and_an_unknown_end_is_no_end():
    times = np.random.default_rng(8).random(100) + 1
    plain = ratio_of_single_runs(times, times, 50, unknown=0.0)
    wider = ratio_of_single_runs(times, times, 50, unknown=0.05)
    assert (wider.low, wider.high) == pytest.approx((plain.low / 1.05, plain.high * 1.05))
    assert ratio_of_single_runs(times, times, 99, unknown=0.0).verdict == "cannot tell"
    tail = ratio_of_single_runs(times, times, 99, unknown=0.0)
    assert (tail.low, tail.high) == (0.0, math.inf)
    unknown = ratio_of_single_runs(times, times, 50, unknown=math.inf)
    assert (unknown.low, unknown.high) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.01, 1.2, "slower"),
        (0.8, 0.99, "faster"),
        (0.9, 1.1, "cannot tell"),
        (1.0, 1.1, "cannot tell"),
        (0.9, 1.0, "cannot tell"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low, high, verdict):
    assert SpeedRatio(ratio=1.0, low=low, high=high).verdict == verdict


def test_a_ratio_is_the_geometric_mean_in_its_interval():
    found = mean_ratio([math.log(0.5), math.log(2.0), math.log(1.0)])
    assert found.ratio == pytest.approx(1.0)
    # Student's t of two degrees of freedom, 4.303, times log(2) / sqrt(3).
    assert found.high == pytest.approx(math.exp(4.3027 * math.log(2) / math.sqrt(3)), rel=1e-4)
    assert found.low == pytest.approx(1 / found.high)
