"""A correct model to plant faults in, and a copy of it under change.

Weights are (O, I/G, *K), as those of a convolution, however a layer stores them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import numpy_helper

from resdeploy.fold import algebra
from resdeploy.graph.affine_layer import Array, is_affine, read_node
from resdeploy.graph.onnx_file import copy_of

__all__ = ["Array", "Edit", "Fault", "UnfoldedLayer", "Workpiece", "in_one_layer"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnfoldedLayer:
    """A layer of the model as it was before its BatchNorm was folded into it.

    Attributes:
        node: its name in the exported graph.
        weight: (O, I/G, *K), before the fold.
        bias: (O,), or None.
        bn: the BatchNorm.
    """

    node: str
    weight: Array
    bias: Array | None
    bn: algebra.BatchNormParams


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workpiece:
    """A correct model to plant faults in.

    Attributes:
        model: as exported.
        layers: its folded layers, in order; empty if nothing was folded.
    """

    model: onnx.ModelProto
    layers: tuple[UnfoldedLayer, ...]

    @property
    def target(self) -> UnfoldedLayer | None:
        """The layer that faults of a single layer go into: the one in the middle."""
        return self.layers[len(self.layers) // 2] if self.layers else None

    @property
    def input_shape(self) -> list[int]:
        """The shape of the model's input, 0 where a size is open."""
        return [d.dim_value for d in self.model.graph.input[0].type.tensor_type.shape.dim]


class Edit:
    """A copy of a model under change."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = copy_of(model)
        self.graph = self.model.graph
        self._initializers = {tensor.name: tensor for tensor in self.graph.initializer}

    def node(self, name: str) -> onnx.NodeProto:
        """Return the node of that name."""
        found: onnx.NodeProto = next(node for node in self.graph.node if node.name == name)
        return found

    def array(self, name: str) -> Array:
        """Return a copy of an initializer."""
        return numpy_helper.to_array(self._initializers[name]).copy()

    def set(self, name: str, array: Array) -> None:
        """Give an initializer other values, in its own type."""
        dtype = numpy_helper.to_array(self._initializers[name]).dtype
        with np.errstate(over="ignore"):
            tensor = numpy_helper.from_array(np.ascontiguousarray(array, dtype), name)
        self._initializers[name].CopyFrom(tensor)

    def weight(self, node: onnx.NodeProto) -> Array:
        """Return a copy of a layer's weight, (O, I/G, *K)."""
        stored = self.array(node.input[1])
        return read_node(node, stored.shape).by_output(stored).copy()

    def set_weight(self, node: onnx.NodeProto, weight: Array) -> None:
        """Give a layer, and all that share its weight, another."""
        layer = read_node(node, self.array(node.input[1]).shape)
        self.set(node.input[1], layer.as_stored(weight))

    def set_layer(self, name: str, weight: Array, bias: Array) -> None:
        """Give a layer other weights and biases."""
        node = self.node(name)
        self._part(node, 1)
        self._part(node, 2)
        self.set_weight(node, weight)
        self.set(node.input[2], bias)

    def _part(self, node: onnx.NodeProto, at: int) -> None:
        """Give a node an initializer of its own: equal biases of layers are stored once."""
        name = node.input[at]
        if sum(list(n.input).count(name) for n in self.graph.node) == 1:
            return
        own = self.graph.initializer.add()
        own.CopyFrom(self._initializers[name])
        own.name = f"{name} of {node.name}"
        self._initializers[own.name] = own
        node.input[at] = own.name

    def affine_nodes(self) -> Iterator[onnx.NodeProto]:
        """Yield the layers whose weights are initializers."""
        for node in self.graph.node:
            if is_affine(node) and node.input[1] in self._initializers:
                yield node

    def redirect(self, old: str, new: str) -> None:
        """Let the readers of one tensor read another."""
        for reader in self.graph.node:
            for k, name in enumerate(reader.input):
                if name == old:
                    reader.input[k] = new

    def insert_before(self, reader: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> None:
        """Put nodes in front of another."""
        place = list(self.graph.node).index(reader)
        for offset, node in enumerate(nodes):
            self.graph.node.insert(place + offset, node)

    def first(self, *operators: str) -> onnx.NodeProto | None:
        """Return the one in the middle of the nodes of these kinds."""
        found = [node for node in self.graph.node if node.op_type in operators]
        return found[len(found) // 2] if found else None


# Changes a folded weight (O, I/G, *K) and bias (O,) in place, given the layer before its fold.
Change = Callable[[Array, Array, UnfoldedLayer], None]


def _change_target(change: Change, work: Workpiece) -> onnx.ModelProto | None:
    """Change the folded weight and bias of the target."""
    target = work.target
    if target is None:
        return None
    edit = Edit(work.model)
    node = edit.node(target.node)
    before = edit.weight(node), edit.array(node.input[2])
    weight, bias = (array.copy() for array in before)
    change(weight, bias, target)
    if np.array_equal(weight, before[0]) and np.array_equal(bias, before[1]):
        return None  # in this network it makes no difference
    edit.set_layer(target.node, weight, bias)
    return edit.model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fault:
    """A kind of fault.

    Attributes:
        name: a description.
        plant: makes a faulty model, or None where the network has no such thing.
        single_layer: whether it sits in the target alone, which then has to be named.
    """

    name: str
    plant: Callable[[Workpiece], onnx.ModelProto | None]
    single_layer: bool = False


def in_one_layer(name: str, change: Change) -> Fault:
    """Return the fault that changes the target's folded weight and bias."""
    return Fault(name=name, plant=partial(_change_target, change), single_layer=True)
