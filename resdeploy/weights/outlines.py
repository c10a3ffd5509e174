"""The outlines of the architectures' weights: what a file must have before a network is built.

Building every architecture to compare it takes seconds. `outlines.json` has, of each with its
default options, what no search needs the network for; a test holds it to the networks.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from resdeploy.weights.naming import View

__all__ = ["COUNTER", "Outline", "blocks_in", "known_outlines", "outline_of"]

COUNTER = "num_batches_tracked"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Names and sizes of an architecture's weights, in short.

    The trunk is all but the last layer, without counters of batches.

    Attributes:
        anchor: the name of the first weight.
        modules: the trunk's, by the first part of their names.
        blocks: how many numbered blocks each stage has; no option changes it.
        num_tensors: of the trunk.
        num_values: of the trunk; None where the number of classes changes more than one layer.
    """

    anchor: str
    modules: tuple[str, ...]
    blocks: Mapping[str, int]
    num_tensors: int
    num_values: int | None

    def is_near(self, view: View) -> bool:
        """Test for the same numbered blocks and most of the modules; options replace a few."""
        there = {name.partition(".")[0] for name in view.names}
        num_shared = len(there.intersection(self.modules))
        return 2 * num_shared > len(self.modules) and blocks_in(view.names) == self.blocks

    def has_names_of(self, view: View) -> bool:
        """Test for at least as many weights in the trunk, which other options may add to."""
        return len(self._trunk_in(view)) >= self.num_tensors

    def has_sizes_of(self, view: View, shapes: Shapes) -> bool:
        """Test for the same number of weights, and of values, in the trunk."""
        trunk = self._trunk_in(view)
        num_values = sum(math.prod(shapes[full]) for full in trunk)
        return len(trunk) == self.num_tensors and self.num_values in (None, num_values)

    def _trunk_in(self, view: View) -> list[str]:
        return [
            full
            for name, full in view.names.items()
            if name.partition(".")[0] in self.modules and not name.endswith(COUNTER)
        ]


@functools.cache
def known_outlines() -> Mapping[str, Outline]:
    """Return the outline of each architecture with its default options, by name."""
    rows = json.loads(Path(__file__).with_name("outlines.json").read_text(encoding="utf-8"))
    return {
        name: Outline(**{**row, "modules": tuple(row["modules"])}) for name, row in rows.items()
    }


def outline_of(shapes: Shapes, last: str) -> Outline:
    """Return the outline of weights, of which `last` is the prefix of the last layer, or ""."""
    trunk = {
        name: shape
        for name, shape in shapes.items()
        if not name.endswith(COUNTER) and not (last and name.startswith(last))
    }
    return Outline(
        anchor=next(iter(shapes)),
        modules=tuple(sorted({name.partition(".")[0] for name in trunk})),
        blocks=blocks_in(shapes),
        num_tensors=len(trunk),
        num_values=sum(map(math.prod, trunk.values())) if last else None,
    )


def blocks_in(names: Iterable[str]) -> Mapping[str, int]:
    """Return how many numbered blocks, `layer1.0`, `layer1.1`, …, each stage has."""
    parts = (name.split(".") for name in names)
    blocks = {(p[0], p[1]) for p in parts if len(p) > 3 and p[1].isdecimal()}
    return dict(sorted(Counter(stage for stage, _ in blocks).items()))
