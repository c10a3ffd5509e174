"""The zero bias of a convolution without one: a constant with the name of its layer."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from resdeploy.fold.write_zero_bias import write_zero_bias


def model(value: str) -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["": 18]>
    g (float[2, 3, 5, 5] x, float[4, 3, 1, 1] conv.weight) => (float[a, b, c, d] y) {{
        shape = Shape <start = 0, end = 1> (conv.weight)
        number = Constant <value = float {{{value}}}> ()
        cast = Cast <to = 1> (number)
        bias = Expand (cast, shape)
        y = Conv (x, conv.weight, bias)
    }}""".replace("conv.weight", "conv_weight")
    return ir.from_proto(parser.parse_model(text))


def test_it_is_written_as_a_constant():
    made = model("0.0")
    assert write_zero_bias(made).num_changed == 1
    conv = made.graph[-1]
    assert conv.inputs[2].name == "conv_bias"
    np.testing.assert_array_equal(conv.inputs[2].const_value.numpy(), np.zeros(4, np.float32))
    assert write_zero_bias(made).num_changed == 0


@pytest.mark.parametrize("value", ["1.0", "-0.5"])
def test_another_number_is_left_alone(value):
    assert write_zero_bias(model(value)).num_changed == 0
