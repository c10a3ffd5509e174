"""Write the zero bias that torch's exporter computes for a convolution without one as a constant.

Before:  z = Expand(Cast(0), Expand(Shape(weight), [1]));  y = Conv(x, weight, z)
After:   y = Conv(x, weight, bias)        zeros (O,), named after the weight

onnxsim would compute each in a session of its own, and give it a number for a name.
"""

import numpy as np
import onnx_ir as ir

from resdeploy.graph.editor import bias_name, constant_array, is_op, optional_input, why_it_varies
from resdeploy.schema.exports import PassReport

__all__ = ["write_zero_bias"]


def write_zero_bias(model: ir.Model) -> PassReport:
    """Replace each such bias, in place."""
    num_changed = 0
    for node in model.graph.all_nodes():
        weight = node.inputs[1] if is_op(node, "Conv") else None
        bias = optional_input(node, 2) if weight is not None else None
        if weight is None or weight.shape is None or weight.dtype is None or bias is None:
            continue
        length = weight.shape[0]
        if bias.is_initializer() or not _is_zero(bias) or not isinstance(length, int):
            continue
        name = bias_name(weight)
        if name in model.graph.initializers:
            continue
        tensor = ir.tensor(np.zeros(length, weight.dtype.numpy()), dtype=weight.dtype, name=name)
        zeros = ir.Value(name=name, const_value=tensor, shape=ir.Shape([length]))
        zeros.dtype = weight.dtype
        model.graph.initializers.add(zeros)
        node.replace_input_with(2, zeros)
        num_changed += 1
    return PassReport(name="write_zero_bias", num_changed=num_changed)


def _is_zero(value: ir.Value) -> bool:
    """True if a value is a constant of zeros, cast and expanded."""
    node = value.producer()
    while node is not None and is_op(node, "Expand", "Cast") and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return why_it_varies(value) is None and not constant_array(value).any()
