import math
import re
from pathlib import Path

import numpy as np
import pytest

from resdeploy.errors import ResdeployError
from resdeploy.quant.gate import Gate, budget_for, num_to_show
from resdeploy.quant.judge import Judge
from resdeploy.schema.quants import (
    JudgedOutput,
    OutputQuality,
    QuantBudget,
    QuantQuality,
    QuantSpec,
)
from resdeploy.statistics.proportions import upper_bound


def output(kind):
    return JudgedOutput(name="y", judged_as=kind, because="as stated")


def measured(num, *, changed=0.0, lost=None, error=0.01, kind="scores"):
    one = OutputQuality(
        name="y",
        judged_as=kind,
        error=error,
        changed=changed,
        changed_at_most=upper_bound(changed, num),
        lost=lost,
        lost_at_most=None if lost is None else upper_bound(lost, num),
    )
    return QuantQuality(error=error, num_inputs=num, num_flips=int(changed), outputs=(one,))


def verdict(quality, **budget):
    gate = Gate(budget=QuantBudget(**budget), outputs=(output("scores"),))
    return len(gate.failures(quality)), len(gate.not_shown(quality)), gate.holds(quality)


@pytest.mark.parametrize(
    ("num", "changed", "max_flips", "expected"),
    [
        (380, 0, 0.01, (0, 0, True)),
        (299, 0, 0.01, (0, 0, True)),
        (298, 0, 0.01, (0, 1, True)),  # more layers in float32 would not help
        (7, 0, 0.01, (0, 1, True)),
        (299, 1, 0.01, (0, 1, False)),
        (299, 3, 0.01, (1, 0, False)),
        (100, 0, 0.0, (0, 1, True)),
        (100, 1, 0.0, (1, 0, False)),
        (1, 1, 1.0, (0, 0, True)),
        (100, 0, math.nan, (1, 0, False)),
    ],
)
def test_a_budget_of_flips_is_held_by_what_so_many_samples_show(num, changed, max_flips, expected):
    assert verdict(measured(num, changed=changed), max_flips=max_flips) == expected


def test_a_drop_is_judged_by_what_was_lost_and_without_labels_by_what_changed():
    assert verdict(measured(400, changed=9, lost=0), max_drop=0.01) == (0, 0, True)
    assert verdict(measured(400, changed=9, lost=2), max_drop=0.01) == (0, 1, False)
    assert verdict(measured(400, changed=9, lost=9), max_drop=0.01) == (1, 0, False)
    assert verdict(measured(400, changed=9), max_drop=0.01) == (1, 0, False)


@pytest.mark.parametrize(
    ("error", "limit", "num_failures"),
    [(0.2, 0.2, 0), (0.2, 0.1, 1), (0.2, None, 0), (math.inf, None, 1), (0.2, math.nan, 1)],
)
def test_an_error_is_measured(error, limit, num_failures):
    assert verdict(measured(9, error=error), max_error=limit)[0] == num_failures


def test_of_a_map_of_classes_some_places_always_change():
    reference = np.zeros((30, 2, 8, 8))
    reference[:, 1] = 1.0
    candidate = reference.copy()
    candidate[0, 0, 0, 0] = 2.0
    outputs = (output("classes"),)
    quality = Judge(outputs=outputs, reference={"y": reference}).quality({"y": candidate})
    gate = Gate(budget=QuantBudget(max_flips=0.1), outputs=outputs)
    assert upper_bound(0, 30) < 0.1
    assert gate.holds(quality)  # no layer in float32 would show it
    (said,) = gate.not_shown(quality)
    assert said.startswith("0.05% of the classes of 30 inputs changed, which shows no more than 1")
    needed = int(said.partition(": ")[2].split()[0])
    bounds = [upper_bound(0.5, num, is_counted=False) for num in (needed, 30)]
    assert bounds[0] <= 0.1 < bounds[1]


