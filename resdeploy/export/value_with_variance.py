"""Values with the variance of their rounding error, and a call that reads them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.aten_layers import describe
from resdeploy.export.trace_refusals import operator_name

__all__ = [
    "REACH",
    "NoisyCall",
    "Rule",
    "ValueWithVariance",
    "any_noisy",
    "by_channel",
    "unknown_variance",
    "value_of",
    "variance_of",
]

# The reach of an error, in standard deviations.
REACH = 4.0


@dataclass(frozen=True, slots=True)
class ValueWithVariance:
    """A value and the variance of its rounding error, in units of u^2.

    `mean_variance_NC` is that of the error's mean over all positions, axes 2 and on; None where it
    is not known, and the errors may then all be the same.
    """

    value: torch.Tensor
    variance: torch.Tensor
    mean_variance_NC: torch.Tensor | None = None

    @property
    def num_positions(self) -> int:
        """The number of positions of a channel."""
        return math.prod(self.value.shape[2:])

    @property
    def of_mean(self) -> torch.Tensor:
        """The variance of the mean error of each channel, at most (mean sigma)^2: (N, C)."""
        if self.mean_variance_NC is not None:
            return self.mean_variance_NC
        return by_channel(self.variance.sqrt()).square()

    @property
    def if_independent(self) -> torch.Tensor:
        """The same if no two positions shared an error."""
        return by_channel(self.variance) / self.num_positions


@dataclass(frozen=True, slots=True)
class NoisyCall:
    """One call with the values it reads."""

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    unit_roundoff: float

    @property
    def target(self) -> Any:
        """The operator, as a function."""
        return self.node.target

    @property
    def x(self) -> ValueWithVariance:
        """The first argument, which must be noisy."""
        first = self.args[0]
        if not isinstance(first, ValueWithVariance):
            raise unknown_variance(self.node)
        return first

    def on(self, x: Any) -> Any:
        """Return the result of the call on another first argument."""
        return self.target(x, *self.args[1:], **self.kwargs)

    def argument(self, at: int, name: str, default: Any) -> Any:
        """Return an argument that may be given by place or by name."""
        return self.args[at] if len(self.args) > at else self.kwargs.get(name, default)


Rule = Callable[[NoisyCall], Any]


def by_channel(values: torch.Tensor) -> torch.Tensor:
    """Return the mean over all positions: (N, C)."""
    return values.flatten(2).mean(2) if values.ndim > 2 else values


def value_of(operand: Any) -> Any:
    """Return an operand without its variance."""
    return operand.value if isinstance(operand, ValueWithVariance) else operand


def variance_of(operand: Any) -> Any:
    """Return an operand's variance; a constant has none."""
    if isinstance(operand, ValueWithVariance):
        return operand.variance
    return torch.zeros_like(operand) if isinstance(operand, torch.Tensor) else 0.0


def any_noisy(arguments: Any) -> bool:
    """True if some argument, at any depth, is noisy."""
    found = []
    fx.node.map_aggregate(arguments, lambda leaf: found.append(isinstance(leaf, ValueWithVariance)))
    return any(found)


def unknown_variance(node: fx.Node) -> UnsupportedModelError:
    """Return the refusal of a call without a rule."""
    return UnsupportedModelError(
        f"The rounding variance of {operator_name(node)} is not known.",
        where=describe(node),
        fix="judge by the noise ratio R alone, which needs none",
    )
