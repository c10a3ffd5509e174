"""Folds and refusals."""

from typing import Literal

from resdeploy.schema.codec import Record, record
from resdeploy.schema.verdicts import Comparison


@record
class FoldedSite(Record):
    """A BatchNorm that is now part of a layer before or after it.

    Attributes:
        producer: the name of the layer it went into; of several, joined by ", ".
        op: that layer's operator.
        max_ulp: largest distance of a folded weight or bias from its exact value, in units in the
            last place of the stored type.
        num_flushed: folded weights that were subnormal, change no output, and became zero.
        num_consumers: readers of the BatchNorm's input, itself among them.
        norm: "layer" where only the affine part of a LayerNorm was folded: it stays, with a scale
            of one and a shift of zero.
        keeps_shift: True if its scale alone was folded, and an Add of a constant holds its shift.
    """

    site: str
    producer: str
    op: str
    max_ulp: float
    num_flushed: int = 0
    num_consumers: int = 1
    norm: Literal["batch", "layer"] = "batch"
    keeps_shift: bool = False


@record
class RefusedSite(Record):
    """A BatchNorm (or, where asked for, a LayerNorm's affine part) that stays, and why.

    `num_consumers` counts the readers of its input, itself among them.
    """

    site: str
    reason: str
    num_consumers: int = 1


@record
class FoldReport(Record):
    """Folded and refused sites, in the order of the graph.

    `comparison` judges the folded model against the model in float64, if that was done;
    `not_judged` is the reason why not, if it was asked for. `source` has a line for each thing that
    was found in the trained model's files, or left out. `num_frozen` counts the weights that an
    ONNX file lists among its inputs too, as IR version 3 demanded: they were taken as constants.
    """

    folded: tuple[FoldedSite, ...] = ()
    refused: tuple[RefusedSite, ...] = ()
    comparison: "Comparison | None" = None
    not_judged: str | None = None
    source: tuple[str, ...] = ()
    num_frozen: int = 0

    @property
    def complete(self) -> bool:
        """True if nothing was refused."""
        return not self.refused
