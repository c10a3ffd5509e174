"""An interpreter of exported programs, each call with a meaning of the caller's."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind, OutputKind

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.aten_layers import describe

__all__ = ["Call", "GraphWalker", "output_nodes"]

Call = Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Any]


def output_nodes(program: torch.export.ExportedProgram) -> list[fx.Node]:
    """Return the nodes that compute the model's outputs, in their order."""
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    outputs: Any = program.graph.output_node().args[0]
    return [
        node
        for node, kind in zip(outputs, kinds, strict=True)
        if kind is OutputKind.USER_OUTPUT and isinstance(node, fx.Node)
    ]


class GraphWalker:
    """The interpreter of a functional exported program, over values of the caller's kind.

    Constants (parameters, and all computed from them alone) are computed once, as the graph says;
    every other call is the caller's. A value is dropped after its last use.

    Args:
        program: the model.
        outputs: nodes to compute the values of, and no more than they need; by default the model's
            outputs of floating-point numbers.
    """

    def __init__(
        self, program: torch.export.ExportedProgram, outputs: Sequence[fx.Node] | None = None
    ) -> None:
        self._nodes = list(program.graph_module.graph.nodes)
        tensors: dict[str, Any] = {**program.state_dict, **program.constants}
        signature = program.graph_signature
        specs = {spec.arg.name: spec for spec in signature.input_specs}
        self._inputs: list[fx.Node] = []
        self.constants: dict[fx.Node, Any] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                spec = specs[node.name]
                if spec.kind is InputKind.USER_INPUT:
                    self._inputs.append(node)
                else:
                    self.constants[node] = tensors[str(spec.target)].detach()
            elif node.op == "call_function":
                if all(source in self.constants for source in node.all_input_nodes):
                    self.constants[node] = _evaluate(node, self.constants)
            elif node.op != "output":
                raise UnsupportedModelError(
                    "The graph calls another graph, which is not looked into.", where=describe(node)
                )
        if outputs is None:
            outputs = [n for n in output_nodes(program) if n.meta["val"].is_floating_point()]
        self._outputs = outputs
        needed = {*outputs}
        for node in reversed(self._nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        self._nodes = [node for node in self._nodes if node in needed]
        self._last_reader: dict[fx.Node, list[fx.Node]] = {}
        last = {source: node for node in self._nodes for source in node.all_input_nodes}
        for source, reader in last.items():
            if source not in self._outputs:
                self._last_reader.setdefault(reader, []).append(source)

    def run(self, inputs: Sequence[Any], call: Call) -> list[Any]:
        """Return the values of the model's outputs for values of its inputs."""
        values: dict[fx.Node, Any] = dict(zip(self._inputs, inputs, strict=True))

        def value(node: fx.Node) -> Any:
            return self.constants[node] if node in self.constants else values[node]

        for node in self._nodes:
            if node.op != "call_function" or node in self.constants:
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
            values[node] = (
                args[0][args[1]]
                if node.target is operator.getitem
                else call(node, tuple(args), dict(kwargs))
            )
            for source in self._last_reader.get(node, ()):
                values.pop(source, None)
        return [value(node) for node in self._outputs]


def _evaluate(node: fx.Node, constants: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), constants.__getitem__)
    target: Any = node.target
    with torch.no_grad():
        return target(*args, **kwargs)
