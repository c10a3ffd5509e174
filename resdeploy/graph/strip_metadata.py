"""Remove what an exporter writes about the machine it ran on.

Before:  nodes and values carry stack traces, source lines and paths of the build machine
After:   names, types and weights only

Node names become the names of the modules they came from (`layer1.0.conv1/Conv`), which is what the
stack trace was good for. The entries of the model itself (labels, preprocessing) are written later.
"""

import ast
from collections import Counter

import onnx_ir as ir

from resdeploy.schema.exports import PassReport

__all__ = ["strip_metadata"]

_SCOPES = "pkg.torch.onnx.name_scopes"


def strip_metadata(model: ir.Model) -> PassReport:
    """Name nodes by their modules and clear every comment and metadata entry, in place."""
    num_changed = 0
    taken: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        name = _module_of(node)
        if name is not None:
            taken[name] += 1
            node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        num_changed += _clear(node)
        for value in node.outputs:
            num_changed += _clear(value)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        num_changed += _clear(value)
    num_changed += _clear(model.graph) + _clear(model)
    return PassReport(name="strip_metadata", num_changed=num_changed)


def _module_of(node: ir.Node) -> str | None:
    """Return `path.of.module/Operator`, or None for a node that came from no module."""
    scopes = node.metadata_props.get(_SCOPES)
    if scopes is None:
        return None
    # The exporter writes a Python list: the modules from the root inwards, then the ATen node.
    *modules, _ = ast.literal_eval(scopes)
    path = modules[-1] if modules else ""
    if path.startswith("_empty_nn_module_stack"):
        return None
    return f"{path}/{node.op_type}" if path else node.op_type


def _clear(holder: ir.Node | ir.Value | ir.Graph | ir.Model) -> int:
    found = bool(holder.metadata_props) or bool(holder.doc_string)
    holder.metadata_props.clear()
    holder.doc_string = None
    return int(found)
