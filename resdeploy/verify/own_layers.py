"""The affine layers of a model as it stands, each with its own numbers, to be run one by one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import Array, is_affine, read_node
from resdeploy.verify.compare_structure import Affine
from resdeploy.verify.normal.builder import Known
from resdeploy.verify.normal.layers import (
    batchnorm_numbers,
    linear_affine,
    window_affine,
)
from resdeploy.verify.normal.reading import Operator, known_of

__all__ = ["OwnLayer", "own_layers"]

_IMAGE_RANK = 4
# Of scale and shift: var + eps, square root, division; mean * scale and the difference.
_ROUNDINGS_OF_BATCHNORM = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnLayer:
    """An affine layer of a model.

    Attributes:
        name: as the model calls it.
        op: Conv, ConvTranspose, BatchNormalization, Sub of a constant per channel, or `Linear` for
            every matrix product, with the constant that is added to it.
        affine: its numbers.
        reads: the name of the value it reads.
        writes: the name of the value it computes.
    """

    name: str
    op: str
    affine: Affine
    reads: str
    writes: str


def own_layers(model: onnx.ModelProto) -> tuple[OwnLayer, ...]:
    """Return the layers of the graph whose numbers are constants; others are left out."""
    return tuple(_Layers(model).found.values())


class _Layers:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.found: dict[str, OwnLayer] = {}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._constants: dict[str, Known] = {}
        self._readers = Counter(name for node in model.graph.node for name in node.input)
        self._readers.update(value.name for value in model.graph.output)
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                array = onnx.numpy_helper.to_array(node.attribute[0].t)
                self._constants[node.output[0]] = known_of(array)
            elif node.op_type == "Identity" and (known := self._known(node.input[0])):
                self._constants[node.output[0]] = known
            elif node.op_type == "Add" and self._extended(node):
                pass
            elif node.input and self._known(node.input[0]) is None:
                self._take(node)

    def affine(self, node: onnx.NodeProto, weight: Known, bias: Array, num_products: int) -> Affine:
        return Affine(
            weight=weight.values,
            bias=np.asarray(bias, np.float64),
            dtype=weight.dtype,
            num_products=num_products,
            bias_magnitude=np.abs(bias),
        )

    def _known(self, name: str) -> Known | None:
        if name in self._initializers and name not in self._constants:
            array = onnx.numpy_helper.to_array(self._initializers[name])
            self._constants[name] = known_of(array)
        return self._constants.get(name)

    def _take(self, node: onnx.NodeProto) -> None:
        attributes: Mapping[str, Any] = {
            a.name: onnx.helper.get_attribute_value(a) for a in node.attribute
        }
        operands: Sequence[Known | None] = [self._known(name) for name in node.input]
        if len(operands) < 2 or any(
            n and k is None for n, k in zip(node.input[1:], operands[1:], strict=True)
        ):
            return
        op = Operator(node, attributes, operands)
        affine = self._numbers(node, op, operands[1])
        if affine is not None:
            is_product = node.op_type in ("Gemm", "MatMul")
            self.found[node.output[0]] = OwnLayer(
                name=node.name or node.output[0],
                op="Linear" if is_product else node.op_type,
                affine=affine,
                reads=node.input[0],
                writes=node.output[0],
            )

    def _numbers(self, node: onnx.NodeProto, op: Operator, first: Known | None) -> Affine | None:
        if first is None or not first.is_float:
            return None
        if node.op_type == "BatchNormalization" and not op.flag("training_mode"):
            scale, shift, magnitude = batchnorm_numbers(op)
            return _diagonal(scale, shift, magnitude, first, _ROUNDINGS_OF_BATCHNORM)
        if node.op_type == "Sub":
            values = first.values
            if values.ndim != _IMAGE_RANK or values.size != values.shape[1]:
                return None
            shift = -values.reshape(-1)
            return _diagonal(np.ones_like(shift), shift, np.abs(shift), first, 1)
        if not is_affine(node) or (node.op_type == "MatMul" and first.values.ndim != 2):
            return None
        try:
            layer = read_node(node, first.values.shape)
        except UnsupportedModelError:
            return None
        if not layer.is_linear:
            return window_affine(self, op, layer)
        return None if layer.reads_columns else linear_affine(self, op, layer)

    def _extended(self, node: onnx.NodeProto) -> bool:
        """Take an Add of a constant to a product that nothing else reads: its bias."""
        for data, constant in ((0, 1), (1, 0)):
            layer = self.found.get(node.input[data])
            added = self._known(node.input[constant])
            if layer is None or added is None or self._readers[layer.writes] != 1:
                continue
            size = added.values.size
            if layer.op != "Linear" or size not in (1, len(layer.affine.bias)):
                continue
            if added.values.ndim and added.values.shape[-1] != size:
                continue  # one for each row, not for each output
            bias = layer.affine.bias + added.values.reshape(-1)
            magnitude = np.maximum(np.abs(bias), layer.affine.bias_magnitude)
            affine = replace(layer.affine, bias=bias, bias_magnitude=magnitude)
            del self.found[layer.writes]
            self.found[node.output[0]] = replace(layer, affine=affine, writes=node.output[0])
            return True
        return False


def _diagonal(
    scale: Array, shift: Array, magnitude: Array, first: Known, num_products: int
) -> Affine:
    weight, bias, size = (a.astype(np.float64) for a in (scale, shift, magnitude))
    return Affine(
        weight=weight,
        bias=bias,
        dtype=first.dtype,
        num_products=num_products,
        bias_magnitude=size,
    )
