"""Write a value split into a sequence, of which each part is read by its place, as Split.

Before:  parts = SplitToSequence(x, lengths);  a = SequenceAt(parts, 0);  b = SequenceAt(parts, 1)
After:   a, b = Split(x, lengths)

torch's exporter writes `chunk` and `split` as the former, which runtimes run on the CPU, by copies,
and which says nothing of the shapes of the parts.

Leaves a SplitToSequence as it is when
1. its lengths are computed at run time, or are one length for parts of an axis of unknown length;
2. the sequence has another reader than SequenceAt at a known place, or its parts lose their axis.
"""

import numpy as np
import onnx_ir as ir

from resdeploy.graph.editor import (
    GraphEditor,
    constant_array,
    constant_ints,
    each_node,
    int_attribute,
    is_op,
    optional_input,
    remove_if_unread,
    take_place_of,
    why_it_varies,
)
from resdeploy.schema.exports import PassReport

__all__ = ["replace_split_sequence"]


def replace_split_sequence(model: ir.Model) -> PassReport:
    """Replace each such sequence, in place."""
    num_changed = 0
    for node, editor in each_node(model):
        lengths = _lengths(node, editor) if is_op(node, "SplitToSequence") else None
        if lengths is not None and _is_read_by_places(node, len(lengths)):
            _rewrite(node, lengths, editor)
            num_changed += 1
    return PassReport(name="replace_split_sequence", num_changed=num_changed)


def _lengths(node: ir.Node, editor: GraphEditor) -> list[int] | None:
    """Return the lengths of the parts, None if they are not known or lose their axis."""
    source, split = node.inputs[0], optional_input(node, 1)
    if source is None or split is None or why_it_varies(split) is not None:  # 1, 2
        return None
    numbers = [int(number) for number in np.ravel(constant_array(split))]
    if constant_array(split).ndim:
        return numbers
    shape = editor.shape(source)
    whole = None if shape is None else shape[int_attribute(node, "axis", 0)]
    if not isinstance(whole, int) or numbers[0] <= 0:  # 1
        return None
    return [min(numbers[0], whole - start) for start in range(0, whole, numbers[0])]


def _is_read_by_places(node: ir.Node, count: int) -> bool:  # 2
    sequence, places = node.outputs[0], []
    for reader, at in sequence.uses():
        place = constant_ints(reader.inputs[1]) if is_op(reader, "SequenceAt") else None
        known = at == 0 and place is not None and -count <= place[0] < count
        if place is None or not known or reader.graph is not node.graph:
            return False
        places.append(place[0] % count)
    return len(places) == len(set(places)) and not sequence.is_graph_output()


def _rewrite(node: ir.Node, lengths: list[int], editor: GraphEditor) -> None:
    source, graph = node.inputs[0], node.graph
    assert graph is not None
    assert source is not None
    stated = editor.add("split.lengths", ir.tensor(np.array(lengths, np.int64)), reader=node)
    axis = {"axis": int_attribute(node, "axis", 0)}
    split = ir.node("Split", [source, stated], axis, num_outputs=len(lengths), name=node.name)
    split.metadata_props.update(node.metadata_props)
    graph.insert_before(node, split)
    for part in split.outputs:
        part.name, part.type = editor.new_name("split.part"), source.type
    constants = [node.inputs[1]]
    for reader, _ in list(node.outputs[0].uses()):
        place = constant_ints(reader.inputs[1])
        assert place is not None
        constants.append(reader.inputs[1])
        take_place_of(reader.outputs[0], split.outputs[place[0]])
        graph.remove(reader, safe=True)
    graph.remove(node, safe=True)
    for constant in constants:
        if constant is not None:
            remove_if_unread(constant)
