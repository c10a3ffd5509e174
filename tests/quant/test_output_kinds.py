import numpy as np
import pytest
import small_kinds
from small_kinds import Network

from resdeploy.errors import ResdeployError
from resdeploy.quant.output_kinds import describe_outputs

MODEL = small_kinds.one_number()
ROWS = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "num_labels", "kind"),
    [
        (ROWS, 0, "scores"),
        (ROWS[:, :, None, None], 0, "scores"),
        (ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True), 0, "embedding"),
        (ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True), 5, "scores"),
        (ROWS[:, :1], 0, "logit"),
        (ROWS[:, 0], 0, "logit"),
        (np.abs(ROWS[:, :1]), 0, "regression"),
        (np.zeros((8, 3, 4, 4), np.float32), 0, "map"),
        (np.zeros((8, 3, 4), np.float32), 3, "map"),
        (np.zeros((8,), np.int64), 0, "classes"),
        (np.zeros((8, 4, 4), np.int32), 0, "classes"),
        (np.zeros((8, 4), bool), 0, "classes"),
    ],
)
def test_what_an_output_is_follows_from_its_type_its_shape_and_its_values(values, num_labels, kind):
    (found,) = describe_outputs(MODEL, {"y": values}, {}, num_labels=num_labels)
    assert found.judged_as == kind
    assert found.because != "as stated"


def test_behind_a_sigmoid_the_threshold_is_a_half():
    model = small_kinds.one_number(last="Sigmoid")
    values = np.array([[0.2], [0.9]], np.float32)
    (found,) = describe_outputs(model, {"y": values}, {})
    assert (found.judged_as, found.threshold) == ("logit", 0.5)
    (found,) = describe_outputs(model, {"y": values}, {"": "regression"})
    assert (found.judged_as, found.because) == ("regression", "as stated")


def test_a_single_number_decides_where_predictions_are_limited():
    values = {"y": np.abs(ROWS[:, :1])}
    (found,) = describe_outputs(MODEL, values, {}, decides=True)
    assert found.judged_as == "logit"
    (found,) = describe_outputs(MODEL, values, {"": "regression"}, decides=True)
    assert found.judged_as == "regression"


def test_a_reshape_does_not_hide_the_sigmoid():
    net = Network(input=(4,))
    flat = net.op("Squeeze", net.op("Sigmoid", net.gemm("input", 1)), net.constant(np.array([1])))
    (found,) = describe_outputs(net.model(y=flat), {"y": np.full(3, 0.7, np.float32)}, {})
    assert (found.judged_as, found.threshold) == ("logit", 0.5)


def test_what_is_stated_goes_before_what_is_detected_output_by_output():
    outputs = {"a": ROWS, "b": ROWS, "index": np.zeros(8, np.int64)}
    kinds = [o.judged_as for o in describe_outputs(MODEL, outputs, {"a": "embedding"})]
    assert kinds == ["embedding", "scores", "classes"]
    kinds = [
        o.judged_as for o in describe_outputs(MODEL, outputs, {"": "regression", "a": "scores"})
    ]
    assert kinds == ["scores", "regression", "classes"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (ROWS[:, :1], "scores"),
        (ROWS, "logit"),
        (ROWS[:, 0], "classes"),
        (np.zeros((8, 3, 4, 4), np.float32), "embedding"),
        (np.zeros(8, np.int64), "map"),
    ],
)
def test_refuses_a_kind_that_an_output_cannot_be(values, kind):
    with pytest.raises(ResdeployError, match=f"cannot be judged as {kind}") as error:
        describe_outputs(MODEL, {"y": values}, {"": kind})
    assert "one of: " in error.value.fix


def test_a_name_that_is_no_output_is_an_error_that_knows_the_nearest():
    with pytest.raises(ResdeployError, match="no output 'logit'") as error:
        describe_outputs(MODEL, {"logits": ROWS}, {"logit": "scores"})
    assert "logits" in error.value.fix
