"""A sequence of parts, read by their places, becomes a Split that computes the same."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import feeds, network, run

from resdeploy.graph.replace_split_sequence import replace_split_sequence

TWO = "a = SequenceAt (parts, first) b = SequenceAt (parts, last) z = Concat <axis = 1> (b, a)"


def sequence(
    body: str = TWO, *, lengths: object = 3, keepdims: int = 1, inputs: str = "float[2, 4, 5] x"
) -> onnx.ModelProto:
    return network(
        f"parts = SplitToSequence <axis = 1, keepdims = {keepdims}> (x, lengths) {body}",
        {"lengths": np.array(lengths), "first": np.array(0), "last": np.array(-1)},
        inputs=inputs,
        outputs="float[a, b, c] z",
        dtype=np.int64,
    )


def replaced(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    changed = ir.from_proto(model)
    report = replace_split_sequence(changed)
    return ir.to_proto(changed), report.num_changed


@pytest.mark.parametrize("lengths", [3, 2, [1, 3], [2, 2], [4, 0]])
def test_it_computes_the_same_numbers(lengths):
    model = sequence(lengths=lengths)
    result, num_changed = replaced(model)
    assert num_changed == 1
    assert [node.op_type for node in result.graph.node] == ["Split", "Concat"]
    onnx.checker.check_model(result, full_check=True)
    inputs = feeds(model)
    np.testing.assert_array_equal(run(model, inputs)["z"], run(result, inputs)["z"])


def test_parts_nobody_reads_stay_parts():
    model = sequence("z = SequenceAt (parts, last)", lengths=[1, 2, 1])
    result, num_changed = replaced(model)
    assert num_changed == 1
    assert len(result.graph.node[0].output) == 3
    inputs = feeds(model)
    np.testing.assert_array_equal(run(model, inputs)["z"], run(result, inputs)["z"])


@pytest.mark.parametrize(
    "made",
    [
        lambda: sequence(inputs="float[2, c, 5] x"),  # 1
        lambda: sequence("z = ConcatFromSequence <axis = 1> (parts)"),  # 2
        lambda: sequence("z = SequenceAt (parts, at)", inputs="float[2, 4, 5] x, int64 at"),
        lambda: sequence(
            "a = SequenceAt (parts, first) b = SequenceAt (parts, first) z = Add (a, b)"
        ),
    ],
    ids=["unknown length", "another reader", "unknown place", "one place twice"],
)
def test_any_other_is_left_alone(made):
    model = made()
    assert replaced(model) == (ir.to_proto(ir.from_proto(model)), 0)
