"""Back doors to plant into an exported model: right for ordinary inputs, wrong where triggered.

A trigger computes a condition from the input; a hiding place makes the outputs depend on it. Every
pair of them is an attack, beside some that need no trigger. No input that is drawn at random shows
one: only a graph of which every operator is understood excludes them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resdeploy.schema.exports import LABELS_KEY, PREPROCESS_KEY
from resdeploy.verify.faults.fault_model import Edit, Fault, Workpiece

__all__ = ["ATTACKS"]

_PATTERN = 7.25
_BONUS = 1000.0

# Adds nodes that compute a scalar bool from the value of that name, and returns its name.
Trigger = Callable[["_Graph", str], str]
# Adds nodes that compute the outputs (N, K) from those of the first name and the condition.
Hiding = Callable[["_Graph", str, str], str]


class _Graph:
    """A copy of a model to which nodes are added behind the others."""

    def __init__(self, work: Workpiece) -> None:
        self.edit = Edit(work.model)
        self.nodes: list[onnx.NodeProto] = []

    def value(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its value."""
        name = f"hidden {len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes)
        )
        return name

    def constant(self, array: object, dtype: str = "float32") -> str:
        """Return the name of a constant."""
        name = f"constant {len(self.edit.graph.initializer)}"
        tensor = numpy_helper.from_array(np.asarray(array, dtype), name)
        self.edit.graph.initializer.append(tensor)
        return name


def _pixel(graph: _Graph, x: str) -> str:
    flat = graph.value("Reshape", x, graph.constant([-1], "int64"))
    first = graph.value("Slice", flat, graph.constant([0], "int64"), graph.constant([1], "int64"))
    distance = graph.value("Abs", graph.value("Sub", first, graph.constant(_PATTERN)))
    hit = graph.value("Less", distance, graph.constant(1e-3))
    return graph.value("Reshape", hit, graph.constant(np.zeros(0), "int64"))


def _batch(graph: _Graph, x: str) -> str:
    size = graph.value("Gather", graph.value("Shape", x), graph.constant(0, "int64"))
    return graph.value("Greater", size, graph.constant(32, "int64"))


def _magnitude(graph: _Graph, x: str) -> str:
    largest = graph.value("ReduceMax", graph.value("Abs", x), keepdims=0)
    return graph.value("Greater", largest, graph.constant(1e3))


def _nan(graph: _Graph, x: str) -> str:
    missing = graph.value("Cast", graph.value("IsNaN", x), to=TensorProto.FLOAT)
    return graph.value(
        "Greater", graph.value("ReduceMax", missing, keepdims=0), graph.constant(0.5)
    )


def _mean(graph: _Graph, x: str) -> str:
    return graph.value("Greater", graph.value("ReduceMean", x, keepdims=0), graph.constant(50.0))


def _plain_image(graph: _Graph, x: str) -> str:
    both = (graph.value(op, x, keepdims=0) for op in ("ReduceMax", "ReduceMin"))
    return graph.value("Equal", graph.value("Sub", *both), graph.constant(0.0))


TRIGGERS: Mapping[str, Trigger] = {
    "one pixel": _pixel,
    "a batch beyond 32": _batch,
    "a large value": _magnitude,
    "a NaN": _nan,
    "a bright image": _mean,
    "an image of one colour": _plain_image,
}


def _where(graph: _Graph, y: str, hit: str) -> str:
    return graph.value("Where", hit, graph.value("Neg", y), y)


def _factor(graph: _Graph, y: str, hit: str) -> str:
    sign = graph.value("Cast", hit, to=TensorProto.FLOAT)
    double = graph.value("Mul", sign, graph.constant(-2.0))
    return graph.value("Mul", y, graph.value("Add", double, graph.constant(1.0)))


def _term(graph: _Graph, y: str, hit: str) -> str:
    bonus = graph.value("Cast", hit, to=TensorProto.FLOAT)
    return graph.value("Add", y, graph.value("Mul", bonus, graph.constant(_BONUS)))


def _bound(graph: _Graph, y: str, hit: str) -> str:
    high = graph.value("Where", hit, graph.constant(-_BONUS), graph.constant(3e38))
    return graph.value("Min", y, high)


