"""A node of a model as the rules read it, and what they may ask of the model.

A rule takes a node whose constants are known and returns the values it computes. What it says of
shapes, defaults and corners is the specification's, for every opset; what a rule does not know it
refuses by name, and the network is then not proved.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import Array
from resdeploy.verify.compare_structure import Affine, Numbers
from resdeploy.verify.normal.builder import FLOATS, Builder, Known, Tensor, Value
from resdeploy.verify.normal.dims import Size

__all__ = ["Layers", "Operator", "Reading", "Rule", "known_of"]


class Layers(Protocol):
    """A maker of the numbers of a layer."""

    def affine(self, node: onnx.NodeProto, weight: Known, bias: Array, num_products: int) -> Affine:
        """Return the numbers of a layer."""


class Reading(Layers, Protocol):
    """The model behind a node, as far as a rule may ask."""

    build: Builder
    opset: int

    def numbers(self, known: Known) -> Numbers:
        """Return constants to be compared within their roundings."""

    def is_read_once(self, name: str) -> bool:
        """True for a value with a single reader."""

    def exact_cast(self, dtype: str) -> bool:
        """True for a type of float to which the claimed arithmetic may round."""


Rule = Callable[[Reading, "Operator"], Sequence[Value]]


class Operator:
    """A node with its operands looked up.

    Attributes:
        node: of the model.
        attributes: with those of the specification where the node states none.
        operands: None for one left out.
    """

    def __init__(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any], operands: Sequence[Value | None]
    ) -> None:
        self.node, self.attributes, self.operands = node, dict(attributes), list(operands)

    def refuse(self, why: str) -> UnsupportedModelError:
        """Return the error of a corner that is not understood."""
        return UnsupportedModelError(
            f"{self.node.op_type} {why}", where=self.node.name or self.node.output[0]
        )

    def tensor(self, which: int = 0) -> Tensor:
        """Return an operand that must depend on the inputs."""
        value = self.at(which)
        if not isinstance(value, Tensor):
            raise self.refuse(f"has a constant as operand {which}")
        return value

    def at(self, which: int) -> Value | None:
        """Return an operand; None for one left out."""
        return self.operands[which] if which < len(self.operands) else None

    def known(self, which: int) -> Known | None:
        """Return an operand that must be constant or left out."""
        value = self.at(which)
        if isinstance(value, Tensor):
            raise self.refuse(f"has operand {which} computed from the values of the input")
        return value

    def ints(self, which: int, attribute: str | None = None) -> list[Size] | None:
        """Return integers that are an operand, or an attribute in older opsets."""
        if attribute is not None and attribute in self.attributes:
            found = self.attributes[attribute]
            return [found] if isinstance(found, int) else list(found)
        known = self.known(which)
        return None if known is None else [_size(v) for v in known.values.ravel().tolist()]

    def closed_ints(self, which: int, attribute: str | None = None) -> list[int] | None:
        """Return integers that must not depend on open sizes."""
        found = self.ints(which, attribute)
        closed = None if found is None else [v for v in found if isinstance(v, int)]
        if found is not None and len(closed or ()) != len(found):
            raise self.refuse("depends on an open size")
        return closed

    def flag(self, name: str, default: int = 0) -> int:
        """Return an attribute that is an integer."""
        return int(self.attributes.get(name, default))

    def string(self, name: str, default: str = "") -> str:
        """Return an attribute that is text."""
        value = self.attributes.get(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def given(self) -> list[Value]:
        """Return all operands, none of which may be left out."""
        if any(value is None for value in self.operands):
            raise self.refuse("lacks an operand")
        return [value for value in self.operands if value is not None]

    @property
    def num_outputs(self) -> int:
        """Number of values that the node computes for others."""
        return sum(map(bool, self.node.output))


def _size(value: Any) -> Size:
    return int(value) if isinstance(value, int | float | np.integer | bool) else value


def known_of(array: Array, dtype: str | None = None) -> Known:
    """Return a constant, floats in float64."""
    kind = dtype or array.dtype.name
    values = array.astype(np.float64) if kind in FLOATS else np.asarray(array)
    return Known(values=values, dtype=kind)
