"""Lowering the opset: the same function in every opset, or a refusal."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.lower_opset import lower_opset

NETWORK = """
<ir_version: 10, opset_import: ["": 18]>
g (float[batch, 2, 4, 4] input) => (float[batch, 2] logits)
<int64[8] pads = {0, 1, 0, 0, 0, 1, 0, 0}, int64[2] axes = {2, 3}, int64[2] shape = {-1, 2},
 float[2, 4, 1, 1] weight = {1, 2, 3, 4, 5, 6, 7, 8}>
{
    padded = Pad <mode = "constant"> (input, pads)
    convolved = Conv (padded, weight)
    rectified = Relu (convolved)
    pooled = ReduceMean <keepdims = 1> (rectified, axes)
    logits = Reshape <allowzero = 1> (pooled, shape)
}
"""


def load(text: str) -> ir.Model:
    return ir.from_proto(parser.parse_model(text))


def outputs(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString()).run(None, {"input": x})[0]


@pytest.mark.parametrize("opset", range(9, 19))
def test_the_function_is_the_same_in_every_opset(opset):
    x = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
    model = load(NETWORK)
    expected = outputs(model, x)
    report = lower_opset(model, opset)
    assert model.opset_imports[""] == opset
    assert outputs(model, x).tobytes() == expected.tobytes()
    assert report.num_changed == (opset < 18) + (opset < 11)


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 4), (11, 6), (13, 7), (15, 8), (18, 8)])
def test_the_file_version_is_the_oldest_that_holds_the_opset(opset, ir_version):
    model = load(NETWORK)
    lower_opset(model, opset)
    assert model.ir_version == ir_version


def one_node(line: str, inputs: str = "float[2, 3] input", opset: int = 18) -> ir.Model:
    return load(
        f'<ir_version: 10, opset_import: ["": {opset}]>\n'
        f"g ({inputs}) => (float[a, b] logits) {{ logits = {line} }}"
    )


def test_refuses_an_operator_that_did_not_exist():  # 1
    model = one_node("Gelu (input)", opset=20)
    with pytest.raises(UnsupportedModelError, match="opset 17 has no Gelu"):
        lower_opset(model, 17)


def test_refuses_an_operator_that_meant_something_else():  # 1
    model = one_node(
        'Resize <mode = "nearest"> (input, , scales)', "float[2,3] input, float[2] scales"
    )
    with pytest.raises(UnsupportedModelError, match="Resize meant something else in opset 13"):
        lower_opset(model, 13)


def test_refuses_an_attribute_that_was_added_later_and_matters():  # 2
    model = one_node("Reshape <allowzero = 1> (input, shape)", "float[2,3] input, int64[2] shape")
    with pytest.raises(UnsupportedModelError, match="no attribute 'allowzero'"):
        lower_opset(model, 13)


def test_refuses_an_input_that_was_added_later():  # 2
    model = one_node("Pad (input, pads, , axes)", "float[2,3] input, int64[2] pads, int64[1] axes")
    with pytest.raises(UnsupportedModelError, match="takes at most 3 inputs"):
        lower_opset(model, 17)


def test_refuses_axes_computed_at_run_time():
    model = one_node("ReduceMean (input, axes)", "float[2,3] input, int64[1] axes")
    with pytest.raises(UnsupportedModelError, match="computed at run time"):
        lower_opset(model, 17)


# --- older forms ---------------------------------------------------------------------------------

# Each with a node of the newest form, and the opset in which it has to be another.
OLDER = {
    "reduce_sum": (12, "ReduceSum <keepdims = 0> (input, axis)", ["ReduceSum"]),
    "reduce_max_of_the_last_axis": (10, "ReduceMax <keepdims = 0> (input, last)", ["ReduceMax"]),
    "softmax": (12, "Softmax (input)", ["Softmax"]),
    "softmax_of_channels": (
        12,
        "Softmax <axis = 1> (input)",
        ["Transpose", "Softmax", "Transpose"],
    ),
    "log_softmax": (9, "LogSoftmax <axis = 0> (input)", ["Transpose", "LogSoftmax", "Transpose"]),
    "clip": (10, "Clip (input, low, high)", ["Clip"]),
    "clip_below": (10, "Clip (input, low)", ["Clip"]),
    "clip_above": (10, "Clip (input, , high)", ["Clip"]),
    "clip_at_zero": (10, "Clip (input, zero)", ["Clip"]),
    "hardswish": (13, "HardSwish (input)", ["HardSigmoid", "Mul"]),
    "pad_of_one_axis": (17, "Pad (input, pads, low, last)", ["Pad"]),
    "pad": (10, "Pad (input, pads, low, last)", ["Pad"]),
    "slice": (9, "Slice (input, zero_i, one_i, last)", ["Slice"]),
    "squeeze": (12, "Squeeze (wide, axis)", ["Squeeze"]),
    "unsqueeze": (10, "Unsqueeze (input, last)", ["Unsqueeze"]),
    "concat_of_the_last_axis": (9, "Concat <axis = -1> (input, input)", ["Concat"]),
    "dropout": (11, "Dropout (input, low, no)", ["Dropout"]),
}
CONSTANTS = """
<int64[1] axis = {1}, int64[1] last = {-1}, int64[1] zero_i = {0}, int64[1] one_i = {1},
 int64[2] pads = {1, 2}, float low = {0.5}, float high = {0.75}, float zero = {0}, bool no = {0}>