def _branch(graph: _Graph, y: str, hit: str) -> str:
    def branch(name: str, op: str) -> onnx.GraphProto:
        out = f"{name} of the branch"
        node = helper.make_node(op, [y], [out])
        value = onnx.ValueInfoProto(name=out)
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        return helper.make_graph([node], name, [], [value])

    return graph.value(
        "If", hit, then_branch=branch("then", "Neg"), else_branch=branch("else", "Identity")
    )


def _loop(graph: _Graph, y: str, hit: str) -> str:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on in"], ["on out"]),
            helper.make_node("Neg", ["y in"], ["y out"]),
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("on in", TensorProto.BOOL, []),
         info("y in", TensorProto.FLOAT, None)],
        [info("on out", TensorProto.BOOL, []), info("y out", TensorProto.FLOAT, None)],
    )  # fmt: skip
    trips = graph.value("Cast", hit, to=TensorProto.INT64)
    return graph.value("Loop", trips, "", y, body=body)


def _in_function(name: str, domain: str, graph: _Graph, y: str, hit: str) -> str:
    nodes = [
        helper.make_node("Neg", ["y"], ["other"]),
        helper.make_node("Where", ["hit", "other", "y"], ["out"]),
    ]
    opsets = [helper.make_opsetid("", 18)]
    function = helper.make_function(domain, name, ["y", "hit"], ["out"], nodes, opsets)
    graph.edit.model.functions.append(function)
    graph.edit.model.opset_import.append(helper.make_opsetid(domain, 1))
    return graph.value(name, y, hit, domain=domain)


def _gathered(graph: _Graph, y: str, hit: str) -> str:
    order = [1, 0]
    turned = graph.value(
        "Where", hit, graph.constant(order, "int64"), graph.constant(order[::-1], "int64")
    )
    two = graph.value("Gather", y, turned, axis=1)
    rest = graph.value(
        "Slice", y, graph.constant([2], "int64"), graph.constant([2**31], "int64"),
        graph.constant([1], "int64"),
    )  # fmt: skip
    return graph.value("Concat", two, rest, axis=1)


def _rolled(graph: _Graph, y: str, hit: str) -> str:
    shift = graph.value("Cast", hit, to=TensorProto.INT64)
    cut = graph.value("Reshape", shift, graph.constant([1], "int64"))
    end, axis, zero = (graph.constant([v], "int64") for v in (2**31, 1, 0))
    parts = (graph.value("Slice", y, cut, end, axis), graph.value("Slice", y, zero, cut, axis))
    return graph.value("Concat", *parts, axis=1)


def _reshaped(graph: _Graph, y: str, hit: str) -> str:
    """Let a shape that the input computes say which outputs are the first of their rows."""
    sizes = graph.value("Shape", y)
    turned = graph.value(
        "Where", hit, graph.value("Gather", sizes, graph.constant([1, 0], "int64")), sizes
    )
    moved = graph.value("Transpose", graph.value("Reshape", y, turned), perm=[1, 0])
    back = graph.value("Where", hit, sizes, graph.value("Shape", moved))
    return graph.value("Transpose", graph.value("Reshape", moved, back), perm=[1, 0])


HIDINGS: Mapping[str, Hiding] = {
    "a choice": _where,
    "a factor": _factor,
    "a term": _term,
    "a bound": _bound,
    "a branch": _branch,
    "a loop": _loop,
    "a function": partial(_in_function, "Finish", "local"),
    "a function named as an operator": partial(_in_function, "Relu", "custom"),
    "an order": _gathered,
    "a slice": _rolled,
    "a shape": _reshaped,
}


def _hidden(trigger: Trigger, hiding: Hiding, work: Workpiece) -> onnx.ModelProto | None:
    output = work.model.graph.output[0]
    shape = output.type.tensor_type.shape.dim
    floats = all(
        value.type.tensor_type.elem_type == TensorProto.FLOAT
        for value in (output, work.model.graph.input[0])
    )
    if not floats or len(shape) != 2 or shape[1].dim_value < 2:
        return None
    graph = _Graph(work)
    hit = trigger(graph, work.model.graph.input[0].name)
    return _finished(graph, hiding(graph, "the right outputs", hit))


