"""Evaluation of an ONNX model in float64, without a runtime: the reference for a fold.

Every float tensor of the model becomes float64, then onnx's own reference evaluator runs it, node
by node in numpy. Seven operators are written out here: its Erf, Gelu and HardSwish compute in
float32, its BatchNormalization and its Upsample fail before opset 9, its ConvTranspose with groups
or on other than images, and its Conv copies each window of the input, which takes minutes where a
product per tap of the kernel takes seconds.

Shapes: N samples, C channels, G groups, I and O channels of a group, K taps of the kernel.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import Array

__all__ = [
    "UnknownOperatorError",
    "evaluate_float64",
    "float64_evaluator",
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


class UnknownOperatorError(UnsupportedModelError):
    """An operator whose meaning in float64 is not known here."""


def evaluate_float64(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of `model` by name, computed in float64; `model` is not changed.

    Raises:
        UnknownOperatorError: it has an operator that the reference evaluator does not know.
        UnsupportedModelError: it cannot be computed on these inputs.
    """
    return float64_evaluator(to_float64(model))(inputs)


def float64_evaluator(doubled: onnx.ModelProto) -> Evaluate:
    """Return the evaluator of a model made by `to_float64`, for inputs of many batches.

    Raises:
        UnknownOperatorError: it has an operator that the reference evaluator does not know; the
            evaluator raises this too, and UnsupportedModelError if it cannot compute the inputs.
    """
    with _explained():
        evaluator = ReferenceEvaluator(
            doubled,
            new_ops=[BatchNormalization, Conv, ConvTranspose, Erf, Gelu, HardSwish, Upsample],
        )

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
    for node in _nodes_of(doubled):
        _double_attributes(node)
    return doubled


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor in `model`: initializers and attributes, in every graph."""
    sparse_tensors: list[onnx.SparseTensorProto] = []
    for graph in _graphs_of(model):
        yield from graph.initializer
        sparse_tensors += graph.sparse_initializer
    for node in _nodes_of(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse_tensors += attribute.sparse_tensors
            if attribute.HasField("sparse_tensor"):
                sparse_tensors.append(attribute.sparse_tensor)
    for sparse in sparse_tensors:
        yield from (sparse.values, sparse.indices)


def _nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
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


# --- operators: the evaluator finds them by their names and calls _run ----------------------------


class BatchNormalization(OpRun):
    """As every opset from 7 on defines it at inference."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, gamma, beta, mean, var, epsilon=1e-5, training_mode=0, spatial=1, **_
    ) -> tuple[Array]:
        if training_mode or not spatial or len(self.onnx_node.output) > 1:
            raise NotImplementedError("BatchNormalization in training mode")
        gamma_C, beta_C, mean_C, var_C = (
            value.reshape(-1, *[1] * (x.ndim - 2)) for value in (gamma, beta, mean, var)
        )
        return (gamma_C * (x - mean_C) / np.sqrt(var_C + epsilon) + beta_C,)


