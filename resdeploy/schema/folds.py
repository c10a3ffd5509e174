"""What a fold did and what it refused."""

from typing import Literal

from resdeploy.schema.codec import Record, record
from resdeploy.schema.verdicts import Comparison

__all__ = ["FoldReport", "FoldedSite", "RefusedSite"]


@record
class FoldedSite(Record):
    """A BatchNorm that is now part of a layer before or after it.

    Attributes:
        site: the BatchNorm's name in the model.
        producer: the name of the layer it went into; of several, joined by ", ".
        op: that layer's operator.
        max_ulp: largest distance of a folded weight or bias from its exact value, in units in the
            last place of the stored type.
        num_flushed: folded values that were subnormal and became zero.
        num_consumers: how many read the value that the BatchNorm read, itself among them.
        norm: "batch", or "layer" where only the affine part of a LayerNorm was folded: it stays,
            with a scale of one and a shift of zero.
    """

    site: str
    producer: str
    op: str
    max_ulp: float
    num_flushed: int = 0
    num_consumers: int = 1
    norm: Literal["batch", "layer"] = "batch"


@record
class RefusedSite(Record):
    """A BatchNorm (or, where asked for, a LayerNorm's affine part) that stays, and why.

    Attributes:
        site: its name in the model.
        reason: what stands in the way.
        num_consumers: how many readers its input has, itself among them.
    """

    site: str
    reason: str
    num_consumers: int = 1


@record
class FoldReport(Record):
    """What was folded and what was refused, in the order of the graph.

    `comparison` judges the folded model against the model in float64, where that was done;
    `not_judged` says why it was not, where it was to be done.
    """

    folded: tuple[FoldedSite, ...] = ()
    refused: tuple[RefusedSite, ...] = ()
    comparison: "Comparison | None" = None
    not_judged: str | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing that was to be folded is left."""
        return not self.refused