def test_what_is_not_shown_comes_with_the_number_of_samples_that_would():
    gate = Gate(budget=QuantBudget(max_flips=0.01), outputs=(output("scores"),))
    (said,) = gate.not_shown(measured(7))
    assert "0 of 7 predictions changed, which shows no more than 34.8 %" in said
    assert "299 held-out samples without a change would" in said
    (said,) = gate.not_shown(measured(299, changed=1))
    needed = int(said.partition(": ")[2].split()[0])
    assert upper_bound(math.ceil(needed / 299), needed) <= 0.01
    assert "no number of samples" in Gate(
        budget=QuantBudget(max_flips=0.0), outputs=(output("scores"),)
    ).least_shown(50)


def test_the_table_of_the_page_is_what_the_gate_says():
    page = (Path(__file__).parents[2] / "docs" / "int8.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) % \| (PASS|NOT SHOWN|FAIL)", page, re.M)
    assert len(rows) == 5
    for num, changed, shown, word in rows:
        quality = measured(int(num), changed=int(changed))
        assert f"{100 * quality.outputs[0].changed_at_most:.3g}" == shown
        failed, unshown, _ = verdict(quality, max_flips=0.01)
        assert word == ("FAIL" if failed else "NOT SHOWN" if unshown else "PASS")


def test_too_few_samples_are_known_before_anything_is_searched():
    gate = Gate(budget=QuantBudget(max_flips=0.01, max_drop=0.5), outputs=(output("scores"),))
    assert "7 held-out samples can show a change of at most 34.8 %" in gate.least_shown(7)
    assert gate.least_shown(299) is None


def test_one_of_two_heads_that_changes_too_much_is_named():
    outputs = tuple(JudgedOutput(name=n, judged_as="scores", because="") for n in "ab")
    reference = {n: np.eye(2)[[0] * 40] for n in "ab"}
    candidate = {"a": reference["a"], "b": np.eye(2)[[1] * 40]}
    quality = Judge(outputs=outputs, reference=reference).quality(candidate)
    gate = Gate(budget=QuantBudget(max_flips=0.5), outputs=outputs)
    assert gate.failures(quality) == ("40 of 40 predictions changed of b; at most 50 % may",)


@pytest.mark.parametrize(
    ("kind", "has_labels", "expected"),
    [
        ("scores", False, QuantBudget(max_flips=0.01)),
        ("scores", True, QuantBudget(max_drop=0.01)),
        ("logit", False, QuantBudget(max_flips=0.01)),
        ("classes", True, QuantBudget(max_drop=0.01)),
        ("map", False, QuantBudget(max_error=0.1)),
        ("embedding", False, QuantBudget(max_error=0.1)),
        ("regression", False, QuantBudget(max_error=0.1)),
    ],
)
def test_without_a_limit_that_of_the_kind_counts(kind, has_labels, expected):
    assert budget_for(QuantSpec(), (output(kind),), has_labels=has_labels) == expected


def test_a_limit_that_is_asked_for_takes_the_place_of_the_default():
    spec = QuantSpec(max_drop=0.02, max_error=0.3)
    expected = QuantBudget(max_drop=0.02, max_error=0.3)
    assert budget_for(spec, (output("scores"),), has_labels=False) == expected


def test_an_error_is_no_limit_for_class_indices():
    indices = JudgedOutput(name="y", judged_as="classes", because="int64 are class indices")
    with pytest.raises(ResdeployError, match="--max-error is for numbers") as error:
        budget_for(QuantSpec(max_error=0.1), (indices,), has_labels=False)
    assert "--max-flips" in error.value.fix


@pytest.mark.parametrize(
    ("spec", "num"),
    [({}, 299), ({"max_flips": 0.05}, 59), ({"max_drop": 0.5}, 5), ({"max_flips": 0.0}, 0)],
)
def test_the_samples_that_a_request_takes(spec, num):
    assert num_to_show(QuantSpec(**spec)) == num
