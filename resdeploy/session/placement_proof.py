"""Proof of placement: every kernel that computes belongs to the requested provider.

Two witnesses, each of which misses something. The plan (the provider of each node) is made before
the runtime fuses nodes and inserts copies; the profile of one run shows the kernels that really
ran, under names of the runtime's making. Both must agree.

A node elsewhere is allowed only if its operator describes or arranges values and computes none:
runtimes keep those with the shapes they work on. Everything else fails, unknown operators included,
for a list of heavy ones would be out of date with the next runtime.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from resdeploy.schema.sessions import Placement

__all__ = ["Kernel", "count_by_provider", "judge_placement"]

# None of them rounds: an output element is an input element, a dimension or a constant. Cast is
# not here, as it may round, and neither is arithmetic on shapes, which looks like any other.
_ARRANGING = frozenset(
    {
        *("Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity"),
        *("Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)

# Inserted by the runtime where a tensor changes device. Their provider is the device's, in
# either direction.
_COPIES = frozenset({"MemcpyFromHost", "MemcpyToHost"})

_NUM_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A node of a plan or a kernel of a run: its name (maybe ""), operator and provider."""

    name: str
    op: str
    provider: str

    def __str__(self) -> str:
        what = f"{self.name} ({self.op})" if self.name else self.op
        return f"{what} on {self.provider}"


def count_by_provider(kernels: Iterable[Kernel]) -> dict[str, int]:
    """Return the number of kernels of each provider, in the order of appearance."""
    return dict(Counter(kernel.provider for kernel in kernels))


def judge_placement(
    asked: str, *, planned: Sequence[Kernel] | None, executed: Sequence[Kernel]
) -> Placement:
    """Return the verdict on the placement of a model.

    Args:
        asked: the runtime's name for the requested provider.
        planned: the nodes of the graph; None where the runtime cannot tell.
        executed: the kernels of one run.
    """
    computing = [kernel for kernel in executed if kernel.op not in _COPIES]
    reasons = []
    if not any(kernel.provider == asked for kernel in computing):
        reasons.append(f"no kernel of {asked} ran")
    elsewhere = []
    for what, kernels in (("planned", planned or ()), ("ran", computing)):
        strays = [kernel for kernel in kernels if kernel.provider != asked]
        elsewhere += strays
        if wrong := [kernel for kernel in strays if kernel.op not in _ARRANGING]:
            more = f" and {len(wrong) - _NUM_SHOWN} more" if len(wrong) > _NUM_SHOWN else ""
            reasons.append(f"{what} elsewhere: {', '.join(map(str, wrong[:_NUM_SHOWN]))}{more}")
    return Placement(
        planned=None if planned is None else count_by_provider(planned),
        executed=count_by_provider(computing),
        num_copies=len(executed) - len(computing),
        strays=tuple(dict.fromkeys(map(str, elsewhere))),
        reasons=tuple(reasons),
    )
