"""Write the model in an older operator set, for runtimes that read no newer one.

Before:  opset 18, ReduceMean(x, axes=[2, 3])
After:   opset 13, ReduceMean(x){axes: [2, 3]}, the rest relabelled

Most operators of a residual network are the same function in every opset from 13 on: newer
versions added types, attributes and optional inputs. A node that uses none of the additions is
valid in the older opset as it stands. (The converter of the onnx package lacks many of these steps
downwards, Pad 18 -> 17 and Relu 14 -> 13 among them.)

Refuses, naming the node, when
1. its operator did not exist then, or has changed and is not on the list below;
2. it uses an attribute or an input that was added later.
"""

import onnx
import onnx_ir as ir

from resdeploy.errors import UnsupportedModelError
from resdeploy.schema.exports import PassReport

__all__ = ["OLDEST_OPSET", "lower_opset"]

OLDEST_OPSET = 13

# Changed since opset 13 by additions only: read against the operators' change log.
_ONLY_ADDITIONS = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Equal", "Cast", "Relu", "Identity", "Dropout"),
    *("Conv", "ConvTranspose", "Gemm", "MaxPool", "AveragePool"),
    *("GlobalAveragePool", "GlobalMaxPool", "ReduceMean"),
    *("BatchNormalization", "InstanceNormalization", "LayerNormalization"),
    *("Constant", "ConstantOfShape", "Expand", "Flatten", "Pad", "Reshape", "Shape"),
    *("Squeeze", "Transpose", "Unsqueeze"),
}


def lower_opset(model: ir.Model, opset: int) -> PassReport:
    """Lower `model` to `opset` in place, and set the oldest IR version that holds it.

    Raises:
        UnsupportedModelError: a node has no form in that opset.
    """
    found = model.opset_imports[""]
    num_changed = 0
    for node in list(model.graph.all_nodes()) if opset < found else []:
        if node.op_type == "ReduceMean" and opset < 18:
            num_changed += _move_axes_to_attribute(node)
        _check_exists(node, found, opset)
    model.opset_imports[""] = opset
    imports = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
    model.ir_version = onnx.helper.find_min_ir_version_for(imports)
    return PassReport(name="lower_opset", num_changed=num_changed)


def _move_axes_to_attribute(node: ir.Node) -> int:
    """Give a ReduceMean of opset 18 the form it had before: the axes an attribute."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return 0
    axes = ir.convenience.get_const_tensor(node.inputs[1])
    if axes is None:
        raise _refusal(node, "its axes are computed at run time")
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(a) for a in axes.numpy()])
    node.replace_input_with(1, None)
    node.resize_inputs(1)
    # In opset 18 the empty list had the meaning of this attribute; since then the default is 0.
    node.attributes.pop("noop_with_empty_axes", None)
    return 1


def _check_exists(node: ir.Node, found: int, opset: int) -> None:
    """Raise UnsupportedModelError unless `node` has the same meaning in `opset` as in `found`."""
    if node.domain not in ("", "ai.onnx"):
        return
    new = onnx.defs.get_schema(node.op_type, found, "")
    try:
        old = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise _refusal(node, f"opset {opset} has no {node.op_type}") from error  # 1
    if old.since_version == new.since_version:
        return
    if node.op_type not in _ONLY_ADDITIONS:
        raise _refusal(node, f"{node.op_type} meant something else in opset {opset}")  # 1
    added = [name for name in node.attributes if name not in old.attributes]
    for name in [name for name in added if _has_no_effect(node, name, new)]:
        node.attributes.pop(name)
        added.remove(name)
    if added:
        raise _refusal(node, f"opset {opset} has no attribute {added[0]!r} there")  # 2
    if len(node.inputs) > old.max_input:
        raise _refusal(node, f"opset {opset} takes at most {old.max_input} inputs there")  # 2


def _has_no_effect(node: ir.Node, name: str, schema: onnx.defs.OpSchema) -> bool:
    """True if an attribute has its default value, or cannot matter for this node."""
    if node.op_type == "Reshape" and name == "allowzero":
        # It decides the meaning of a 0 in the target shape.
        value = node.inputs[1]
        shape = None if value is None else ir.convenience.get_const_tensor(value)
        if shape is not None and 0 not in shape.numpy():
            return True
    default = onnx.helper.get_attribute_value(schema.attributes[name].default_value)
    return bool(node.attributes[name].value == default)


def _refusal(node: ir.Node, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The model cannot be written in this opset: {reason}.",
        where=f"node {node.name!r} ({node.op_type})",
        fix="ask for a newer --opset",
    )
