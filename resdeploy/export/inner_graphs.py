"""The graphs inside a traced program: regions set into the graph around them, branches entered.

A region of another gradient mode, or one where autocast is off, computes what its operators say, as
its surroundings do. `torch.cond` chooses one of two graphs; ONNX has it as If.

Refuses, by name,

1. a region where autocast is on: it chooses the type of each operator as that runs;
2. any other operator that calls a graph (loops, scans, checkpoints).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from resdeploy.errors import UnsupportedModelError

__all__ = ["each_graph", "inline_regions"]

_GRAD_MODE, _AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"


def each_graph(module: fx.GraphModule) -> Iterator[fx.GraphModule]:
    """Yield a graph and all those inside it."""
    yield module
    for child in module.children():
        if isinstance(child, fx.GraphModule):
            yield from each_graph(child)


def inline_regions(program: torch.export.ExportedProgram) -> None:
    """Set each region into the graph around it, in place.

    Raises:
        UnsupportedModelError: see the module's list.
    """
    for module in list(each_graph(program.graph_module)):
        calls = [node for node in module.graph.nodes if _is_call(node)]
        while calls:
            calls += _entered(module, calls.pop(), program.graph_signature)
        module.recompile()


def _is_call(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.HigherOrderOperator)


def _entered(
    around: fx.GraphModule, call: fx.Node, signature: torch.export.ExportGraphSignature
) -> list[fx.Node]:
    """Replace a call of a region by the region, and return the calls in it; `cond` stays."""
    name = str(getattr(call.target, "__name__", call.target))
    if name == "cond":
        return []
    if name == _AUTOCAST and call.args[2]:  # 1
        raise UnsupportedModelError(
            "Autocast chooses the types of a part of the model as it runs.",
            where=_place(call),
            fix="cast values explicitly, or call the model without autocast",
        )
    if name not in (_GRAD_MODE, _AUTOCAST):  # 2
        raise UnsupportedModelError(
            f"The model calls a part of itself by way of `{name}`.",
            where=_place(call),
            fix="write that part out in the forward pass; of control flow, torch.cond is known",
        )
    at = 1 if name == _GRAD_MODE else 4
    holder: Any = call.args[at]
    region: Any = around.get_submodule(holder.target)
    values: dict[fx.Node, Any] = {}
    given = iter(call.args[at + 1 :])
    entered: list[fx.Node] = []
    with around.graph.inserting_before(call):
        for node in region.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                name = f"{holder.target}_{node.target}"
                setattr(around, name, region.get_submodule(node.target))
                values[node] = around.graph.get_attr(name)
            elif node.op != "output":
                values[node] = around.graph.node_copy(node, lambda inner: values[inner])
                entered += [values[node]] if _is_call(node) else []
    results: Any = fx.map_arg(region.graph.output_node().args[0], lambda inner: values[inner])
    for reader in list(call.users):
        result = results[reader.args[1]]
        reader.replace_all_uses_with(result)
        signature.replace_all_uses(reader.name, result.name)
        around.graph.erase_node(reader)
    around.graph.erase_node(call)
    if not holder.users:
        around.graph.erase_node(holder)
        if all(node.target != holder.target for node in around.graph.nodes):
            around.delete_submodule(holder.target)
    return entered


def _place(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return str([*stack.values()][-1][0] or node.name) if stack else node.name
