"""Our fold against the suite of conditions: never wrong, and how far it gets is written down."""

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from resdeploy.host.fold import fold_batchnorm


def _load_suite():
    path = Path(__file__).with_name("fold_suite.py")
    spec = importlib.util.spec_from_file_location("fold_suite", path)
    sys.modules["fold_suite"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = _load_suite().CASES

# Name -> what is missing. Such a case is kept correctly, and is not folded as far as it could be;
# one that starts to fold fails here, so that this list only gets shorter.
# One that is wrong or crashes begins with "WRONG:".
NOT_YET: dict[str, str] = {}


def run(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the outputs, with the same random numbers each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = module(*inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def assert_same_function(candidate: nn.Module, module: nn.Module, inputs, *, random: bool) -> None:
    """Hold candidate and module against the module in float64, by the module's own error."""
    # A copy each time: a call may change the statistics.
    own = run(copy.deepcopy(module), inputs)
    exact = own  # Random numbers differ between types.
    if not random:
        exact = run(copy.deepcopy(module).double(), tuple(x.double() for x in inputs))
    got = run(candidate, inputs)
    assert len(got) == len(exact)
    for mine, theirs, reference in zip(got, own, exact, strict=True):
        assert mine.dtype is theirs.dtype
        assert mine.shape == reference.shape
        finite = reference.isfinite() & theirs.isfinite()
        assert torch.equal(mine.isfinite(), theirs.isfinite())
        mine, theirs, reference = (t[finite].double() for t in (mine, theirs, reference))
        unit = torch.finfo(got[0].dtype).eps / 2
        noise = (theirs - reference).norm() + unit * reference.norm()
        assert (mine - reference).norm() <= 4 * noise


def _parameter(case):
    note = NOT_YET.get(case.name, "")
    marks = [pytest.mark.xfail(strict=True, reason=note)] if note.startswith("WRONG:") else []
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", [_parameter(case) for case in CASES])
def test_fold(case):
    module, inputs = case.build(), case.inputs()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    folded = fold_batchnorm(module, inputs)
    report = folded.report

    after = module.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert torch.equal(after[name], value) or value.isnan().any(), f"{name} changed"
    assert_same_function(folded.module, module, inputs, random="random" in case.tags)
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
    first, second = (run(case.build(), case.inputs()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_comparison_notices_a_change_of_one_percent_in_one_channel():
    (case,) = (case for case in CASES if case.name == "conv2d")
    module, inputs = case.build(), case.inputs()
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.bn.weight[3] *= 1.01
    with pytest.raises(AssertionError):
        assert_same_function(changed, module, inputs, random=False)
