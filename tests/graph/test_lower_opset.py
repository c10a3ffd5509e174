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


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17, 18])
def test_the_function_is_the_same_in_every_opset(opset):
    x = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
    model = load(NETWORK)
    expected = outputs(model, x)
    report = lower_opset(model, opset)
    assert model.opset_imports[""] == opset
    assert outputs(model, x).tobytes() == expected.tobytes()
    assert report.num_changed == (opset < 18)


@pytest.mark.parametrize(("opset", "ir_version"), [(13, 7), (15, 8), (18, 8)])
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
