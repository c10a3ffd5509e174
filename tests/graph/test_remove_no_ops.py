"""Nodes that compute nothing are removed; all others stay."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import checker, parser

from resdeploy.graph.remove_no_ops import remove_no_ops
from resdeploy.graph.simplify import simplify

X = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)


def graph(body, constants=""):
    return parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]>'
        f" g (float[batch, 4, 2, 2] input) => (float[N, a, b, c] logits) {constants} {{ {body} }}"
    )


def run(proto):
    return ort.InferenceSession(proto.SerializeToString()).run(None, {"input": X})[0]


def between(body):
    return f"a = Relu(input) {body} logits = Neg(b)"


END = 9223372036854775807
# Those of the first group are onnxsim's work already; they are here so that it stays so.
NO_OPS = {
    "Identity": (between("b = Identity(a)"), ""),
    "Dropout": (between("b = Dropout(a)"), ""),
    "Cast to the same": (between("b = Cast<to=1>(a)"), ""),
    "Transpose in order": (between("b = Transpose<perm=[0, 1, 2, 3]>(a)"), ""),
    "Reshape to the same": (between("b = Reshape(a, s)"), "<int64[4] s = {-1, 4, 2, 2}>"),
    "Pad by nothing": (between("b = Pad(a, s)"), "<int64[8] s = {0, 0, 0, 0, 0, 0, 0, 0}>"),
    "Mul by one": (between("b = Mul(a, s)"), "<float[1] s = {1}>"),
    "constants folded": ("a = Relu(input) s = Neg(t) logits = Mul(a, s)", "<float t = {2}>"),
    "Slice of whole axes": (
        between("b = Slice(a, s, e, x)"),
        f"<int64[2] s = {{0, 0}}, int64[2] e = {{{END}, 4}}, int64[2] x = {{0, 1}}>",
    ),
    "Slice without axes": (
        between("b = Slice(a, s, e)"),
        f"<int64[2] s = {{0, 0}}, int64[2] e = {{{END}, 2147483647}}>",
    ),
    "Dropout with a ratio": (
        between("b = Dropout(a, r, t)"), "<float r = {0.5}, bool t = {0}>"
    ),
    "Dropout with a ratio alone": (between("b = Dropout(a, r)"), "<float r = {0.5}>"),
    "Sum of one": (between("b = Sum(a)"), ""),
}  # fmt: skip


@pytest.mark.parametrize(("body", "constants"), NO_OPS.values(), ids=NO_OPS)
def test_between_two_layers_nothing_is_left_of_what_computes_nothing(body, constants):
    proto = graph(body, constants)
    model, _ = simplify(ir.from_proto(proto))
    remove_no_ops(model)
    assert len(list(model.graph)) == 2, [node.op_type for node in model.graph]
    assert model.graph.outputs[0].name == "logits"
    changed = ir.to_proto(model)
    checker.check_model(changed)
    assert run(changed).tobytes() == run(proto).tobytes()
    assert {v.name for v in model.graph.initializers.values()} <= {"s"}


def test_before_an_output_the_output_keeps_its_name():
    model = ir.from_proto(graph("a = Relu(input) logits = Sum(a)"))
    assert remove_no_ops(model).num_changed == 1
    assert [node.op_type for node in model.graph] == ["Relu"]
    assert [value.name for value in model.graph.outputs] == ["logits"]
    np.testing.assert_array_equal(run(ir.to_proto(model)), np.maximum(X, 0))


def test_between_an_input_and_an_output_it_stays():
    model = ir.from_proto(graph("logits = Sum(input)"))
    assert remove_no_ops(model).num_changed == 0


def test_what_is_an_output_by_itself_keeps_its_name_too():
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]>'
        " g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Relu(x) z = Sum(y) }"
    )
    model = ir.from_proto(proto)
    assert remove_no_ops(model).num_changed == 0


SOMETHING = {
    "a Slice from one on": ("b = Slice(a, s, e)", f"<int64[1] s={{1}}, int64[1] e={{{END}}}>"),
    "a Slice that ends": ("b = Slice(a, s, e)", "<int64[1] s={0}, int64[1] e={1}>"),
    "a Slice that ends within": (
        "b = Slice(a, s, e, x)",
        "<int64[1] s={0}, int64[1] e={3}, int64[1] x={1}>",
    ),
    "a Slice by steps": (
        "b = Slice(a, s, e, x, t)",
        f"<int64[1] s={{0}}, int64[1] e={{{END}}}, int64[1] x={{2}}, int64[1] t={{2}}>",
    ),
    "a Dropout in training": ("b = Dropout(a, r, t)", "<float r = {0.5}, bool t = {1}>"),
    "a Sum of two": ("b = Sum(a, a)", ""),
}


@pytest.mark.parametrize(("body", "constants"), SOMETHING.values(), ids=SOMETHING)
def test_what_computes_something_stays(body, constants):
    model = ir.from_proto(graph(between(body), constants))
    assert remove_no_ops(model).num_changed == 0


def test_bounds_computed_at_run_time_stay():
    body = "a = Relu(input) e = Shape<end=1>(input) b = Slice(a, s, e) logits = Neg(b)"
    assert remove_no_ops(ir.from_proto(graph(body, "<int64[1] s = {0}>"))).num_changed == 0
