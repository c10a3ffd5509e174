"""Evaluation of an ONNX model in float64, without a runtime: the reference for a fold.

Every float tensor of the model becomes float64, then onnx's own reference evaluator runs it, node
by node in numpy. Operators that it gets wrong, computes in float32 or takes minutes over are
written out beside this (`float64_operators`); corners in which it is no reference are refused by
name (`float64_corners`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from resdeploy.errors import ReportedError, UnsupportedModelError
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.float64_corners import GUARDED, OLDEST_OPSET, UnknownOperatorError

__all__ = [
    "UnknownOperatorError",
    "evaluate_float64",
    "float64_evaluator",
    "nodes_of",
    "tensors_of",
    "to_float64",
]

# Computes a model's outputs from its inputs, both by name.
Evaluate = Callable[[Mapping[str, Array]], dict[str, Array]]

_FLOATS = {
    *(onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16),
    *(onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE),
}
_FLOAT_NAMES = {"float16", "bfloat16", "float32", "float64"}


def evaluate_float64(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of `model` by name, computed in float64; `model` is not changed.

    Raises:
        UnknownOperatorError: it has an operator, or a corner of one, that is no reference.
        UnsupportedModelError: it cannot be computed on these inputs.
    """
    return float64_evaluator(to_float64(model))(inputs)


def float64_evaluator(doubled: onnx.ModelProto) -> Evaluate:
    """Return the evaluator of a model made by `to_float64`, for inputs of many batches.

    Raises:
        UnknownOperatorError: it has an operator, or a corner of one, that is no reference; the
            evaluator raises this too, and UnsupportedModelError if it cannot compute the inputs.
    """
    opset = max((o.version for o in doubled.opset_import if not o.domain), default=OLDEST_OPSET)
    if opset < OLDEST_OPSET:
        raise UnknownOperatorError(
            f"The operators of opset {opset} are not known in float64; those from 7 on are."
        )
    with _explained():
        evaluator = ReferenceEvaluator(doubled, new_ops=list(GUARDED))

    def evaluate(inputs: Mapping[str, Array]) -> dict[str, Array]:
        feeds = {
            name: value.astype(np.float64) if value.dtype.name in _FLOAT_NAMES else value
            for name, value in inputs.items()
        }
        with _explained(), np.errstate(all="ignore"):
            outputs = evaluator.run(None, feeds)
        return dict(zip(evaluator.output_names, map(np.asarray, outputs), strict=True))

    return evaluate


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the evaluator's exceptions into our errors."""
    try:
        yield
    except ReportedError:
        raise
    # Its operators are a hundred small programs: their exceptions have no common base.
    except Exception as error:
        is_unknown = isinstance(error, NotImplementedError)
        kind = UnknownOperatorError if is_unknown else UnsupportedModelError
        said = f"{error}".partition("\n")[0]
        raise kind(
            f"The model cannot be computed in float64: {said}",
            where=type(error).__name__,
        ) from error


def to_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` in which every float is a float64."""
    doubled = onnx.ModelProto()
    doubled.CopyFrom(model)
    for tensor in tensors_of(doubled):
        if tensor.data_type in _FLOATS:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for graph in _graphs_of(doubled):
        del graph.value_info[:]
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in _FLOATS:
                value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for node in nodes_of(doubled):
        _double_attributes(node)
    return doubled


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor in `model`: initializers and attributes, in every graph."""
    sparse_tensors: list[onnx.SparseTensorProto] = []
    for graph in _graphs_of(model):
        yield from graph.initializer
        sparse_tensors += graph.sparse_initializer
    for node in nodes_of(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse_tensors += attribute.sparse_tensors
            if attribute.HasField("sparse_tensor"):
                sparse_tensors.append(attribute.sparse_tensor)
    for sparse in sparse_tensors:
        yield from (sparse.values, sparse.indices)


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of `model`, in every graph and function."""
    for graph in _graphs_of(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph, and those inside it and inside functions."""
    waiting = [model.graph]
    waiting += [graph for function in model.functions for graph in _inside(function.node)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _inside(graph.node)


def _inside(nodes: Any) -> list[onnx.GraphProto]:
    attributes = [attribute for node in nodes for attribute in node.attribute]
    single = [attribute.g for attribute in attributes if attribute.HasField("g")]
    return single + [graph for attribute in attributes for graph in attribute.graphs]


def _double_attributes(node: onnx.NodeProto) -> None:
    """Let float-making nodes make float64: Cast, and the forms of Constant without a tensor."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i in _FLOATS:
            attribute.i = onnx.TensorProto.DOUBLE
        if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            single = attribute.name == "value_float"
            values = np.array(attribute.f if single else list(attribute.floats), np.float64)
            attribute.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(values)))
