"""Graphs gone wrong: paddings, activations, shortcuts, inputs and outputs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resdeploy.verify.faults.fault_model import Array, Edit, Fault, Workpiece

__all__ = ["FAULTS"]


def _attribute(
    operators: tuple[str, ...], name: str, value: Callable[[onnx.NodeProto], Any], work: Workpiece
) -> onnx.ModelProto | None:
    edit = Edit(work.model)
    node = edit.first(*operators)
    new = None if node is None else value(node)
    if node is None or new is None:
        return None
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, new)])
    return edit.model


def _pads_moved(node: onnx.NodeProto) -> list[int] | None:
    """Return pads with all of each axis' padding at its end: the output keeps its size."""
    pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [])
    half = len(pads) // 2
    moved = [0] * half + [a + b for a, b in zip(pads[:half], pads[half:], strict=True)]
    return moved if any(pads) else None


def _ceil_mode(node: onnx.NodeProto) -> int | None:
    return 1 if node.op_type in ("MaxPool", "AveragePool") else None


def _removed(operator: str, work: Workpiece) -> onnx.ModelProto | None:
    """Let the readers of a node read its first input."""
    edit = Edit(work.model)
    node = edit.first(operator)
    if node is None or node.output[0] in {value.name for value in edit.graph.output}:
        return None
    edit.redirect(node.output[0], node.input[0])
    edit.graph.node.remove(node)
    return edit.model


def _leaky(work: Workpiece) -> onnx.ModelProto | None:
    edit = Edit(work.model)
    node = edit.first("Relu")
    if node is None:
        return None
    node.op_type = "LeakyRelu"
    return edit.model


def _before_input(nodes: Callable[[str, str], list[onnx.NodeProto]], work: Workpiece) -> Any:
    """Put nodes between the model's input and its readers."""
    edit = Edit(work.model)
    name = edit.graph.input[0].name
    edit.redirect(name, "fault_input")
    for node in reversed(nodes(name, "fault_input")):
        edit.graph.node.insert(0, node)
    return edit.model


def _constant(name: str, array: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def _input_shifted(work: Workpiece) -> Any:
    # 0.480 for 0.485 of ImageNet's red, in units of its deviation 0.229.
    shift = np.asarray(0.005 / 0.229, np.float32)
    return _before_input(
        lambda x, y: [
            _constant("fault_shift", shift),
            helper.make_node("Add", [x, "fault_shift"], [y]),
        ],
        work,
    )


def _input_not_normalised(work: Workpiece) -> Any:
    scale, mean = (np.asarray(value, np.float32) for value in (0.229, 0.485))
    return _before_input(
        lambda x, y: [
            *(_constant("fault_std", scale), _constant("fault_mean", mean)),
            helper.make_node("Mul", [x, "fault_std"], ["fault_scaled"]),
            helper.make_node("Add", ["fault_scaled", "fault_mean"], [y]),
        ],
        work,
    )


def _channels_reversed(work: Workpiece) -> Any:
    shape = work.input_shape
    if len(shape) != 4 or shape[1] < 2:
        return None
    order = np.arange(shape[1])[::-1].copy()
    return _before_input(
        lambda x, y: [
            _constant("fault_order", order),
            helper.make_node("Gather", [x, "fault_order"], [y], axis=1),
        ],
        work,
    )


def _image_transposed(work: Workpiece) -> Any:
    shape = work.input_shape
    if len(shape) != 4 or shape[2] != shape[3]:
        return None
    return _before_input(
        lambda x, y: [helper.make_node("Transpose", [x], [y], perm=[0, 1, 3, 2])], work
    )


def _classes_swapped(work: Workpiece) -> onnx.ModelProto | None:
    edit = Edit(work.model)
    last = list(edit.affine_nodes())[-1]
    if last.op_type != "Gemm" or len(last.input) < 3:
        return None
    bias = edit.array(last.input[2])
    order = np.arange(len(bias))
    order[[0, 1]] = order[[1, 0]]
    edit.set_weight(last, edit.weight(last)[order])
    edit.set(last.input[2], bias[order])
    return edit.model


def _softmax_added(work: Workpiece) -> onnx.ModelProto | None:
    edit = Edit(work.model)
    name = edit.graph.output[0].name
    for node in edit.graph.node:
        for k, written in enumerate(node.output):
            if written == name:
                node.output[k] = "fault_logits"
    edit.graph.node.append(helper.make_node("Softmax", ["fault_logits"], [name], axis=-1))
    return edit.model


FAULTS: tuple[Fault, ...] = (
    Fault(
        name="a convolution's padding off by one",
        plant=partial(_attribute, ("Conv",), "pads", _pads_moved),
    ),
    Fault(
        name="max pooling's padding off by one",
        plant=partial(_attribute, ("MaxPool",), "pads", _pads_moved),
    ),
    Fault(
        name="a pooling window rounded up",
        plant=partial(_attribute, ("MaxPool", "AveragePool"), "ceil_mode", _ceil_mode),
    ),
    Fault(name="a ReLU missing", plant=partial(_removed, "Relu")),
    Fault(name="a ReLU made leaky", plant=_leaky),
    Fault(name="a shortcut missing", plant=partial(_removed, "Add")),
    Fault(name="input: mean 0.480 for 0.485", plant=_input_shifted),
    Fault(name="input: not normalised", plant=_input_not_normalised),
    Fault(name="input: BGR for RGB", plant=_channels_reversed),
    Fault(name="input: rows and columns exchanged", plant=_image_transposed),
    Fault(name="output: two classes swapped", plant=_classes_swapped),
    Fault(name="output: softmax applied", plant=_softmax_added),
)
