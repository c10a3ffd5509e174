"""What the affine layers look like in ATen, and how a node is described to a user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from resdeploy.algebra import LayerShape
from resdeploy.host.trace_refusals import module_path

__all__ = ["Layer", "as_layer", "describe", "is_addition", "node_shape"]

aten = torch.ops.aten


@dataclass(frozen=True)
class _Kind:
    """A kind of layer: its name, where its arguments stand, its layout.

    `groups_at` is None for matrix products, whose features are the last axis.
    """

    name: str
    groups_at: int | None = None
    transposed: bool = False
    input_at: int = 0
    weight_at: int = 1
    bias_at: int | None = 2


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
    aten.matmul.default: _Kind("matmul", transposed=True, bias_at=None),
    aten.mm.default: _Kind("mm", transposed=True, bias_at=None),
    aten.addmm.default: _Kind("addmm", transposed=True, input_at=1, weight_at=2, bias_at=0),
}


@dataclass(frozen=True)
class Layer:
    """One call of an affine layer.

    Attributes:
        node: the call.
        op: its kind, as in `conv2d`.
        is_linear: whether its features are the last axis rather than axis 1.
        shape: how its weight is laid out.
        input_at: where the value it reads stands among its arguments.
        weight: its weight.
        bias: its bias, if it has one.
        product_factor: what its product is multiplied by (addmm's alpha).
        bias_factor: what its bias is multiplied by (addmm's beta).
    """

    node: fx.Node
    op: str
    is_linear: bool
    shape: LayerShape
    input_at: int
    weight: fx.Node
    bias: fx.Node | None
    product_factor: float = 1.0
    bias_factor: float = 1.0

    @property
    def input(self) -> fx.Node:
        """The value it reads in the graph as it is now."""
        return self.node.args[self.input_at]  # type: ignore[return-value]

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

    def rewrite(self, weight: fx.Node, bias: fx.Node) -> None:
        """Give the call a new weight, laid out as `stored_weight` makes it, and a new bias."""
        if self.is_linear:  # matrix products have no place for a bias
            self.node.target = aten.linear.default
            self.node.args, self.node.kwargs = (self.input, weight, bias), {}
        else:
            self.node.args = (self.input, weight, bias, *self.node.args[3:])

    def stored_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a new weight of the layer's own layout as `rewrite` takes it."""
        return weight.T.contiguous() if self.is_linear and self.shape.transposed else weight


def as_layer(node: fx.Node) -> Layer | None:
    """Return `node` as a layer, or None if it is something else."""
    kind = _KINDS.get(node.target) if node.op == "call_function" else None
    if kind is None:
        return None
    arguments: Sequence[Any] = node.args
    weight = arguments[kind.weight_at]
    has_bias = kind.bias_at is not None and len(arguments) > kind.bias_at
    bias = arguments[kind.bias_at] if has_bias and kind.bias_at is not None else None
    is_linear = kind.groups_at is None
    if is_linear and kind.transposed:
        plain_bias = bias is None or len(node_shape(bias)) == 1
        if len(node_shape(weight)) != 2 or not plain_bias:
            return None
    groups = 1
    if kind.groups_at is not None and len(arguments) > kind.groups_at:
        groups = int(arguments[kind.groups_at])
    return Layer(
        node=node,
        op=kind.name,
        is_linear=is_linear,
        shape=LayerShape(groups=groups, transposed=kind.transposed),
        input_at=kind.input_at,
        weight=weight,
        bias=bias,
        product_factor=float(node.kwargs.get("alpha", 1)),  # type: ignore[arg-type]
        bias_factor=float(node.kwargs.get("beta", 1)),  # type: ignore[arg-type]
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