"""


def in_opset_18(line: str) -> ir.Model:
    wide = "wide = Unsqueeze (input, axis)\n" if "wide" in line else ""
    return load(
        '<ir_version: 8, opset_import: ["": 18]> g (float[2, 3, 4] input) => (float[] logits)'
        f"{CONSTANTS} {{ {wide} logits = {line} }}"
    )


def in_opset(model: ir.Model, x: np.ndarray) -> np.ndarray:
    model.graph.outputs[0].shape = None
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True)
    onnx.checker.check_model(proto)
    return ort.InferenceSession(proto.SerializeToString()).run(None, {"input": x})[0]


@pytest.mark.parametrize("name", OLDER)
def test_an_older_form_is_the_same_function(name):
    opset, line, operators = OLDER[name]
    x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    x[0, 0, :2] = np.inf, -np.inf if "clip" in name else 0
    model = in_opset_18(line)
    expected = in_opset(model, x)
    lower_opset(model, opset)
    found = [node.op_type for node in model.graph]
    assert found[-len(operators) :] == operators
    np.testing.assert_allclose(in_opset(model, x), expected, rtol=1e-6)


def test_a_gemm_without_a_bias_gets_one_of_zero():
    model = one_node("Gemm (input, w)", "float[2, 3] input, float[3, 4] w")
    lower_opset(model, 9)
    (node,) = model.graph
    assert len(node.inputs) == 3


@pytest.mark.parametrize(
    ("opset", "line", "reason"),
    [
        (9, "Slice (input, zero_i, one_i, axis, axis2)", "steps by another number"),
        (12, "ReduceSum (input, computed)", "its axes are computed at run time"),
        (10, "Gather (input, minus)", "its indices may count from the end"),
        (16, "LayerNormalization (input, w)", "opset 16 has no LayerNormalization"),
    ],
)
def test_refuses_what_has_no_older_form(opset, line, reason):  # 3
    model = load(
        '<ir_version: 8, opset_import: ["": 18]>'
        "g (float[2, 3] input, int64[1] computed) => (float[a, b] logits)"
        "<int64[1] zero_i = {0}, int64[1] one_i = {1}, int64[1] axis = {1}, int64[1] axis2 = {2},"
        f" int64[1] minus = {{-1}}, float[3] w = {{1, 1, 1}}> {{ logits = {line} }}"
    )
    with pytest.raises(UnsupportedModelError, match=reason):
        lower_opset(model, opset)
