"""Names, metadata and simplification."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.name_io import name_io
from resdeploy.graph.simplify import simplify
from resdeploy.graph.strip_metadata import strip_metadata

TWO_LAYERS = """
<ir_version: 10, opset_import: ["": 18]>
g (float[s77, 4] x) => (float[s77, 3] linear_1)
<float[4, 4] first = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16},
 float[4, 3] second = {1,2,3,4,5,6,7,8,9,10,11,12}>
{
    input = MatMul (x, first)
    rectified = Relu (input)
    linear_1 = MatMul (rectified, second)
}
"""


def load(text: str = TWO_LAYERS) -> ir.Model:
    return ir.from_proto(parser.parse_model(text))


def test_inputs_outputs_and_batch_get_the_names_users_expect():
    model = load()
    report = name_io(model, batch_dimension="batch")
    (entry,), (result,) = model.graph.inputs, model.graph.outputs
    assert (entry.name, result.name) == ("input", "logits")
    assert [str(d) for d in entry.shape] == ["batch", "4"]
    assert str(result.shape[0]) == "batch"
    assert report.num_changed >= 3


def test_a_value_that_has_the_name_already_steps_aside():
    model = load()
    name_io(model, batch_dimension="batch")
    x = np.ones((2, 4), np.float32)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    before = ort.InferenceSession(ir.to_proto(load()).SerializeToString())
    assert session.run(None, {"input": x})[0].tolist() == before.run(None, {"x": x})[0].tolist()


def test_metadata_goes_and_module_names_stay():
    model = load()
    for index, node in enumerate(model.graph):
        node.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "/home/someone/secret.py"'
        node.metadata_props["pkg.torch.onnx.name_scopes"] = f"['', 'layer{index}', 'mm']"
        node.doc_string = "made by someone"
    model.graph.metadata_props["pkg.torch"] = "/home/someone"
    model.doc_string = "/home/someone"
    report = strip_metadata(model)
    assert [node.name for node in model.graph] == ["layer0/MatMul", "layer1/Relu", "layer2/MatMul"]
    assert b"someone" not in ir.to_proto(model).SerializeToString()
    assert report.num_changed == 5
    assert strip_metadata(model).num_changed == 0


def test_nodes_of_one_module_get_names_of_their_own():
    model = load()
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'block', 'mm']"
    strip_metadata(model)
    assert [node.name for node in model.graph] == ["block/MatMul", "block/Relu", "block/MatMul_2"]


def test_simplify_folds_constants_and_leaves_every_batchnorm_alone():
    """onnxsim would fold this BatchNormalization in float32; what we refuse must stay refused."""
    model = load(
        """
        <ir_version: 10, opset_import: ["": 18]>
        g (float[batch, 1, 2, 2] input) => (float[batch, 1, 2, 2] logits)
        <float[1, 1, 1, 1] weight = {2}, float[1] one = {1}, float[1] half = {0.5}>
        {
            doubled = Add (one, one)
            convolved = Conv (input, weight)
            logits = BatchNormalization (convolved, doubled, half, half, one)
        }
        """
    )
    simplified, report = simplify(model)
    assert [node.op_type for node in simplified.graph] == ["Conv", "BatchNormalization"]
    assert report.num_changed == 1


def test_what_onnxsim_rejects_is_an_error_of_ours():
    model = load()
    model.graph[0].attributes["a_list_that_is_no_tensor"] = ir.AttrInt64("x", 1)
    model.graph.inputs[0].shape = ir.Shape([1, 5])
    with pytest.raises(UnsupportedModelError, match="onnxsim cannot simplify the graph"):
        simplify(model)


def test_large_weights_come_back_as_they_were():
    rng = np.random.default_rng(0)
    values = {
        "kernel": rng.normal(size=(64, 4, 3, 3)).astype(np.float32),
        "matrix": rng.normal(size=(64, 40)).astype(np.float32),
    }
    model = load(
        """
        <ir_version: 10, opset_import: ["": 18]>
        g (float[batch, 4, 5, 5] input) => (float[batch, 40] logits)
        {
            convolved = Conv (input, kernel)
            pooled = GlobalAveragePool (convolved)
            flat = Flatten (pooled)
            logits = MatMul (flat, turned)
        }
        """
    )
    for name, value in values.items():
        reader = {"kernel": 0, "matrix": 3}[name]
        initializer = ir.Value(name=name, const_value=ir.tensor(value, name=name))
        initializer.dtype, initializer.shape = ir.DataType.FLOAT, ir.Shape(value.shape)
        model.graph.initializers.add(initializer)
        model.graph[reader].replace_input_with(1, initializer)
    x = rng.normal(size=(2, 4, 5, 5)).astype(np.float32)
    before = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"input": x})
    simplified, _ = simplify(model)
    assert [value.name for value in simplified.graph.inputs] == ["input"]
    for name, value in values.items():
        assert simplified.graph.initializers[name].const_value.numpy().tobytes() == value.tobytes()
    after = ort.InferenceSession(ir.to_proto(simplified).SerializeToString())
    assert after.run(None, {"input": x})[0].tobytes() == before[0].tobytes()


def test_a_large_constant_that_is_computed_with_is_still_folded():
    """Transpose of a weight: set aside, it would be computed in every run."""
    matrix = np.arange(2000, dtype=np.float32).reshape(50, 40)
    model = load(
        """
        <ir_version: 10, opset_import: ["": 18]>
        g (float[batch, 40] input) => (float[batch, 50] logits)
        {
            turned = Transpose <perm = [1, 0]> (matrix)
            logits = MatMul (input, turned)
        }
        """
    )
    initializer = ir.Value(name="matrix", const_value=ir.tensor(matrix, name="matrix"))
    initializer.dtype, initializer.shape = ir.DataType.FLOAT, ir.Shape(matrix.shape)
    model.graph.initializers.add(initializer)
    model.graph[0].replace_input_with(0, initializer)
    simplified, _ = simplify(model)
    assert [node.op_type for node in simplified.graph] == ["MatMul"]
