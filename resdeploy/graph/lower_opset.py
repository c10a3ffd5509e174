"""Write the model in an older operator set, for runtimes that read no newer one.

Before:  opset 18, ReduceMean(x, axes=[2, 3]), Clip(x, 0, 6)
After:   opset 10, ReduceMean(x){axes: [2, 3]}, Clip(x){min: 0, max: 6}, the rest relabelled

Most operators of a residual network are the same function in every opset from 9 on: newer versions
added types, attributes and optional inputs. A node that uses none of the additions is valid in the
older opset as it stands; others are brought into their older form by `older_forms`. (The converter
of the onnx package lacks many of these steps downwards, Pad 18 -> 17 and Relu 14 -> 13 among them.)

Refuses, naming the node, when
1. its operator did not exist then, or has changed and is not on the list below;
2. it uses an attribute or an input that was added later;
3. a rewriting does not apply: `older_forms` says why.
"""

import onnx
import onnx_ir as ir

from resdeploy.graph.editor import each_node
from resdeploy.graph.older_forms import REDUCTIONS, REWRITINGS, refusal
from resdeploy.schema.exports import PassReport

__all__ = ["OLDEST_OPSET", "lower_opset"]

OLDEST_OPSET = 9

# The oldest version of each operator that is, for floats and in the form of `older_forms`, the same
# function as the newest: read against the operators' change log.
_SAME_SINCE = {
    **dict.fromkeys(("Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "LRN"), 1),
    **dict.fromkeys(("Identity", "MaxPool", "Shape", "Softplus", "Softsign", "SpaceToDepth"), 1),
    **dict.fromkeys(("MatMul", "Not", "Slice", "Softmax", "LogSoftmax", "Transpose"), 1),
    **dict.fromkeys(("ArgMax", "ArgMin", "DepthToSpace", "Gather", "ReduceSum"), 1),
    **dict.fromkeys((*REDUCTIONS, "Squeeze", "Unsqueeze"), 1),
    **dict.fromkeys(("Pad", "Split"), 2),
    "Concat": 4,
    "Reshape": 5,
    **dict.fromkeys(("Abs", "Cast", "Ceil", "Clip", "Elu", "Exp", "Floor", "HardSigmoid"), 6),
    **dict.fromkeys(("InstanceNormalization", "LeakyRelu", "Log", "Neg", "Reciprocal"), 6),
    **dict.fromkeys(("Relu", "Selu", "Sigmoid", "Sqrt", "Tanh", "Tile"), 6),
    **dict.fromkeys(("Add", "AveragePool", "Cos", "Div", "Dropout", "Gemm", "Mul", "PRelu"), 7),
    **dict.fromkeys(("Pow", "Sin", "Sub"), 7),
    **dict.fromkeys(("Expand", "Max", "Mean", "Min", "Sum"), 8),
    **dict.fromkeys(("BatchNormalization", "Constant", "ConstantOfShape", "Erf", "Flatten"), 9),
    **dict.fromkeys(("Greater", "Less", "Where"), 9),
    "Equal": 11,
    "HardSwish": 14,
    "LayerNormalization": 17,
}


def lower_opset(model: ir.Model, opset: int) -> PassReport:
    """Lower `model` to `opset` in place, and set the oldest IR version that holds it.

    Raises:
        UnsupportedModelError: a node has no form in that opset.
    """
    found = model.opset_imports[""]
    num_changed = 0
    if opset < found:
        for node, editor in list(each_node(model)):
            for below, operators, rewrite in REWRITINGS:
                # Its version of before is another one, so that the model may have it already.
                if opset < below <= found and node.op_type in operators and _is_onnx(node):
                    num_changed += rewrite(node, editor)
        for node in list(model.graph.all_nodes()):
            _check_exists(node, found, opset)
    model.opset_imports[""] = opset
    imports = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
    model.ir_version = onnx.helper.find_min_ir_version_for(imports)
    return PassReport(name="lower_opset", num_changed=num_changed)


def _is_onnx(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx")


def _check_exists(node: ir.Node, found: int, opset: int) -> None:
    """Raise UnsupportedModelError unless `node` has the same meaning in `opset` as in `found`."""
    if not _is_onnx(node):
        return
    new = onnx.defs.get_schema(node.op_type, found, "")
    try:
        old = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise refusal(node, f"opset {opset} has no {node.op_type}") from error  # 1
    if old.since_version == new.since_version:
        return
    if old.since_version < _SAME_SINCE.get(node.op_type, new.since_version):
        raise refusal(node, f"{node.op_type} meant something else in opset {opset}")  # 1
    if len(node.inputs) < old.min_input:
        raise refusal(node, f"opset {opset} asks for {old.min_input} inputs there")  # 2
    added = [name for name in node.attributes if name not in old.attributes]
    for name in [name for name in added if _has_no_effect(node, name, new)]:
        node.attributes.pop(name)
        added.remove(name)
    if added:
        raise refusal(node, f"opset {opset} has no attribute {added[0]!r} there")  # 2
    if len(node.inputs) > old.max_input:
        raise refusal(node, f"opset {opset} takes at most {old.max_input} inputs there")  # 2


def _has_no_effect(node: ir.Node, name: str, schema: onnx.defs.OpSchema) -> bool:
    """True if an attribute has its default value, or cannot matter for this node."""
    if node.op_type == "Reshape" and name == "allowzero":
        # It decides the meaning of a 0 in the target shape.
        value = node.inputs[1]
        shape = None if value is None else ir.convenience.get_const_tensor(value)
        if shape is not None and 0 not in shape.numpy():
            return True
    if name == "dilations":
        return set(node.attributes[name].as_ints()) == {1}
    default = onnx.helper.get_attribute_value(schema.attributes[name].default_value)
    return bool(node.attributes[name].value == default)
