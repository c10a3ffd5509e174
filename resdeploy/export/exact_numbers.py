"""Numbers of a forward pass, such as 0.1 * x, recovered where ONNX rounds them to float32.

PyTorch computes with a Python number in the type of the tensor beside it: in float64, of a module
in float64. The exporter writes it as a constant, or as an attribute, which ONNX holds in float32. A
rounded number is taken for the number of the traced program that rounds to it, or else for the
shortest decimal that does; that it was this one is shown by the graph's outputs, which must be the
module's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from resdeploy.export.trace_refusals import call_arguments

__all__ = ["python_numbers", "recover_numbers"]

# In the definitions of hard sigmoid, SELU and GELU.
_DEFINED = (1 / 6, 1.6732632423543772, 1.0507009873554805, 0.044715, 0.5**0.5, (2 / np.pi) ** 0.5)
# The numbers that ONNX's operators have where none is stated, which torch's definitions share.
_SELU = {"alpha": _DEFINED[1], "gamma": _DEFINED[2]}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def python_numbers(program: torch.export.ExportedProgram) -> frozenset[float]:
    """Return the floats among the arguments of a traced program, defaults among them."""
    calls = (node for node in program.graph.nodes if node.op == "call_function")
    return frozenset(n for call in calls for n in _floats(call_arguments(call).values()))


def recover_numbers(model: ir.Model, numbers: frozenset[float]) -> None:
    """Write the rounded numbers of a graph in float64 as they were, in place.

    Constants get their value back. An operator with such an attribute is written out in operators
    that take constants.
    """
    exact = {float(np.float32(n)): n for n in (*numbers, *_DEFINED)}

    def recovered(value: float) -> float:
        if float(np.float32(value)) != value:
            return value
        return exact.get(value) or float(str(np.float32(value)))

    for node in list(model.graph):
        if node.op_type == "Constant" and not node.domain:
            _recover_constant(node, recovered)
        elif node.op_type in _WRITTEN_OUT and not node.domain:
            stated = {a.name: recovered(a.as_float()) for a in node.attributes.values()}
            graph = _Written(model.graph, node)
            operand = node.inputs[0]
            assert operand is not None
            last = _WRITTEN_OUT[node.op_type](graph, operand, stated)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], graph.nodes, node.outputs, [last]
            )


def _floats(values: Iterable[Any]) -> Iterator[float]:
    for value in values:
        if isinstance(value, float):
            yield value
        elif isinstance(value, list | tuple):
            yield from _floats(value)


def _recover_constant(node: ir.Node, recovered: Callable[[float], float]) -> None:
    if (stated := node.attributes.get("value_float")) is not None:
        value, shape = recovered(stated.as_float()), ()
        del node.attributes["value_float"]
    elif (stated := node.attributes.get("value")) is not None:
        tensor = stated.as_tensor()
        if tensor.dtype not in _FLOATS or tensor.size != 1:
            return
        value = recovered(float(tensor.numpy().item()))
        shape = tuple(tensor.numpy().shape)
    else:
        return
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.full(shape, value)))
    node.outputs[0].dtype = ir.DataType.DOUBLE


class _Written:
    """Collects the nodes that one operator is written out in."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.nodes: list[ir.Node] = []
        self._name = node.name or node.outputs[0].name
        self._metadata = node.metadata_props

    def __call__(self, op_type: str, *operands: ir.Value | float | None) -> ir.Value:
        inputs = [self._constant(v) if isinstance(v, float) else v for v in operands]
        self._add(ir.node(op_type, inputs, name=f"{self._name}.{len(self.nodes)}"))
        return self.nodes[-1].outputs[0]

    def _constant(self, value: float) -> ir.Value:
        attributes = {"value": ir.tensor(np.float64(value))}
        self._add(ir.node("Constant", [], attributes=attributes))
        return self.nodes[-1].outputs[0]

    def _add(self, node: ir.Node) -> None:
        node.metadata_props.update(self._metadata)
        node.outputs[0].dtype = ir.DataType.DOUBLE
        self.nodes.append(node)


def _elu(graph: _Written, x: ir.Value, stated: Mapping[str, float]) -> ir.Value:
    """max(x, 0) + alpha (exp(min(x, 0)) - 1)."""
    bent = graph("Sub", graph("Exp", graph("Min", x, 0.0)), 1.0)
    return graph("Add", graph("Relu", x), graph("Mul", bent, stated.get("alpha", 1.0)))


def _selu(graph: _Written, x: ir.Value, stated: Mapping[str, float]) -> ir.Value:
    stated = {**_SELU, **stated}
    return graph("Mul", _elu(graph, x, stated), stated["gamma"])


def _celu(graph: _Written, x: ir.Value, stated: Mapping[str, float]) -> ir.Value:
    """max(x, 0) + alpha (exp(min(x, 0) / alpha) - 1)."""
    alpha = stated.get("alpha", 1.0)
    bent = graph("Exp", graph("Div", graph("Min", x, 0.0), alpha))
    return graph("Add", graph("Relu", x), graph("Mul", graph("Sub", bent, 1.0), alpha))


def _hard_sigmoid(graph: _Written, x: ir.Value, stated: Mapping[str, float]) -> ir.Value:
    """Return alpha clip(x + beta / alpha, 0, 1 / alpha): a factor in front would fold away."""
    alpha, beta = stated.get("alpha", 0.2), stated.get("beta", 0.5)
    return graph("Mul", graph("Clip", graph("Add", x, beta / alpha), 0.0, 1 / alpha), alpha)


def _leaky_relu(graph: _Written, x: ir.Value, stated: Mapping[str, float]) -> ir.Value:
    return graph("PRelu", x, stated.get("alpha", 0.01))


_WRITTEN_OUT: Mapping[str, Callable[[_Written, ir.Value, Mapping[str, float]], ir.Value]] = {
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
}
