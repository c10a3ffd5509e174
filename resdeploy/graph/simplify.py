"""Simplification by onnxsim: constants folded, unused nodes dropped.

Before:  Shape -> Gather -> Concat -> Reshape chains, constants computed at run time
After:   the layers of the network

Its own BatchNorm fold is switched off: it works in float32 and reports no refusals, and a site that
resdeploy refused must stay refused.

Weights that only Conv, ConvTranspose, Gemm and MatMul read are set aside meanwhile, as inputs of
the graph. onnxsim would multiply constants into them, in the type they are stored in; and it copies
a model several times: a ResNet-50 without its weights takes it 0.01 s instead of 0.85 s. So are
constants that wait in float64 for their rounding (`exact_constants`).
"""

from collections.abc import Mapping

import onnx_ir as ir

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import AFFINE_OPERATORS
from resdeploy.graph.editor import NOTES
from resdeploy.graph.exact_constants import is_exact
from resdeploy.schema.exports import PassReport

__all__ = ["simplify"]


def simplify(model: ir.Model) -> tuple[ir.Model, PassReport]:
    """Return the simplified model, a new one; `model` is used up.

    Raises:
        UnsupportedModelError: onnxsim rejects the graph.
    """
    # It imports torch and onnxruntime where they are installed, which this layer does without.
    import onnxsim  # noqa: PLC0415

    num_before = model.graph.num_nodes()
    notes = _notes_by_name(model.graph)
    weights = _set_weights_aside(model.graph)
    try:
        simplified, _ = onnxsim.simplify(ir.to_proto(model), skip_fuse_bn=True)
    except Exception as error:  # a C++ extension: its exceptions have no common base
        raise UnsupportedModelError(f"onnxsim cannot simplify the graph: {error}") from error
    result = ir.from_proto(simplified)
    _put_back(result.graph, weights)
    for node in result.graph.all_nodes():
        node.metadata_props.update(notes.get(node.name, notes.get(_weight_name(node), {})))
    num_removed = num_before - result.graph.num_nodes()
    return result, PassReport(name="simplify", num_changed=num_removed)


def _notes_by_name(graph: ir.Graph) -> dict[str | None, dict[str, str]]:
    """Return the notes of each node, which onnxsim drops, by its name and by that of its weight.

    A MatMul and an Add that become a Gemm lose their own names.
    """
    notes: dict[str | None, dict[str, str]] = {}
    for node in graph.all_nodes():
        kept = {key: node.metadata_props[key] for key in NOTES if key in node.metadata_props}
        weight = node.inputs[1] if _weight_name(node) else None
        if weight is not None and len(weight.uses()) == 1:
            notes[weight.name] = kept
        notes[node.name] = kept
    return notes


def _weight_name(node: ir.Node) -> str | None:
    weight = node.inputs[1] if node.op_type in AFFINE_OPERATORS else None
    return None if weight is None else weight.name


def _set_weights_aside(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Make an input of each weight that layers alone read; return their tensors by name."""
    taken = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        readers = {node.op_type for node, _ in value.uses()}
        is_weight = bool(readers) and readers <= AFFINE_OPERATORS and not value.is_graph_output()
        if tensor is None or not (is_weight or is_exact(value)):
            continue
        if value.is_graph_input():  # it may be fed another value: not ours to move
            continue
        taken[name] = tensor
        graph.initializers.pop(name)
        value.const_value = None
        value.dtype = value.dtype or tensor.dtype
        value.shape = ir.Shape(tensor.shape.numpy())
        graph.inputs.append(value)
    return taken


def _put_back(graph: ir.Graph, weights: Mapping[str, ir.TensorProtocol]) -> None:
    for value in [value for value in graph.inputs if value.name in weights]:
        graph.inputs.remove(value)
        if value.uses():
            assert value.name is not None
            value.const_value = weights[value.name]
            graph.initializers.add(value)
