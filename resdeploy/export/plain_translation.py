"""A traced program of a ResNet's operators written as ONNX, one node for each.

torch's exporter traces a program a second time, and looks through five hundred translations, before
it writes a node: most of its time, for operators that ONNX has under other names. A program with
any other operator, type or argument is that exporter's, whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx
from torch.export.graph_signature import InputKind, OutputKind

from resdeploy.export.trace_refusals import call_arguments, module_path
from resdeploy.graph.strip_metadata import FX_NODE, SCOPES

__all__ = ["plain_model"]

_IR_VERSION = 10  # as torch's exporter
_TYPES = {torch.float32: ir.DataType.FLOAT, torch.float64: ir.DataType.DOUBLE}

# The operator, its inputs by their names in ATen, and its attributes.
_Call = tuple[str, Sequence[str], dict[str, Any]]


def plain_model(program: torch.export.ExportedProgram, *, opset: int) -> ir.Model | None:
    """Return a functional program as ONNX, or None if it holds anything that is not known here.

    Args:
        program: as `trace` returns it.
        opset: to write it in, at least 18.
    """
    signature = program.graph_signature
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in signature.output_specs):
        return None
    tensors = {**program.state_dict, **program.constants}
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    values: dict[fx.Node, ir.Value] = {}
    inputs, initializers, nodes = [], [], []
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        is_input = node.op == "placeholder" and specs[node.name].kind is InputKind.USER_INPUT
        if not node.users and not is_input:  # a counter of batches
            continue
        value = _value(node)
        if value is None:
            return None
        values[node] = value
        if is_input:
            inputs.append(value)
        elif node.op == "placeholder":
            value.name = specs[node.name].target
            value.const_value = ir.tensor(tensors[value.name].detach().numpy(), name=value.name)
            initializers.append(value)
        elif (call := _call(node)) is not None:
            nodes.append(_node(node, call, values))
        else:
            return None
    results = program.graph.output_node().args[0]
    outputs = [values[node] for node in results if node in values and node.op == "call_function"]
    is_whole = len({*outputs}) == len(results)
    is_unique = len({value.name for value in values.values()}) == len(values)
    if not (is_whole and is_unique and len({value.dtype for value in values.values()}) == 1):
        return None
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": opset},
        name="main_graph",
    )
    return ir.Model(graph, ir_version=_IR_VERSION)


def _value(node: fx.Node) -> ir.Value | None:
    """Return the value that a node computes, if it is one tensor of a known type."""
    tensor = node.meta.get("val")
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _TYPES:
        return None
    shape = ir.Shape([d if isinstance(d, int) else str(d) for d in tensor.shape])
    return ir.Value(name=node.name, type=ir.TensorType(_TYPES[tensor.dtype]), shape=shape)


def _node(node: fx.Node, call: _Call, values: Mapping[fx.Node, ir.Value]) -> ir.Node:
    op_type, names, attributes = call
    given = call_arguments(node)
    written = ir.node(
        op_type,
        [values[given[name]] for name in names if given[name] is not None],
        attributes=attributes,
        outputs=[values[node]],
        name=f"node_{node.name}",
    )
    # As torch's exporter notes them.
    written.metadata_props[SCOPES] = repr([module_path(node), node.name])
    written.metadata_props[FX_NODE] = str(node.format_node())
    return written


def _call(node: fx.Node) -> _Call | None:
    """Return the ONNX operator of an ATen call, None if it has no plain form."""
    given = call_arguments(node)
    call: _Call
    match str(node.target):
        case "aten.conv2d.default":
            attributes = {
                "kernel_shape": [*given["weight"].meta["val"].shape[2:]],
                **_windows(given),
                "group": given["groups"],
            }
            call = "Conv", ("input", "weight", "bias"), attributes
            is_plain = _rank(given["input"]) == 4
        case "aten.batch_norm.default":
            names = ("input", "weight", "bias", "running_mean", "running_var")
            call = "BatchNormalization", names, {"epsilon": given["eps"]}
            is_plain = not given["training"] and all(given[name] is not None for name in names)
        case "aten.relu.default":
            call, is_plain = ("Relu", ("self",), {}), True
        case "aten.add.Tensor":
            call = "Add", ("self", "other"), {}
            is_plain = isinstance(given["other"], fx.Node) and given["alpha"] == 1
        case "aten.max_pool2d.default":
            sides = _pair(given["kernel_size"])
            given = {**given, "stride": given["stride"] or sides}
            call = "MaxPool", ("self",), {"kernel_shape": sides, **_windows(given)}
            is_plain = _rank(given["self"]) == 4 and not given["ceil_mode"]
        case "aten.adaptive_avg_pool2d.default":
            call = "GlobalAveragePool", ("self",), {}
            is_plain = _rank(given["self"]) == 4 and _pair(given["output_size"]) == [1, 1]
        case "aten.flatten.using_ints":
            last = _rank(given["self"]) - 1
            call = "Flatten", ("self",), {"axis": 1}
            is_plain = given["start_dim"] == 1 and given["end_dim"] in (-1, last)
        case "aten.linear.default":
            call = "Gemm", ("input", "weight", "bias"), {"transB": 1}
            is_plain = _rank(given["input"]) == _rank(given["weight"]) == 2
        case _:
            return None
    return call if is_plain else None


def _windows(given: Mapping[str, Any]) -> dict[str, list[int]]:
    return {
        "strides": _pair(given["stride"]),
        "pads": _pair(given["padding"]) * 2,
        "dilations": _pair(given["dilation"]),
    }


def _pair(sizes: int | Sequence[int]) -> list[int]:
    return [sizes] * 2 if isinstance(sizes, int) else [*sizes] * (2 // len(sizes))


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].ndim)