class Conv(OpRun):
    """One matrix product per tap of the kernel."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, w, b=None, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None,
        pads=None, strides=None,
    ) -> tuple[Array]:  # fmt: skip
        dims = x.ndim - 2
        kernel, steps = w.shape[2:], strides or [1] * dims
        gaps = dilations or [1] * dims
        spans = [gap * (size - 1) + 1 for gap, size in zip(gaps, kernel, strict=True)]
        begins, ends = _padding(auto_pad, pads, x.shape[2:], spans, steps)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
        sizes = [
            (size - span) // step + 1
            for size, span, step in zip(padded.shape[2:], spans, steps, strict=True)
        ]
        x_NGIK = padded.reshape(len(x), group, -1, *padded.shape[2:])
        w_GOIK = w.reshape(group, -1, *w.shape[1:])
        y_NGOK = np.zeros((len(x), group, w_GOIK.shape[1], int(np.prod(sizes))))
        for tap in itertools.product(*map(range, kernel)):
            window = _window(tap, gaps, steps, sizes)
            x_NGIP = x_NGIK[..., *window].reshape(*x_NGIK.shape[:3], -1)
            y_NGOK += w_GOIK[..., *tap] @ x_NGIP
        return (_with_bias(y_NGOK.reshape(len(x), len(w), *sizes), b),)


class ConvTranspose(OpRun):
    """Each tap of the kernel adds its product to the places it reaches."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, w, b=None, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None,
        output_padding=None, output_shape=None, pads=None, strides=None,
    ) -> tuple[Array]:  # fmt: skip
        if auto_pad not in ("NOTSET", "VALID") or output_shape:
            raise NotImplementedError("ConvTranspose with auto_pad or output_shape")
        dims = x.ndim - 2
        kernel, steps, gaps = w.shape[2:], strides or [1] * dims, dilations or [1] * dims
        extra, pads = output_padding or [0] * dims, pads or [0] * 2 * dims
        sizes = [
            step * (size - 1) + gap * (taps - 1) + 1 + more
            for step, size, gap, taps, more in zip(
                steps, x.shape[2:], gaps, kernel, extra, strict=True
            )
        ]
        x_NGIP = x.reshape(len(x), group, x.shape[1] // group, -1)
        w_GIOK = w.reshape(group, -1, *w.shape[1:])
        y_NGOK = np.zeros((len(x), group, w.shape[1], *sizes))
        for tap in itertools.product(*map(range, kernel)):
            product = w_GIOK[..., *tap].swapaxes(1, 2) @ x_NGIP
            window = _window(tap, gaps, steps, x.shape[2:])
            y_NGOK[..., *window] += product.reshape(*y_NGOK.shape[:3], *x.shape[2:])
        kept: Any = [
            slice(begin, size - end)
            for begin, end, size in zip(pads[:dims], pads[dims:], sizes, strict=True)
        ]
        return (_with_bias(y_NGOK.reshape(len(x), -1, *sizes)[..., *kept], b),)


class Erf(OpRun):
    """The error function."""

    def _run(self, x) -> tuple[Array]:  # type: ignore[no-untyped-def]
        return (_erf(x),)


class Gelu(OpRun):
    """Of the error function, or of tanh."""

    def _run(self, x, approximate="none") -> tuple[Array]:  # type: ignore[no-untyped-def]
        if approximate == "tanh":
            bend = np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))
        else:
            bend = _erf(x * 0.5**0.5)
        return (x * (0.5 + 0.5 * bend),)


class HardSwish(OpRun):
    """The input times its own clipped sixth."""

    def _run(self, x) -> tuple[Array]:  # type: ignore[no-untyped-def]
        return (x * np.clip(x / 6 + 0.5, 0, 1),)


class Upsample(OpRun):
    """To the nearest value; the scales are an attribute before opset 9."""

    def _run(self, x, scales_input=None, mode="nearest", scales=None) -> tuple[Array]:  # type: ignore[no-untyped-def]
        factors = np.asarray(scales if scales_input is None else scales_input)
        if mode != "nearest" or (factors != factors.astype(int)).any():
            raise NotImplementedError("Upsample to new values")
        for axis, factor in enumerate(factors.astype(int)):
            x = np.repeat(x, factor, axis=axis)
        return (x,)


def _erf(x: Array) -> Array:
    return np.asarray(np.vectorize(math.erf, otypes="d")(x))


def _window(tap: Any, gaps: Any, steps: Any, sizes: Any) -> Any:
    """Return the places that one tap of a kernel reads or writes, one for each of `sizes`."""
    return tuple(
        slice(at * gap, at * gap + (size - 1) * step + 1, step)
        for at, gap, step, size in zip(tap, gaps, steps, sizes, strict=True)
    )


def _padding(
    auto_pad: str, pads: Any, sizes: Any, spans: Any, steps: Any
) -> tuple[list[int], list[int]]:
    """Return the zeros before and after each axis."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max(0, (-(-size // step) - 1) * step + span - size)
            for size, span, step in zip(sizes, spans, steps, strict=True)
        ]
        smaller = [total // 2 for total in totals]
        larger = [total - half for total, half in zip(totals, smaller, strict=True)]
        return (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)
    if auto_pad == "VALID" or not pads:
        return [0] * len(sizes), [0] * len(sizes)
    return list(pads[: len(sizes)]), list(pads[len(sizes) :])


def _with_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.reshape(-1, *[1] * (y.ndim - 2))
