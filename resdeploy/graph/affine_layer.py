"""One reading of an affine layer of ONNX: Conv, ConvTranspose, Gemm or MatMul with a known weight.

A layer computes alpha W x + beta b per position. W is stored as

    Conv            (O, I/G, *K); the features are axis 1
    ConvTranspose   (I, O/G, *K); the features are axis 1
    Gemm            (I, O), with transB (O, I); the features are the last axis, but with transA
                    axis 0 of the input
    MatMul          (I, O); the features are the last axis

Fold, certificate, faults, quantisation and profile all read layers here, each over a graph type of
its own. None of these is imported: `read_layer` takes attributes as a plain mapping, `read_node`
those of a NodeProto.

Refuses, by name,
1. an attribute that the operator has in no opset (to 22), or of another type;
2. a value outside the specification: of auto_pad, of pads beside an auto_pad that sets them, groups
   that do not divide the channels, a kernel_shape other than the weight's, strides, dilations and
   pads of another length or sign;
3. a weight of a rank that the operator does not take.

Suffixes: O and I = output and input channels, G = groups, K = taps of the kernel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.errors import UnsupportedModelError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "AFFINE_OPERATORS",
    "AffineLayer",
    "Array",
    "LayerShape",
    "is_affine",
    "read_layer",
    "read_node",
    "window_attributes",
]

# Numbers of any type and shape.
Array = NDArray[Any]

_WINDOW = frozenset({"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"})
_ATTRIBUTES: Mapping[str, frozenset[str]] = {
    "Conv": _WINDOW,
    "ConvTranspose": _WINDOW | {"output_padding", "output_shape"},
    "Gemm": frozenset({"alpha", "beta", "broadcast", "transA", "transB"}),
    "MatMul": frozenset(),
}
AFFINE_OPERATORS = frozenset(_ATTRIBUTES)
_EXPLICIT = ("NOTSET", "VALID")
_SAME = ("SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """Layout of a weight: (O, I/G, ...) as in a convolution, (I, O/G, ...) if transposed."""

    groups: int = 1
    transposed: bool = False

    def by_output(self, weight: Array) -> Array:
        """Return a weight as (O, I/G, K), a view where that is possible."""
        if not self.transposed:
            return weight.reshape(weight.shape[0], weight.shape[1] if weight.ndim > 1 else 1, -1)
        inputs_per_group = weight.shape[0] // self.groups
        by_group = weight.reshape(self.groups, inputs_per_group, weight.shape[1], -1)
        num_taps = by_group.shape[-1]
        return by_group.swapaxes(1, 2).reshape(-1, inputs_per_group, num_taps)

    def from_output(self, weight_OIK: Array, original: tuple[int, ...]) -> Array:
        """Undo `by_output` of a weight of the shape `original`."""
        if not self.transposed:
            return weight_OIK.reshape(original)
        _, inputs_per_group, num_taps = weight_OIK.shape
        by_group = weight_OIK.reshape(self.groups, original[1], inputs_per_group, num_taps)
        return np.ascontiguousarray(by_group.swapaxes(1, 2)).reshape(original)


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineLayer:
    """An affine layer: the layout of its weight, its factors and its window.

    Attributes:
        op: Conv, ConvTranspose, Gemm or MatMul.
        weight_shape: of the weight as it is stored.
        shape: its groups, and whether its input channels come first.
        alpha: factor of the product, exactly a float32.
        beta: factor of the bias, likewise.
        reads_columns: whether the features of its input are axis 0 (transA).
        strides: one for each axis of the image, as dilations are; both empty for a product.
        dilations: see there.
        pads: zeros before each axis of the image, then after each; all 0 under `auto_pad`.
        auto_pad: SAME_UPPER or SAME_LOWER where the padding follows from the input's size, else
            NOTSET.
    """

    op: str
    weight_shape: tuple[int, ...]
    shape: LayerShape
    alpha: float = 1.0
    beta: float = 1.0
    reads_columns: bool = False
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"

    @property
    def is_linear(self) -> bool:
        """True if its features are the last axis rather than axis 1."""
        return self.op in ("Gemm", "MatMul")

    @property
    def kernel(self) -> tuple[int, ...]:
        """Taps along each axis of the image; empty for a product."""
        return self.weight_shape[2:]

    @property
    def groups(self) -> int:
        """G."""
        return self.shape.groups

    @property
    def num_outputs(self) -> int:
        """O."""
        first, second = self.weight_shape[:2]
        return second * self.groups if self.shape.transposed else first

    @property
    def num_inputs(self) -> int:
        """I."""
        first, second = self.weight_shape[:2]
        return first if self.shape.transposed else second * self.groups

    @property
    def num_products(self) -> int:
        """Products that one output adds up: I/G * K."""
        return self.num_inputs // self.groups * math.prod(self.kernel)

    @property
    def pads_with_zeros(self) -> bool:
        """True if some of its outputs see zeros from outside its input."""
        if self.op == "ConvTranspose":
            return True  # at a border fewer taps meet an input, which has the same effect
        return any(self.pads) or (self.auto_pad in _SAME and any(size != 1 for size in self.kernel))

    def by_output(self, weight: Array) -> Array:
        """Return a weight as a convolution has it, (O, I/G, *K), a view where that is possible."""
        return self.shape.by_output(weight).reshape(self.num_outputs, -1, *self.kernel)

    def by_group(self, weight: Array) -> Array:
        """Return a weight as (G, O/G, I/G, *K), a view where that is possible."""
        weight_OIK = self.by_output(weight)
        return weight_OIK.reshape(self.groups, -1, *weight_OIK.shape[1:])

    def as_stored(self, weight: Array) -> Array:
        """Undo `by_output` or `by_group`, also where their last axes are one."""
        weight_OIK = weight.reshape(self.num_outputs, -1, math.prod(self.kernel))
        return self.shape.from_output(weight_OIK, self.weight_shape)


def read_layer(
    op: str, attributes: Mapping[str, Any], weight_shape: Sequence[int], *, where: str | None = None
) -> AffineLayer:
    """Return the layer of an operator with these attributes, those left out at their defaults.

    Args:
        op: one of `AFFINE_OPERATORS`.
        attributes: numbers, text, and sequences of integers, by name.
        weight_shape: of the weight as it is stored.
        where: the node's name, for the error.

    Raises:
        UnsupportedModelError: see the module's list.
    """
    try:
        return _read(op, attributes, tuple(int(size) for size in weight_shape))
    except (TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"This {op} is not one of ONNX's specification: {error}.",
            where=where,
            fix="run onnx.checker.check_model on the file",
        ) from error


def is_affine(node: "onnx.NodeProto", *operators: str) -> bool:
    """True if a node is one of `AFFINE_OPERATORS`, or of those named, of ONNX itself."""
    return node.op_type in (operators or AFFINE_OPERATORS) and node.domain in ("", "ai.onnx")


def read_node(node: "onnx.NodeProto", weight_shape: Sequence[int]) -> AffineLayer:
    """Return the layer of a node that `is_affine`.

    Raises:
        UnsupportedModelError: see the module's list.
    """
    attributes = {attribute.name: _value(attribute) for attribute in node.attribute}
    return read_layer(node.op_type, attributes, weight_shape, where=node.name or node.output[0])


def window_attributes(attributes: Mapping[str, Any], kernel: Sequence[int]) -> dict[str, Any]:
    """Return the attributes of a convolution or a pooling, all that has a default stated."""
    dims = len(kernel)
    full = {
        "strides": [1] * dims,
        "dilations": [1] * dims,
        "pads": [0] * 2 * dims,
        "group": 1,
        **attributes,
        "kernel_shape": list(kernel),
    }
    if _text(full.get("auto_pad", "NOTSET")) in _EXPLICIT:
        full.pop("auto_pad", None)
    full.pop("storage_order", None)  # of the indices, which no network here reads
    return full


def _read(op: str, attributes: Mapping[str, Any], weight_shape: tuple[int, ...]) -> AffineLayer:
    unknown = sorted(set(attributes) - _ATTRIBUTES[op])
    _check(not unknown, f"unknown attributes {unknown}")  # 1
    rank = len(weight_shape)
    if op in ("Gemm", "MatMul"):
        _check(rank == 2, f"a weight of rank {rank} is no matrix")  # 3
        return AffineLayer(
            op=op,
            weight_shape=weight_shape,
            shape=LayerShape(transposed=not attributes.get("transB", 0)),
            # ONNX holds them in float32.
            alpha=float(np.float32(attributes.get("alpha", 1.0))),
            beta=float(np.float32(attributes.get("beta", 1.0))),
            reads_columns=bool(attributes.get("transA", 0)),
        )
    _check(rank > 2, f"a weight of rank {rank} is no kernel")  # 3
    kernel, auto_pad = weight_shape[2:], _text(attributes.get("auto_pad", "NOTSET"))
    full = window_attributes(attributes, kernel)
    groups, stated = full["group"], tuple(attributes.get("kernel_shape", kernel))
    strides, dilations, pads = (tuple(full[name]) for name in ("strides", "dilations", "pads"))
    dims = len(kernel)
    # 2
    _check(auto_pad in (*_EXPLICIT, *_SAME), f"unknown auto_pad {auto_pad!r}")
    _check(auto_pad == "NOTSET" or not any(pads), f"pads {pads} beside auto_pad {auto_pad}")
    _check(groups > 0 and weight_shape[0] % groups == 0, f"group {groups} of {weight_shape[0]}")
    _check(stated == kernel, f"kernel_shape {stated} of a weight of shape {weight_shape}")
    _check(len(strides) == dims and min(strides) > 0, f"strides {strides}")
    _check(len(dilations) == dims and min(dilations) > 0, f"dilations {dilations}")
    _check(len(pads) == 2 * dims and min(pads) >= 0, f"pads {pads}")
    return AffineLayer(
        op=op,
        weight_shape=weight_shape,
        shape=LayerShape(groups=groups, transposed=op == "ConvTranspose"),
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad if auto_pad in _SAME else "NOTSET",
    )


def _check(is_right: bool, what: str) -> None:
    if not is_right:
        raise ValueError(what)


def _value(attribute: "onnx.AttributeProto") -> Any:
    """Return an attribute's value, by the type codes of onnx.proto3."""
    field = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints"}.get(attribute.type)
    value = attribute if field is None else getattr(attribute, field)
    return _text(value) if isinstance(value, bytes) else value


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
