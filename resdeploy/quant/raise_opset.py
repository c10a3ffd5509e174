"""Raise the opset of a model from elsewhere to one with integers per channel.

Before:  opset 7, BatchNormalization{spatial: 1}, Pad{pads}(x), Softmax{axis: 1}
After:   opset 13, the same function

onnx's own converter does the steps, of which it says that they are exact. That is not taken for
granted: both models are brought into the normal form of a proof, and must be one.

Refuses when
1. the converter has no step for an operator;
2. the two are not shown to be the same: an operator is outside the closed list, or differs.
"""

import onnx
from onnx import numpy_helper

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.onnx_file import opset_of

__all__ = ["raise_opset"]


def raise_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return `model` in a newer `opset`: the same function, shown to be.

    Raises:
        UnsupportedModelError: see the module's list.
    """
    # It loads onnx-ir, which a model of today does without.
    from resdeploy.verify.certify import refuse_difference  # noqa: PLC0415

    found = opset_of(model)
    try:
        raised = onnx.version_converter.convert_version(model, opset)
    except (RuntimeError, onnx.checker.ValidationError) as error:  # 1
        raise _refusal(found, opset, str(error).partition("\n")[0]) from error
    _constants_to_initializers(raised)
    refuse_difference(raised, model, opset)  # 2
    return raised


def _constants_to_initializers(model: onnx.ModelProto) -> None:
    """Give constants that the converter computed the form of the model's own."""
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        values = [a.t for a in node.attribute if a.name == "value"]
        if len(values) != 1 or any(o.name == node.output[0] for o in model.graph.output):
            continue
        tensor = onnx.TensorProto()
        tensor.CopyFrom(values[0])
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
        model.graph.node.remove(node)
    zeros = {
        tensor.name
        for tensor in model.graph.initializer
        if not numpy_helper.to_array(tensor).any() and not tensor.dims
    }
    for node in model.graph.node:
        # It is the default, and no value that a kernel for integers would have to hold.
        if node.op_type == "Pad" and len(node.input) == 3 and node.input[2] in zeros:
            node.input.pop()


def _refusal(found: int, opset: int, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The model cannot be raised from opset {found} to {opset}: {reason}.",
        fix="export it again in a newer opset",
    )
