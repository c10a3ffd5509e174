"""The mean of an image becomes a pooling, and no other mean does."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import checker, parser

from resdeploy.graph.replace_reduce_mean import replace_reduce_mean

X = np.random.default_rng(0).normal(size=(3, 5, 4, 6)).astype(np.float32)


def graph(body, *, opset=18, x="float[N, 5, 4, 6] x", y="float[N, a, b, c] y"):
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g ({x}) => ({y}) {{ {body} }}'
    return parser.parse_model(text)


def run(proto, x=X):
    return ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]


def axes(values):
    return f"a = Constant<value_ints={values}>() "


MEANS = {
    "axes an input": (18, axes([2, 3]) + "y = ReduceMean(x, a)"),
    "from the end": (18, axes([-1, -2]) + "y = ReduceMean<keepdims=1>(x, a)"),
    "from both ends": (18, axes([-1, 2]) + "y = ReduceMean(x, a)"),
    "axes an attribute": (13, "y = ReduceMean<axes=[3, 2]>(x)"),
}


@pytest.mark.parametrize(("opset", "body"), MEANS.values(), ids=MEANS)
def test_a_mean_over_the_image_is_a_global_average_pooling(opset, body):
    proto = graph(f"{body} ", opset=opset)
    model = ir.from_proto(proto)
    assert replace_reduce_mean(model).num_changed == 1
    assert [node.op_type for node in model.graph if node.op_type != "Constant"] == [
        "GlobalAveragePool"
    ]
    changed = ir.to_proto(model)
    checker.check_model(changed, full_check=True)
    assert model.graph.outputs[0].name == "y"
    np.testing.assert_allclose(run(changed), run(proto), rtol=0, atol=1e-6)
    assert replace_reduce_mean(model).num_changed == 0


def test_without_kept_axes_it_is_laid_flat():
    proto = graph(axes([2, 3]) + "h = ReduceMean<keepdims=0>(x, a) y = Relu(h)", y="float[N, 5] y")
    model = ir.from_proto(proto)
    assert replace_reduce_mean(model).num_changed == 1
    changed = ir.to_proto(model)
    checker.check_model(changed, full_check=True)
    assert [node.op_type for node in model.graph][-3:] == ["GlobalAveragePool", "Flatten", "Relu"]
    assert run(changed).shape == (3, 5)
    np.testing.assert_allclose(run(changed), run(proto), rtol=0, atol=1e-6)


def test_the_node_is_called_what_it_is():
    model = ir.from_proto(graph("y = ReduceMean<axes=[2, 3]>(x)", opset=13))
    model.graph[0].name = "head/ReduceMean"
    replace_reduce_mean(model)
    assert model.graph[0].name == "head/GlobalAveragePool"


OTHERS = {
    "one axis": (18, axes([2]) + "y = ReduceMean(x, a)"),
    "the channels too": (18, axes([1, 2, 3]) + "y = ReduceMean(x, a)"),
    "a channel axis": (18, axes([1, 2]) + "y = ReduceMean(x, a)"),
    "all axes": (18, "y = ReduceMean(x)"),
    "another reduction": (18, axes([2, 3]) + "y = ReduceMax(x, a)"),
    "axes that vary": (18, "s = Shape(x) a = Cast<to=7>(s) y = ReduceMean(x, a)"),
}


@pytest.mark.parametrize(("opset", "body"), OTHERS.values(), ids=OTHERS)
def test_other_means_stay(opset, body):
    model = ir.from_proto(graph(body, opset=opset))
    before = ir.to_proto(model).SerializeToString()
    assert replace_reduce_mean(model).num_changed == 0
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("x", ["float[N, 5, 4, 6, 2] x", "float x"])
def test_what_may_be_no_image_stays(x):
    """Of five axes, or of an unknown number, axes 2 and 3 are not all the spatial ones."""
    model = ir.from_proto(graph(axes([2, 3]) + "y = ReduceMean(x, a)", x=x))
    if x == "float x":
        model.graph.inputs[0].shape = None
    assert replace_reduce_mean(model).num_changed == 0
