"""Our fold against the suite of conditions: never wrong, and how far it gets is written down."""

import copy

import fold_judge as judge
import pytest
import torch
from fold_suite import CASES

from resdeploy.errors import UnsupportedModelError
from resdeploy.fold.fold_batchnorm import fold_batchnorm


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fold(case):
    module, inputs = case.build(), case.inputs()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    if "trace" in case.tags:
        assert case.folded == 0
        with pytest.raises(UnsupportedModelError) as caught:
            judge.fold(module, inputs)
        assert caught.value.where
        return
    model, report = judge.fold(module, inputs)
    after = module.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert torch.equal(after[name], value) or value.isnan().any(), f"{name} changed"
    judge.assert_same_function(model, module, inputs)
    for site in report.folded:
        assert site.max_ulp <= 0.5
    for refusal in report.refused:
        assert refusal.site
        assert len(refusal.reason.split()) >= 3
    counts = (len(report.folded), len(report.refused))
    assert counts == (case.folded, case.refused), [r.reason for r in report.refused]
    assert not fold_batchnorm(model).folded


def test_the_suite_is_what_it_says():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 112


@pytest.mark.parametrize("case", CASES[::20], ids=lambda case: case.name)
def test_a_case_is_the_same_each_time(case):
    first, second = (judge.run(case.build(), case.inputs()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_comparison_notices_a_change_of_one_percent_in_one_channel():
    (case,) = (case for case in CASES if case.name == "conv2d")
    module, inputs = case.build(), case.inputs()
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.bn.weight[3] *= 1.01
    model, _ = judge.fold(changed, inputs)
    with pytest.raises(AssertionError):
        judge.assert_same_function(model, module, inputs)
