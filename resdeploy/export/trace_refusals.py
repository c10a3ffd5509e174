"""Refuse a traced program that an ONNX graph would not compute.

torch's exporter writes every model as if in evaluation mode: it drops the statistics of the batch,
and the state that a call leaves behind. What tells them apart is in the program alone.

Refuses, by the name of the module,

1. a norm in training mode, in any spelling of ATen: it has running statistics and does not use
   them. (One that has none normalises by the batch in both modes, and is exported as it is);
2. dropout that is left on;
3. any other operator that draws random numbers;
4. an output that depends on a buffer or parameter which each call changes. (One that is only
   written, such as a counter, has no part in what is computed);
5. complex numbers, which ONNX has no operators for;
6. an output that is no tensor. (None is no output.)
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import OutputKind

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.inner_graphs import each_graph

__all__ = ["call_arguments", "module_path", "operator_name", "refuse_what_onnx_would_drop"]

_EVAL = "call eval() on the module, and on what it holds, before it is handed over"


def refuse_what_onnx_would_drop(program: torch.export.ExportedProgram) -> None:
    """Raise if the program does what its translation to ONNX would not.

    Args:
        program: functional.

    Raises:
        UnsupportedModelError: naming the module, and the way out.
    """
    for module in each_graph(program.graph_module):
        for node in module.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.is_complex():  # 5
                raise UnsupportedModelError(
                    f"The model computes with complex numbers (`{node.name}`).",
                    where=_where(node),
                    fix="compute with real and imaginary parts",
                )
            if node.op == "call_function":
                _check_call(node)
    _check_outputs(program)  # 6
    _check_buffers(program)  # 4; the statistics of a norm in training mode are such, too


def _check_call(node: fx.Node) -> None:
    name, given = operator_name(node), call_arguments(node)
    in_training = bool(given.get("training", given.get("train", "_with_update" in name)))
    if "batch_norm" in name and in_training and given.get("running_mean") is not None:  # 1
        raise UnsupportedModelError(
            "A BatchNorm normalises by the statistics of the batch (it is in training mode).",
            where=_where(node),
            fix=_EVAL,
        )
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return
    drops = given.get("dropout_p", given.get("dropout"))  # of attention, of recurrent layers
    is_off = not in_training if "train" in given or "training" in given else drops == 0
    if is_off or drops == 0:
        return
    if "dropout" in name or drops is not None:  # 2
        raise UnsupportedModelError("A dropout is left on.", where=_where(node), fix=_EVAL)
    raise UnsupportedModelError(  # 3
        f"The model draws random numbers ({name}), so no two runs agree.",
        where=_where(node),
        fix="pass the numbers in as an input, or leave them out in evaluation mode",
    )


def _check_outputs(program: torch.export.ExportedProgram) -> None:
    outputs: Any = program.graph.output_node().args[0]
    for node in outputs:
        value = node.meta.get("val") if isinstance(node, fx.Node) else node
        if not isinstance(value, torch.Tensor) and value is not None:
            raise UnsupportedModelError(
                f"The model returns a value of type {type(value).__name__}, not a tensor.",
                where=_where(node) if isinstance(node, fx.Node) else repr(value),
                fix="return tensors only, in dicts, lists, tuples or named tuples",
            )


def _check_buffers(program: torch.export.ExportedProgram) -> None:
    signature = program.graph_signature
    changed = {s.target for s in signature.output_specs if s.kind is not OutputKind.USER_OUTPUT}
    if not changed:
        return
    outputs: Any = program.graph.output_node().args[0]
    waiting = [
        node
        for node, spec in zip(outputs, signature.output_specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(node, fx.Node)
    ]
    tensors = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
    needed: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    for node in program.graph.nodes:
        name = tensors.get(node.name)
        if node in needed and name in changed:
            raise UnsupportedModelError(
                f"The outputs depend on `{name}`, which each call changes.",
                where=str(name).rpartition(".")[0] or str(name),
                fix=f"{_EVAL}; keep what changes out of the forward pass",
            )


def call_arguments(node: fx.Node) -> Mapping[str, Any]:
    """Return the arguments of a call by the names in its schema, with their defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.kwargs
    given = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    given |= {a.name: value for a, value in zip(schema.arguments, node.args, strict=False)}
    return {**given, **node.kwargs}


def operator_name(node: fx.Node) -> str:
    """Return the name of the operator a node calls, without its overload, such as "conv2d"."""
    schema = getattr(node.target, "_schema", None)
    return (
        str(getattr(node.target, "__name__", node.target))
        if schema is None
        else str(schema.name).removeprefix("aten::")
    )


def module_path(node: fx.Node) -> str:
    """Return the dotted name of the innermost module a node came from, "" for the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    return str(path)


def _where(node: fx.Node) -> str:
    return module_path(node) or node.name
