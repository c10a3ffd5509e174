"""Operators written in the form that they had in an older opset: the same function of every input.

Each rewriting says what it turns into what, and why the two are one function; where a condition of
that does not hold, the node is refused by name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.editor import (
    GraphEditor,
    constant_array,
    constant_ints,
    int_attribute,
    ints_attribute,
    is_op,
    optional_input,
    remove_if_unread,
)

__all__ = ["REDUCTIONS", "REWRITINGS", "refusal"]

REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSumSquare"),
)
_WITH_AXIS = ("ArgMax", "ArgMin", "Concat", "Flatten", "Gather", "LogSoftmax", "Softmax", "Split")
_WITH_AXES = (*REDUCTIONS, "ReduceSum", "Squeeze", "Unsqueeze")

Rewriting = Callable[[ir.Node, GraphEditor], bool]


def refusal(node: ir.Node, reason: str) -> UnsupportedModelError:
    """Return the error for a node that has no form in the opset."""
    return UnsupportedModelError(
        f"The model cannot be written in this opset: {reason}.",
        where=f"node {node.name!r} ({node.op_type})",
        fix="ask for a newer --opset",
    )


def _axes_to_attribute(node: ir.Node, _editor: GraphEditor) -> bool:
    """ReduceMean(x, axes) is ReduceMean(x){axes}: the list has moved, not its meaning.

    Without axes the default is all of them, with `noop_with_empty_axes` at its default as before.
    """
    axes = _taken_input(node, 1, "its axes are")
    if axes is None:
        return False
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in np.ravel(axes)])
    # In opset 18 the empty list had the meaning of this attribute; since then the default is 0.
    node.attributes.pop("noop_with_empty_axes", None)
    return True


def _lengths_to_attribute(node: ir.Node, editor: GraphEditor) -> bool:
    """Split(x, lengths) is Split(x){split}; equal parts have no list in any opset."""
    lengths = _taken_input(node, 1, "its lengths are")
    if lengths is not None:
        node.attributes["split"] = ir.AttrInt64s("split", [int(length) for length in lengths])
        return True
    if node.attributes.pop("num_outputs", None) is None:
        return False
    axis, count = int_attribute(node, "axis", 0), len(node.outputs)
    shape = editor.shape(_input(node))
    length = None if shape is None else shape[axis]
    if not isinstance(length, int) or length % count:
        raise refusal(node, "its parts are not known to be of one length")
    return True


def _softmax_over_last_axis(node: ir.Node, editor: GraphEditor) -> bool:
    """Softmax over one axis is, before opset 13, the one over all axes from `axis` on.

    For the last axis the two are one; another axis is brought there by a Transpose, and back by the
    same, which swaps two axes.
    """
    rank = _rank(node, editor)
    axis = int_attribute(node, "axis", -1) % rank
    node.attributes["axis"] = ir.AttrInt64("axis", rank - 1)
    if axis == rank - 1:
        return False
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    source, result = _input(node), node.outputs[0]
    before = _new_node(editor, node, "Transpose", [source], perm=order)
    node.replace_input_with(0, before.outputs[0])
    after = ir.node("Transpose", [result], {"perm": order}, name=f"{node.name}_back")
    assert node.graph is not None
    node.graph.insert_after(node, after)
    _put_after(result, after, editor)
    return True


def _bounds_to_attributes(node: ir.Node, _editor: GraphEditor) -> bool:
    """Clip(x, low, high) is Clip(x){min, max}; one left out is the largest float in both forms."""
    for at, name in ((2, "max"), (1, "min")):
        bound = _taken_input(node, at, "its bounds are")
        if bound is not None:
            node.attributes[name] = ir.AttrFloat32(name, float(np.ravel(bound)[0]))
    node.resize_inputs(1)
    return True


def _pads_of_all_axes(node: ir.Node, editor: GraphEditor) -> bool:
    """Pad(x, pads, value, axes) is Pad(x, pads, value) with zeros for the other axes."""
    axes = optional_input(node, 3)
    if axes is None:
        return False
    pads, chosen = constant_ints(node.inputs[1]), constant_ints(axes)
    if pads is None or chosen is None:
        return False
    rank = _rank(node, editor)
    whole = [0] * (2 * rank)
    for place, axis in enumerate(chosen):
        whole[axis % rank] = pads[place]
        whole[axis % rank + rank] = pads[place + len(chosen)]
    numbers = ir.tensor(np.array(whole, np.int64))
    old = node.inputs[1]
    node.replace_input_with(1, editor.add(f"{node.name}_pads", numbers, reader=node))
    node.resize_inputs(3)
    for value in (old, axes):
        if value is not None:
            remove_if_unread(value)
    return True


def _pads_to_attribute(node: ir.Node, _editor: GraphEditor) -> bool:
    """Pad(x, pads, value) is Pad(x){pads, value}."""
    value = _taken_input(node, 2, "its value is")
    pads = _taken_input(node, 1, "its pads are")
    if pads is None:
        return False
    node.attributes["pads"] = ir.AttrInt64s("pads", [int(pad) for pad in pads])
    if value is not None and np.ravel(value).size and np.ravel(value)[0]:
        node.attributes["value"] = ir.AttrFloat32("value", float(np.ravel(value)[0]))
    return True


def _slices_to_attributes(node: ir.Node, editor: GraphEditor) -> bool:
    """Slice(x, starts, ends, axes) is Slice(x){starts, ends, axes}, if it steps by one."""
    steps = constant_ints(optional_input(node, 4))
    if optional_input(node, 4) is not None and (steps is None or set(steps) != {1}):
        raise refusal(node, "it steps by another number than one")
    if len(node.inputs) < 2:
        return False
    node.resize_inputs(min(4, len(node.inputs)))
    for at, name in ((3, "axes"), (2, "ends"), (1, "starts")):
        found = _taken_input(node, at, f"its {name} are")
        if found is not None:
            numbers = [int(number) for number in np.ravel(found)]
            if name == "axes":
                numbers = [number % _rank(node, editor) for number in numbers]
            node.attributes[name] = ir.AttrInt64s(name, numbers)
    return True


def _without_mode(node: ir.Node, _editor: GraphEditor) -> bool:
    """Dropout(x, ratio, false) is Dropout(x){ratio}: at inference it returns x in every opset."""
    mode = _taken_input(node, 2, "its mode is")
    if mode is not None and np.any(mode):
        raise refusal(node, "it is in training mode")
    ratio = _taken_input(node, 1, "its ratio is")
    if ratio is not None:
        node.attributes["ratio"] = ir.AttrFloat32("ratio", float(np.ravel(ratio)[0]))
    node.attributes.pop("seed", None)
    return True


def _with_zero_bias(node: ir.Node, editor: GraphEditor) -> bool:
    """Gemm(a, b) is Gemm(a, b, 0): beta times zero is added."""
    if optional_input(node, 2) is not None:
        return False
    dtype = editor.dtype(_input(node)) or ir.DataType.FLOAT
    zero = ir.tensor(np.zeros(1, dtype.numpy()), dtype=dtype)
    node.resize_inputs(3)
    node.replace_input_with(2, editor.add(f"{node.name}_zero", zero, reader=node))
    return True


def _hardswish_written_out(node: ir.Node, editor: GraphEditor) -> bool:
    """HardSwish(x) is x HardSigmoid(x){alpha: 1/6, beta: 1/2}: so ONNX defines it."""
    source = _input(node)
    gate = _new_node(editor, node, "HardSigmoid", [source], alpha=1 / 6, beta=0.5)
    node.op_type = "Mul"
    node.resize_inputs(2)
    node.replace_input_with(1, gate.outputs[0])
    return True


def _positive_axes(node: ir.Node, editor: GraphEditor) -> bool:
    """Axis -1 is axis rank - 1, as it had to be written."""
    if is_op(node, "Gather"):
        _refuse_negative_indices(node)
    axis = node.attributes.get("axis")
    if axis is not None and axis.as_int() < 0:
        node.attributes["axis"] = ir.AttrInt64("axis", axis.as_int() % _rank(node, editor))
        return True
    axes = ints_attribute(node, "axes")
    if axes and min(axes) < 0:
        rank = _rank(node, editor) + (len(axes) if is_op(node, "Unsqueeze") else 0)
        node.attributes["axes"] = ir.AttrInt64s("axes", [one % rank for one in axes])
        return True
    return False


def _refuse_negative_indices(node: ir.Node) -> None:
    indices = constant_ints(node.inputs[1])
    if indices is None or (indices and min(indices) < 0):
        raise refusal(node, "its indices may count from the end")


# The opset below which a node needs it, the operators, and the rewriting, in the order to try.
REWRITINGS: Sequence[tuple[int, tuple[str, ...], Rewriting]] = (
    (18, REDUCTIONS, _axes_to_attribute),
    (18, ("Pad",), _pads_of_all_axes),
    (18, ("Split",), lambda node, editor: _without_count(node, editor)),
    (14, ("HardSwish",), _hardswish_written_out),
    (13, ("ReduceSum", "Squeeze", "Unsqueeze"), _axes_to_attribute),
    (13, ("Split",), _lengths_to_attribute),
    (13, ("Softmax", "LogSoftmax"), _softmax_over_last_axis),
    (12, ("Dropout",), _without_mode),
    (11, ("Clip",), _bounds_to_attributes),
    (11, ("Pad",), _pads_to_attribute),
    (11, ("Gemm",), _with_zero_bias),
    (11, (*_WITH_AXIS, *_WITH_AXES), _positive_axes),
    (10, ("Slice",), _slices_to_attributes),
)


def _without_count(node: ir.Node, editor: GraphEditor) -> bool:
    """Split(x){num_outputs} is Split(x), where the parts are of one length."""
    return "num_outputs" in node.attributes and _lengths_to_attribute(node, editor)


def _taken_input(node: ir.Node, at: int, what: str) -> Any:
    """Take a constant input off a node, and return its array; None where it has none."""
    value = optional_input(node, at)
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise refusal(node, f"{what} computed at run time")
    array = constant_array(value)
    node.replace_input_with(at, None)
    if at == len(node.inputs) - 1:
        node.resize_inputs(at)
    remove_if_unread(value)
    return array


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _rank(node: ir.Node, editor: GraphEditor) -> int:
    rank = editor.rank(_input(node))
    if rank is None:
        raise refusal(node, "the number of axes of its input is not known")
    return rank


def _new_node(
    editor: GraphEditor, node: ir.Node, op: str, inputs: Sequence[ir.Value], **attributes: Any
) -> ir.Node:
    """Insert a node before another, with an output of the shape of its first input."""
    made = ir.node(op, inputs, attributes, name=f"{node.name}_{op.lower()}")
    value = made.outputs[0]
    value.name = editor.new_name(f"{made.name}_output")
    value.type = inputs[0].type
    assert node.graph is not None
    node.graph.insert_before(node, made)
    return made


def _put_after(result: ir.Value, after: ir.Node, editor: GraphEditor) -> None:
    """Let the readers of `result` read the node after it, under the name that they know."""
    new = after.outputs[0]
    new.type, new.shape = result.type, result.shape
    result.replace_all_uses_with(new, replace_graph_outputs=True)
    after.replace_input_with(0, result)
    new.name, result.name = result.name, editor.new_name(f"{result.name}_rows")
    result.shape = None
