import pytest
from onnx import helper

from resdeploy.quant.keep_float import keep_sensitive
from resdeploy.schema.quants import QuantQuality

NODES = [helper.make_node("Conv", ["x", "w"], [name], name=name) for name in "abc"]
# What each layer adds to the error; c makes up for some of the others.
COST = {"a": 0.2, "b": 0.5, "c": -0.1}


def quality_of(names, which):
    error = 0.1 + sum(cost for name, cost in COST.items() if name not in names)
    return QuantQuality(error=error, num_inputs=10, num_flips=0)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(1.0, ""), (0.5, "b"), (0.01, "ba"), (0.25, "b"), (0.15, "ba"), (-1.0, "ba")],
)
def test_what_costs_most_is_kept_first_and_no_more_than_the_budget_needs(limit, kept):
    found = keep_sensitive(NODES, quality_of, lambda q: q.error <= limit, ranked_with=4)
    assert [layer.node for layer in found] == list(kept)


def test_no_more_are_kept_than_may_be():
    found = keep_sensitive(NODES, quality_of, lambda q: q.error <= 0.01, ranked_with=4, most=1)
    assert [layer.node for layer in found] == ["b"]


def test_the_reason_is_what_was_measured():
    (layer,) = keep_sensitive(NODES, quality_of, lambda q: q.error <= 0.5, ranked_with=4)
    assert layer.reason == "the error is 0.2 with it in float32, 0.7 without"
