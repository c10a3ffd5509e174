import numpy as np
import onnx
import pytest
from onnx import parser
from small_networks import inputs, small_resnet

from resdeploy.errors import UnsupportedModelError
from resdeploy.quant.prepare import prepare
from resdeploy.quant.runtime import Runner


@pytest.mark.parametrize("opset", [13, 18])
def test_a_mean_over_the_image_becomes_a_pooling_that_has_an_integer_kernel(opset):
    model = small_resnet(opset=opset)
    ready = prepare(model)
    operators = [node.op_type for node in ready.graph.node]
    assert "GlobalAveragePool" in operators
    assert "ReduceMean" not in operators
    x = inputs(3)
    before = Runner(model, optimize=False).run_rows(x)
    assert np.allclose(Runner(ready, optimize=False).run_rows(x), before, rtol=1e-5, atol=1e-6)


def test_every_node_has_a_name_of_its_own():
    names = [node.name for node in prepare(small_resnet()).graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_a_layer_without_bias_gets_one_of_zeros():
    model = small_resnet()
    del model.graph.node[0].input[2]
    onnx.checker.check_model(model)
    ready = prepare(model)
    assert len(ready.graph.node[0].input) == 3
    x = inputs(2)
    before = Runner(model, optimize=False).run_rows(x)
    assert np.allclose(Runner(ready, optimize=False).run_rows(x), before, rtol=1e-5, atol=1e-6)


HEAD = '<ir_version: 8, opset_import: ["": 18]> g (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)'


def test_refuses_a_layer_outside_the_specification():
    model = small_resnet()
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("groups", 2))
    with pytest.raises(UnsupportedModelError, match=r"unknown attributes \['groups'\]") as error:
        prepare(model)
    assert error.value.where == "stem/Conv"


def test_refuses_a_model_that_is_quantised_already():
    model = parser.parse_model(
        HEAD + "<float s = {0.1}, uint8 z = {3}> { q = QuantizeLinear (x, s, z)"
        " y = DequantizeLinear (q, s, z) }"
    )
    with pytest.raises(UnsupportedModelError, match="quantised already"):
        prepare(model)


def test_refuses_a_model_in_which_there_is_nothing_to_quantise():
    with pytest.raises(UnsupportedModelError, match="no Conv or Gemm"):
        prepare(parser.parse_model(HEAD + " { y = Relu (x) }"))
