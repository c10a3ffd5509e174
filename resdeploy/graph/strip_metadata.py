"""Remove an exporter's notes about its machine.

Before:  nodes and values carry stack traces, source lines and paths of the build machine
After:   names, types and weights only

Node names become the names of the modules they came from (`layer1.0.conv1/Conv`), the use of the
stack trace. Two notes are kept for the fold on request: that name, and the epsilon of a
BatchNormalization to its last bit. The entries of the model itself (labels, preprocessing) are
written later.
"""

import ast
import re
from collections import Counter

import onnx_ir as ir

from resdeploy.graph.editor import EPSILON_NOTE, PATH_NOTE, is_op
from resdeploy.schema.exports import PassReport

__all__ = ["FX_NODE", "SCOPES", "strip_metadata"]

SCOPES = "pkg.torch.onnx.name_scopes"
# The call as fx prints it; epsilon is the last number among its arguments.
FX_NODE = "pkg.torch.onnx.fx_node"
_LAST_NUMBER = re.compile(r", ([0-9.e+-]+)(?:, (?:True|False))?\), kwargs = \{\}\)$")


def strip_metadata(model: ir.Model, *, keep_notes: bool = False) -> PassReport:
    """Name nodes by their modules and clear every comment and metadata entry, in place.

    Args:
        model: to be changed.
        keep_notes: leave the notes that `graph.editor` lists with the nodes.
    """
    num_changed = 0
    taken: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        path = _module_of(node)
        notes = {} if path is None else {PATH_NOTE: path, **_epsilon_note(node)}
        if path is not None:
            name = f"{path}/{node.op_type}" if path else node.op_type
            taken[name] += 1
            node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        num_changed += _clear(node)
        if keep_notes:
            node.metadata_props.update(notes)
        for value in node.outputs:
            num_changed += _clear(value)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        num_changed += _clear(value)
    num_changed += _clear(model.graph) + _clear(model)
    return PassReport(name="strip_metadata", num_changed=num_changed)


def _module_of(node: ir.Node) -> str | None:
    """Return the path of the module a node came from, "" for the root; None if from none."""
    scopes = node.metadata_props.get(SCOPES)
    if scopes is None:
        return None
    # The exporter writes a Python list: the modules from the root inwards, then the ATen node.
    *modules, _ = ast.literal_eval(scopes)
    path = str(modules[-1]) if modules else ""
    return None if path.startswith("_empty_nn_module_stack") else path


def _epsilon_note(node: ir.Node) -> dict[str, str]:
    if not is_op(node, "BatchNormalization"):
        return {}
    found = _LAST_NUMBER.search(node.metadata_props.get(FX_NODE, ""))
    return {EPSILON_NOTE: found[1]} if found else {}


def _clear(holder: ir.Node | ir.Value | ir.Graph | ir.Model) -> int:
    found = bool(holder.metadata_props) or bool(holder.doc_string)
    holder.metadata_props.clear()
    holder.doc_string = None
    return int(found)
