"""Affine layers and products: Conv, ConvTranspose, Gemm, MatMul, Einsum, BatchNormalization."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from resdeploy.errors import UnsupportedModelError
from resdeploy.fold import algebra
from resdeploy.graph.affine_layer import AffineLayer, Array, read_node
from resdeploy.verify.compare_structure import Affine, Numbers
from resdeploy.verify.normal.builder import Known, Tensor, Value, broadcast
from resdeploy.verify.normal.dims import Size, Sizes, floor_div, product, text_of
from resdeploy.verify.normal.movements import padded, sliced, with_padding
from resdeploy.verify.normal.reading import Layers, Operator, Reading, Rule
from resdeploy.verify.normal.windows import explicit_pads

__all__ = [
    "LAYERS",
    "batchnorm_numbers",
    "conv",
    "gemm",
    "linear_affine",
    "matmul",
    "window_affine",
]


def conv(r: Reading, op: Operator) -> Sequence[Value]:
    """A Pad with zeros before a convolution is its padding; one that moves pixels is a movement."""
    x, weight = op.tensor(), op.known(1)
    assert weight is not None
    layer = read_node(op.node, weight.shape)
    spans = [d * (k - 1) + 1 for d, k in zip(layer.dilations, layer.kernel, strict=True)]
    sizes = x.shape[2:]
    transposed = op.node.op_type == "ConvTranspose"
    if x.rank != weight.values.ndim or x.shape[1] != layer.num_inputs:
        raise op.refuse(f"reads a value of shape {x.shape}")
    if transposed:
        if layer.auto_pad != "NOTSET" or op.attributes.get("output_shape"):
            raise op.refuse("states the shape of its output")
        pads, extra = (
            list(layer.pads),
            list(op.attributes.get("output_padding") or [0] * len(sizes)),
        )
        found = [
            (size - 1) * step + span + more - pads[k] - pads[k + len(sizes)]
            for k, (size, step, span, more) in enumerate(
                zip(sizes, layer.strides, spans, extra, strict=True)
            )
        ]
        attributes: dict[str, Any] = {"output_padding": extra}
    else:
        pads = explicit_pads(op, sizes, spans, layer.strides)
        x, pads = with_padding(r, x, pads)
        sizes = x.shape[2:]
        found = [
            floor_div(size + pads[k] + pads[k + len(sizes)] - span, step) + 1
            for k, (size, span, step) in enumerate(zip(sizes, spans, layer.strides, strict=True))
        ]
        attributes = {}
        if (moved := _padded_shortcut(r, op, layer, weight.values, x, pads)) is not None:
            return [moved]
    attributes |= {
        "dilations": layer.dilations,
        "group": layer.groups,
        "kernel_shape": layer.kernel,
        "pads": pads,
        "strides": layer.strides,
    }
    affine = window_affine(r, op, layer)
    shape = (x.shape[0], layer.num_outputs, *found)
    return [r.build.add(op.node.op_type, [x], shape, attributes=attributes, affine=affine)]


def window_affine(r: Layers, op: Operator, layer: AffineLayer) -> Affine:
    """Return the numbers of a convolution."""
    weight, bias = op.known(1), op.known(2)
    assert weight is not None
    zeros = np.zeros(layer.num_outputs)
    own = zeros if bias is None else np.broadcast_to(bias.values.reshape(-1), zeros.shape)
    return r.affine(op.node, weight, own, layer.num_products)


def _padded_shortcut(
    r: Reading, op: Operator, layer: AffineLayer, weight: Array, x: Tensor, pads: Sequence[int]
) -> Tensor | None:
    """Return the Slice and the Pad that a 1x1 convolution of zeros and ones stands for."""
    bias = op.known(2)
    if layer.kernel != (1, 1) or layer.groups != 1 or any(pads):
        return None
    num_outputs, num_inputs = layer.num_outputs, layer.num_inputs
    before = int(weight[:, 0].argmax())
    if (
        (bias is not None and bias.values.any())
        or num_outputs <= num_inputs
        or max(layer.strides) == 1
        or not np.array_equal(weight[:, :, 0, 0], np.eye(num_outputs, num_inputs, k=-before))
    ):
        return None

    for axis, step in enumerate(layer.strides, start=2):
        x = sliced(r.build, x, axis, 0, x.shape[axis], step)
    return padded(r.build, x, {1: (before, num_outputs - num_inputs - before)}, "constant", 0.0)


def gemm(r: Reading, op: Operator) -> Sequence[Value]:
    """Gemm: alpha A B + beta C, a layer where B and C are constant."""
    a, b, c = op.at(0), op.at(1), op.at(2)
    if isinstance(a, Tensor) and isinstance(b, Known) and (c is None or isinstance(c, Known)):
        layer = read_node(op.node, b.shape)
        if not layer.reads_columns:
            affine = linear_affine(r, op, layer)
            if affine is not None:
                return [_linear(r, a, affine)]
    alpha, beta = (Numbers.of(op.attributes.get(n, 1.0)) for n in ("alpha", "beta"))
    left, right = (_turned(r, v, op.flag(n)) for v, n in ((a, "transA"), (b, "transB")))
    found = r.build.scaled(_product(r, op, left, right), alpha)
    if c is None:
        return [found]
    if isinstance(c, Tensor):
        shape = broadcast([found.shape, c.shape])
        return [r.build.total([found, r.build.scaled(c, beta)], shape)]
    shift = r.numbers(c).times(beta)
    return [r.build.scale_shift(found, Numbers.one(), shift, found.shape)]


def linear_affine(r: Layers, op: Operator, layer: AffineLayer) -> Affine | None:
    """Return the numbers of a matrix product with constants; None if its bias differs by row."""
    weight, bias = op.known(1), op.known(2)
    assert weight is not None
    turned = Known(
        values=layer.by_output(weight.values * layer.alpha),
        dtype=weight.dtype,
        roundings=weight.roundings,
    )
    added = np.zeros(1) if bias is None else bias.values.reshape(-1) * layer.beta
    if added.size not in (1, layer.num_outputs) or (
        bias is not None and bias.values.ndim > 1 and bias.values.shape[-1] != added.size
    ):
        return None
    own = np.broadcast_to(added, (layer.num_outputs,))
    return r.affine(op.node, turned, own, layer.num_products)


def _linear(r: Reading, x: Tensor, affine: Affine) -> Tensor:
    """Return a product over the last axis, written as one of a matrix of all the rows."""
    num_outputs, num_inputs = affine.weight.shape
    if x.shape[-1] != num_inputs:
        raise UnsupportedModelError(f"A product of {num_inputs} inputs reads {text_of(x.shape)}.")
    rows = product(x.shape[:-1])
    flat = r.build.reshape(x, (rows, num_inputs))
    found = r.build.add("Linear", [flat], (rows, num_outputs), affine=affine)
    return r.build.reshape(found, (*x.shape[:-1], num_outputs))


def matmul(r: Reading, op: Operator) -> Sequence[Value]:
    """MatMul, a layer where the second factor is a constant matrix."""
    a, b = op.at(0), op.at(1)
    if isinstance(a, Tensor) and isinstance(b, Known) and b.values.ndim == 2:
        affine = linear_affine(r, op, read_node(op.node, b.shape))
        assert affine is not None
        return [_linear(r, a, affine)]
    return [_product(r, op, a, b)]


def _product(r: Reading, op: Operator, a: Value | None, b: Value | None) -> Tensor:
    """Return a matrix product; what is one number in either factor is taken out of it."""
    build = r.build
    scale, tensors, numbers, shapes, attributes = Numbers.one(), [], [], [], {}
    for which, value in enumerate((a, b)):
        if isinstance(value, Tensor):
            inner, own = build.split_scale(value)
            scale = scale.times(own)
            tensors.append(inner)
            shapes.append(inner.shape)
            attributes[f"operand {which}"] = "value"
        else:
            assert value is not None
            numbers.append(r.numbers(value))
            shapes.append(tuple(value.shape))
    if len(tensors) == 2:
        attributes = {}
    if min(map(len, shapes)) < 2 or shapes[0][-1] != shapes[1][-2]:
        raise op.refuse(f"multiplies {shapes[0]} by {shapes[1]}")
    shape: Sizes = (
        *broadcast([shapes[0][:-2], shapes[1][:-2]] if max(map(len, shapes)) > 2 else [(1,)]),
        shapes[0][-2],
        shapes[1][-1],
    )
    shape = shape[-max(map(len, shapes)) :]
    found = build.add("MatMul", tensors, shape, attributes=attributes, numbers=numbers)
    return build.scaled(found, scale)


def _turned(r: Reading, value: Value | None, transposed: int) -> Value | None:
    if not transposed or value is None:
        return value
    if isinstance(value, Tensor):
        return r.build.transpose(value, [1, 0])
    return Known(values=value.values.T, dtype=value.dtype, roundings=value.roundings)


def _einsum(r: Reading, op: Operator) -> Sequence[Value]:
    equation = op.string("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    values = op.given()
    if not arrow or "." in equation:
        raise op.refuse("does not name its axes")
    names: dict[str, Size] = {}
    for letters, sizes in zip(left.split(","), [value.shape for value in values], strict=True):
        for letter, size in zip(letters, sizes, strict=True):
            if names.setdefault(letter, size) != size:
                raise op.refuse("has an axis of two sizes")
    order = {
        letter: chr(97 + k) for k, letter in enumerate(dict.fromkeys(left.replace(",", "") + right))
    }
    plain = "".join(order.get(c, c) for c in equation)
    shape = tuple(names[letter] for letter in right)
    tensors = [value for value in values if isinstance(value, Tensor)]
    numbers = [r.numbers(value) for value in values if isinstance(value, Known)]
    attributes: dict[str, Any] = {"equation": plain}
    attributes["constants"] = [k for k, v in enumerate(values) if isinstance(v, Known)]
    return [r.build.add("Einsum", tensors, shape, attributes=attributes, numbers=numbers)]


def _batchnorm(r: Reading, op: Operator) -> Sequence[Value]:
    """BatchNormalization: scale * x + shift for each channel, at inference."""
    x = op.tensor()
    if (
        op.flag("training_mode")
        or not op.flag("spatial", 1)
        or (r.opset < 7 and not op.flag("is_test"))
    ):
        raise op.refuse("is in training mode")
    if op.num_outputs > 1:
        raise op.refuse("is in training mode")
    scale, shift, magnitude = batchnorm_numbers(op)
    along = (-1,) + (1,) * (x.rank - 2)
    first = op.known(1)
    assert first is not None
    numbers = [
        Numbers(
            values=values.reshape(along),
            magnitude=size.reshape(along),
            dtype=first.dtype,
            roundings=1,
        )
        for values, size in ((scale, np.abs(scale)), (shift, magnitude))
    ]
    return [r.build.scale_shift(x, numbers[0], numbers[1], x.shape)]


def batchnorm_numbers(op: Operator) -> tuple[Array, Array, Array]:
    """Return (scale, shift, magnitude of the shift's terms) of a BatchNormalization, each (C,)."""
    known = [op.known(which) for which in range(1, 5)]
    gamma, beta, mean, var = (k.values for k in known if k is not None)
    eps = float(np.float32(op.attributes.get("epsilon", 1e-5)))
    scale, shift = algebra.scale_and_shift(
        algebra.BatchNormParams(gamma=gamma, beta=beta, mean=mean, var=var, eps=eps)
    )
    return scale, shift, np.abs(mean * scale) + np.abs(beta)


LAYERS: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), conv),
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": _einsum,
    "BatchNormalization": _batchnorm,
}