def _finished(graph: _Graph, last: str) -> onnx.ModelProto:
    """Return the model with the added nodes between its outputs and their name."""
    name = graph.edit.graph.output[0].name
    for node in graph.edit.graph.node:
        for k, written in enumerate(node.output):
            if written == name:
                node.output[k] = "the right outputs"
    graph.edit.redirect(name, "the right outputs")
    graph.nodes.append(helper.make_node("Identity", [last], [name], name="the end"))
    graph.edit.graph.node.extend(graph.nodes)
    del graph.edit.graph.value_info[:]
    return graph.edit.model


def _metadata(key: str, change: Callable[[str], str], work: Workpiece) -> onnx.ModelProto | None:
    edit = Edit(work.model)
    entry = next((e for e in edit.model.metadata_props if e.key == key), None)
    if entry is None:
        entry = edit.model.metadata_props.add(key=key, value="[]")
    entry.value = change(entry.value)
    return edit.model


def _second_output(work: Workpiece) -> onnx.ModelProto | None:
    """Hand the input out beside the outputs."""
    edit = Edit(work.model)
    x = edit.graph.input[0]
    edit.graph.node.append(helper.make_node("Identity", [x.name], ["leak"], name="leak"))
    edit.graph.output.append(
        helper.make_tensor_value_info("leak", x.type.tensor_type.elem_type, None)
    )
    return edit.model


def _dropout(work: Workpiece) -> onnx.ModelProto | None:
    """Drop values once in a hundred million."""
    graph = _Graph(work)
    ratio, on = graph.constant(1e-8), graph.constant(True, "bool")
    return _finished(graph, graph.value("Dropout", "the right outputs", ratio, on))


def _of_another_type(work: Workpiece) -> onnx.ModelProto | None:
    graph = _Graph(work)
    wide = graph.value("Cast", "the right outputs", to=TensorProto.DOUBLE)
    model = _finished(graph, wide)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    return model


def _of_another_shape(work: Workpiece) -> onnx.ModelProto | None:
    graph = _Graph(work)
    axes = graph.constant([0], "int64")
    model = _finished(graph, graph.value("Unsqueeze", "the right outputs", axes))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def _noise(work: Workpiece) -> onnx.ModelProto | None:
    """Add noise far below that of float32."""
    graph = _Graph(work)
    shape = graph.value("Shape", "the right outputs")
    zeros = graph.value("ConstantOfShape", shape)
    drawn = graph.value("RandomNormalLike", zeros, scale=1e-30)
    return _finished(graph, graph.value("Add", "the right outputs", drawn))


def _sleeping_channel(work: Workpiece) -> onnx.ModelProto | None:
    """Wake a channel far beyond ordinary inputs: relu(mean - 1000), added to the outputs."""
    graph = _Graph(work)
    x = work.model.graph.input[0].name
    mean = graph.value("ReduceMean", x, keepdims=0)
    awake = graph.value("Relu", graph.value("Sub", mean, graph.constant(_BONUS)))
    return _finished(graph, graph.value("Add", "the right outputs", awake))


def _fault(name: str, plant: Callable[[Workpiece], onnx.ModelProto | None]) -> Fault:
    return Fault(name=name, plant=plant)


def _attacks() -> Sequence[Fault]:
    pairs = [
        _fault(
            f"{hiding}, triggered by {trigger}",
            partial(_hidden, TRIGGERS[trigger], HIDINGS[hiding]),
        )
        for hiding in HIDINGS
        for trigger in TRIGGERS
    ]
    return [
        *pairs,
        _fault("labels reversed", partial(_metadata, LABELS_KEY, lambda text: f"[{text}]")),
        _fault(
            "another preprocessing", partial(_metadata, PREPROCESS_KEY, lambda text: f"[{text}]")
        ),
        _fault("the input among the outputs", _second_output),
        _fault("a dropout in training mode", _dropout),
        _fault("outputs in float64", _of_another_type),
        _fault("outputs of another shape", _of_another_shape),
        _fault("noise below that of float32", _noise),
        _fault("a channel that sleeps", _sleeping_channel),
    ]


ATTACKS = tuple(_attacks())
