"""The time told: each stage by the counts that it is known to have."""

import pytest

from resdeploy.ship.time_told import Costs, check_s, quantize_s, tune_s, verify_s

COSTS = Costs(run_s=0.1, process_s=5.0, reference_s=40.0)
TWICE = Costs(run_s=0.2, process_s=10.0, reference_s=80.0)


def test_the_proof_makes_the_reference_again():
    assert verify_s(COSTS) > COSTS.reference_s
    assert verify_s(TWICE) == 2 * verify_s(COSTS)


def test_a_quantisation_grows_with_its_samples():
    first, second, third = (quantize_s(COSTS, num_calibration=num) for num in (100, 200, 300))
    assert second - first == pytest.approx(third - second)
    assert second - first > 100 * COSTS.run_s


def test_a_search_judges_every_sample_and_races_every_candidate():
    def told(costs=COSTS, candidates=10, judged=2, samples=200):
        return tune_s(costs, num_candidates=candidates, num_judged=judged, num_samples=samples)

    assert told(samples=300) - told() == pytest.approx(2 * 100 * COSTS.run_s)
    assert told(candidates=11) - told() > COSTS.process_s
    assert told(TWICE) == pytest.approx(2 * told())


def test_the_last_check_runs_every_golden_input():
    assert check_s(COSTS, num_golden=20) - check_s(COSTS, num_golden=10) >= 10 * COSTS.run_s
