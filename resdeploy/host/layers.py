"""What the affine layers look like in ATen, and how a node is described to a user."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from resdeploy.algebra import LayerShape
from resdeploy.host.trace import module_path

__all__ = ["Layer", "as_layer", "describe", "is_addition", "node_shape"]

aten = torch.ops.aten


@dataclass(frozen=True)
class _Kind:
    """A kind of layer: its name, where `groups` stands among its arguments, its layout."""

    name: str
    groups_at: int | None = None
    transposed: bool = False

    @property
    def is_linear(self) -> bool:
        return self.groups_at is None


_KINDS: Mapping[Any, _Kind] = {
    aten.conv1d.default: _Kind("conv1d", 6),
    aten.conv2d.default: _Kind("conv2d", 6),
    aten.conv3d.default: _Kind("conv3d", 6),
    aten.conv1d.padding: _Kind("conv1d", 6),
    aten.conv2d.padding: _Kind("conv2d", 6),
    aten.conv3d.padding: _Kind("conv3d", 6),
    aten.conv_transpose1d.default: _Kind("conv_transpose1d", 6, transposed=True),
    aten.conv_transpose2d.input: _Kind("conv_transpose2d", 6, transposed=True),
    aten.conv_transpose3d.input: _Kind("conv_transpose3d", 6, transposed=True),
    aten.linear.default: _Kind("linear"),
}


@dataclass(frozen=True)
class Layer:
    """One call of an affine layer.

    Attributes:
        node: the call.
        op: its kind, as in `conv2d`.
        is_linear: whether its features are the last axis rather than axis 1.
        shape: how its weight is laid out.
    """

    node: fx.Node
    op: str
    is_linear: bool
    shape: LayerShape

    @property
    def input(self) -> fx.Node:
        """The value it reads."""
        return self.node.args[0]  # type: ignore[return-value]

    @property
    def weight(self) -> fx.Node:
        """Its weight."""
        return self.node.args[1]  # type: ignore[return-value]

    @property
    def bias(self) -> fx.Node | None:
        """Its bias, if it has one."""
        return self.node.args[2] if len(self.node.args) > 2 else None  # type: ignore[return-value]

    @property
    def pads_with_zeros(self) -> bool:
        """Whether some of its outputs see zeros from outside its input."""
        if self.is_linear:
            return False
        if self.shape.transposed:  # at a border fewer taps meet an input, which has the same effect
            return True
        padding = self.node.args[4] if len(self.node.args) > 4 else 0
        if padding == "same":
            kernel = node_shape(self.weight)[2:]
            return any(size != 1 for size in kernel)
        if padding == "valid":
            return False
        return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def as_layer(node: fx.Node) -> Layer | None:
    """Return `node` as a layer, or None if it is something else."""
    kind = _KINDS.get(node.target) if node.op == "call_function" else None
    if kind is None:
        return None
    groups = 1
    if kind.groups_at is not None and len(node.args) > kind.groups_at:
        groups = int(node.args[kind.groups_at])  # type: ignore[arg-type]
    return Layer(
        node, kind.name, kind.is_linear, LayerShape(groups=groups, transposed=kind.transposed)
    )


def describe(node: fx.Node) -> str:
    """Return a node by the name of its module and its operator, as a user would recognise it."""
    path = module_path(node)
    if node.op == "placeholder":
        return f"the model's input `{node.name}`"
    return f"`{path}` ({node.name})" if path else f"`{node.name}`"


def is_addition(node: fx.Node) -> bool:
    """Whether a node adds two tensors, as at the end of a residual block."""
    return node.target in (aten.add.Tensor, aten.add_.Tensor)


def node_shape(node: fx.Node) -> tuple[Any, ...]:
    """Return the shape of a node's value; a dimension that varies is symbolic, not an int."""
    return tuple(node.meta["val"].shape)
