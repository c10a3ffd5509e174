"""Integer outputs: another value is excused where float32 cannot tell the two apart, only there."""

import numpy as np
import pytest
import torch
from torch import nn

from resdeploy.export.golden import make_golden
from resdeploy.verify.named_outputs import judge_named_outputs

# Scores of four inputs: a tie but for 1e-9, a lead of a thousandth, a plain one, a triple tie.
SCORES = np.array(
    [[1, 1 + 1e-9, 0, -1], [0, 2.002, 2, -1], [5, 1.3, 2, 3], [3, 3 + 1e-9, 3 - 1e-9, 0]]
)


class Decides(nn.Module):
    """Decides by `decide` on scores that carry the noise of a sum: x W, W near the identity."""

    def __init__(self, decide):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(SCORES.T @ np.linalg.pinv(INPUTS.T)).float())
        self.decide = decide

    def forward(self, x):
        return self.decide(x @ self.weight.T)


INPUTS = np.random.default_rng(0).standard_normal((4, 7))


def golden_of(decide):
    module = Decides(decide).eval()
    x = INPUTS.astype(np.float32)
    return make_golden(module, x, source="s", inputs_description="i", in_detail=False)


def passes(golden, **changes):
    """Return the verdict where the integers of some inputs are others, by "inputN"."""
    values = golden.exact.copy()
    for name, value in changes.items():
        values[int(name[-1])] = value
    (output,) = golden.info.outputs
    values = values.reshape(4, *output.shape).astype(output.dtype)
    return judge_named_outputs({"y": values}, golden).passed


RANKS = {
    "argmax": lambda s: s.argmax(1),
    "argmin": lambda s: (-s).argmin(1, keepdim=True),
    "max": lambda s: s.max(1).indices,
    "topk": lambda s: s.topk(1).indices,
    "first of a sort": lambda s: s.sort(dim=1, descending=True).indices[:, :1],
    "of a softmax": lambda s: s.softmax(1).argmax(1),
    "reshaped": lambda s: s[:, :, None].argmax(1).reshape(-1),
}


@pytest.mark.parametrize("decide", RANKS.values(), ids=RANKS)
def test_a_place_is_excused_where_its_score_is_as_good(decide):
    golden = golden_of(decide)
    assert golden.exact[1:3].ravel().tolist() == [1, 0]
    assert passes(golden)
    for place, others in ((0, (0, 1)), (3, (0, 1, 2))):
        assert all(passes(golden, **{f"input{place}": other}) for other in others)
        assert not passes(golden, **{f"input{place}": 3})
    assert not passes(golden, input1=2)
    assert not passes(golden, input2=3)


def test_names_of_classes_follow_their_places():
    golden = golden_of(lambda s: torch.tensor([40, 10, 30, 20])[s.argmax(1)])
    assert golden.exact[1:3].ravel().tolist() == [10, 40]
    assert passes(golden, input0=40)
    assert passes(golden, input0=10)
    assert not passes(golden, input0=0)
    assert not passes(golden, input1=30)


STEPS = {
    "bool": lambda s: s[:, 1] > 1 + 1e-9,
    "integer": lambda s: (s[:, 1] >= 1.0).to(torch.int32),
    "of two": lambda s: s[:, 1] > s[:, 0],
    "negated": lambda s: ~(s[:, 1] <= s[:, 0]),
}


@pytest.mark.parametrize("decide", STEPS.values(), ids=STEPS)
def test_a_comparison_is_excused_where_both_sides_are_the_same(decide):
    golden = golden_of(decide)
    assert passes(golden, input0=0)
    assert passes(golden, input0=1)
    assert not passes(golden, input1=1 - golden.exact[1])
    assert not passes(golden, input2=1 - golden.exact[2])


ROUNDINGS = {
    "floor": lambda s: s[:, 1].floor().int(),
    "cast": lambda s: s[:, 1:2].long(),
    "round": lambda s: (s[:, 1] + 0.5).round().to(torch.uint8),
    "ceil": lambda s: s[:, 1].ceil().clamp(0, 9).long() * 2,
}


@pytest.mark.parametrize("decide", ROUNDINGS.values(), ids=ROUNDINGS)
def test_a_rounding_is_excused_at_its_edge_by_one_step(decide):
    """The scores are 1, 2.002, 1.3 and 3 but for noise."""
    golden = golden_of(decide)
    ties = {n: v for n, _, v in golden.near_ties.tolist()}
    assert ties.keys() == {0, 3}
    step = 1 + (golden.exact % 2 == 0).all()
    assert all(abs(v - golden.exact[n, 0]) == step for n, v in ties.items())
    assert all(passes(golden, **{f"input{n}": v}) for n, v in ties.items())
    for wrong in (golden.exact[1] + step, golden.exact[1] - step):
        assert not passes(golden, input1=wrong)


def test_where_two_values_decide_each_integer_is_to_be_the_same():
    golden = golden_of(lambda s: (s[:, 0] > 0.5) & (s[:, 1] > 0.5))
    assert len(golden.near_ties) == 0
    assert passes(golden)
    assert not passes(golden, input0=1 - golden.exact[0])


def test_a_map_of_classes_is_excused_pixel_by_pixel():
    golden = golden_of(lambda s: s.reshape(-1, 2, 2).argmax(1))
    assert golden.exact.shape == (4, 2)
    assert not passes(golden, input2=[1, 1])
