"""Remove nodes that compute nothing and are left by `simplify`.

Before:  y = Slice(x, whole axes)  |  Dropout(x, ratio, false)  |  Sum(x)
After:   x

Identity, Dropout without a mode, Cast to the same type, Transpose in the same order, Reshape to the
same shape, Pad by nothing, Mul by one and Add of zero are gone by then: onnxsim takes them, as it
folds constants.

Leaves a node as it is when
1. a Slice's bounds are computed at run time, or an axis is not whole: it starts at zero, steps by
   one and ends at the largest number there is, or at the length, where that is known;
2. a Dropout's mode is computed at run time, or it is training, or its mask is read;
3. both sides have a name that the model's users know: it lies between an input and an output.
"""

import numpy as np
import onnx_ir as ir

from resdeploy.graph.editor import (
    GraphEditor,
    constant_array,
    constant_ints,
    each_node,
    is_op,
    is_present,
    optional_input,
    remove_if_unread,
    why_it_varies,
)
from resdeploy.schema.exports import PassReport

__all__ = ["remove_no_ops"]

# Where exporters write "to the end", in 32 bits or in 64.
_END = np.iinfo(np.int32).max


def remove_no_ops(model: ir.Model) -> PassReport:
    """Remove each node that returns its first input, in place."""
    num_changed = sum(
        _removed(node) for node, editor in each_node(model) if _returns_its_input(node, editor)
    )
    return PassReport(name="remove_no_ops", num_changed=num_changed)


def _returns_its_input(node: ir.Node, editor: GraphEditor) -> bool:
    if is_op(node, "Slice") and len(node.inputs) > 2:
        return _cuts_nothing(node, editor)
    if is_op(node, "Dropout"):
        return _drops_nothing(node)
    return is_op(node, "Sum", "Max", "Min", "Mean") and len(node.inputs) == 1


def _cuts_nothing(node: ir.Node, editor: GraphEditor) -> bool:
    data, axes_input, steps_input = node.inputs[0], optional_input(node, 3), optional_input(node, 4)
    starts, ends = constant_ints(node.inputs[1]), constant_ints(node.inputs[2])
    if starts is None or ends is None or data is None:
        return False
    axes = list(range(len(starts))) if axes_input is None else constant_ints(axes_input)
    steps = [1] * len(starts) if steps_input is None else constant_ints(steps_input)
    if axes is None or steps is None:
        return False
    shape = editor.shape(data)

    def is_whole(axis: int, start: int, end: int, step: int) -> bool:
        length = shape[axis] if shape is not None else None
        reaches = end >= _END or (isinstance(length, int) and end >= length)
        return (start, step) == (0, 1) and reaches

    return all(map(is_whole, axes, starts, ends, steps))


def _drops_nothing(node: ir.Node) -> bool:
    if len(node.outputs) > 1 and is_present(node.outputs[1]):
        return False
    mode = optional_input(node, 2)
    return mode is None or (why_it_varies(mode) is None and not constant_array(mode).any())


def _removed(node: ir.Node) -> bool:
    """Remove a node, its output's readers reading its input; False where both have to stay."""
    source, result, graph = node.inputs[0], node.outputs[0], node.graph
    assert source is not None
    assert graph is not None
    if result.is_graph_output():
        if source.is_graph_output() or source.producer() is None or source.graph is not graph:
            return False
        source.name, result.name = result.name, source.name
    constants = [value for value in node.inputs[1:] if value is not None]
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for constant in constants:
        remove_if_unread(constant)
    return True
