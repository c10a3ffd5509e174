"""Our fold against the suite of conditions: never wrong, and how far it gets is written down."""

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from resdeploy.errors import UnsupportedModelError
from resdeploy.host.fold import fold_batchnorm


def _load(name: str):
    if name not in sys.modules:
        path = Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


CASES = _load("fold_suite").CASES
judge = _load("fold_judge")

# Name -> what is missing. Such a case is kept correctly, and is not folded as far as it could be;
# one that starts to fold fails here, so that this list only gets shorter.
# One that is wrong or crashes begins with "WRONG:".
NOT_YET: dict[str, str] = {}


def _parameter(case):
    note = NOT_YET.get(case.name, "")
    marks = [pytest.mark.xfail(strict=True, reason=note)] if note.startswith("WRONG:") else []
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", [_parameter(case) for case in CASES])
def test_fold(case):
    module, inputs = case.build(), case.inputs()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    if "trace" in case.tags:
        assert case.folded == 0
        with pytest.raises(UnsupportedModelError) as caught:
            fold_batchnorm(module, inputs)
        assert caught.value.where
        return
    folded = fold_batchnorm(module, inputs)
    report = folded.report

    after = module.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert torch.equal(after[name], value) or value.isnan().any(), f"{name} changed"
    judge.assert_same_function(folded.module, module, inputs, random="random" in case.tags)
    for site in report.folded:
        assert site.max_ulp <= 0.5
    for refusal in report.refused:
        assert refusal.site
        assert len(refusal.reason.split()) >= 3
    counts = (len(report.folded), len(report.refused))
    if case.name in NOT_YET and not NOT_YET[case.name].startswith("WRONG:"):
        assert sum(counts) == case.folded + case.refused
        assert counts[0] < case.folded, f"{case.name} folds now: take it out of NOT_YET"
    else:
        assert counts == (case.folded, case.refused), [r.reason for r in report.refused]
    assert not fold_batchnorm(folded.module, inputs).report.folded


def test_the_suite_is_what_it_says():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 112
    assert set(NOT_YET) <= set(names)


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
    with pytest.raises(AssertionError):
        judge.assert_same_function(changed, module, inputs, random=False)
