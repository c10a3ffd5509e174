"""The affine layers of ATen: the places of inputs and weights among the arguments of a call."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from resdeploy.export.trace_refusals import module_path

__all__ = ["Layer", "as_layer", "describe"]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A kind of layer.

    Attributes:
        is_linear: whether its features are the last axis rather than axis 1.
        is_transposed: whether its weight has its inputs on the first axis.
        input_at: the place of its input.
        weight_at: the place of its weight.
        bias_at: the place of its bias, if it has one.
        groups: of a convolution.
    """

    is_linear: bool = False
    is_transposed: bool = False
    input_at: int = 0
    weight_at: int = 1
    bias_at: int | None = 2
    groups: int = 1


_CONVOLUTION, _TRANSPOSED = Layer(), Layer(is_transposed=True)
_PRODUCT = Layer(is_linear=True, is_transposed=True, bias_at=None)
_GROUPS_AT = 6

_KINDS: Mapping[Any, Layer] = {
    **dict.fromkeys((aten.conv1d.default, aten.conv1d.padding), _CONVOLUTION),
    **dict.fromkeys((aten.conv2d.default, aten.conv2d.padding), _CONVOLUTION),
    **dict.fromkeys((aten.conv3d.default, aten.conv3d.padding), _CONVOLUTION),
    aten.conv_transpose1d.default: _TRANSPOSED,
    aten.conv_transpose2d.input: _TRANSPOSED,
    aten.conv_transpose3d.input: _TRANSPOSED,
    aten.linear.default: Layer(is_linear=True),
    **dict.fromkeys((aten.matmul.default, aten.mm.default), _PRODUCT),
    aten.addmm.default: Layer(
        is_linear=True, is_transposed=True, input_at=1, weight_at=2, bias_at=0
    ),
}


def as_layer(node: fx.Node) -> Layer | None:
    """Return `node` as a layer, or None if it is something else."""
    kind = _KINDS.get(node.target) if node.op == "call_function" else None
    if kind is None:
        return None
    arguments: Any = node.args
    bias_at = kind.bias_at
    if bias_at is not None and (len(arguments) <= bias_at or arguments[bias_at] is None):
        bias_at = None
    if kind.is_linear and kind.is_transposed:
        is_plain = bias_at is None or arguments[bias_at].meta["val"].ndim == 1
        if arguments[kind.weight_at].meta["val"].ndim != 2 or not is_plain:
            return None
    has_groups = not kind.is_linear and len(arguments) > _GROUPS_AT
    return replace(kind, bias_at=bias_at, groups=int(arguments[_GROUPS_AT]) if has_groups else 1)


def describe(node: fx.Node) -> str:
    """Return a node by the name of its module and its operator, as a user would recognise it."""
    path = module_path(node)
    if node.op == "placeholder":
        return f"the model's input `{node.name}`"
    return f"`{path}` ({node.name})" if path else f"`{node.name}`"
