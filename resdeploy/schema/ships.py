"""The whole way of a checkpoint to a device, and its record."""

from resdeploy.schema.bundles import CheckReport
from resdeploy.schema.codec import Record, record
from resdeploy.schema.quants import QuantReport
from resdeploy.schema.tunings import TuneReport
from resdeploy.schema.verdicts import VerifyReport


@record
class ShipSamples(Record):
    """Samples, split by their content into those to calibrate with and those to judge by.

    `is_labelled` is False where the budget counts changed predictions instead of lost accuracy;
    `num_copies` are of the same content as another, and left out; `num_needed` is the fewest held
    out that can show the budget, None without one.
    """

    source: str
    num_calibration: int
    num_held_out: int
    is_labelled: bool
    num_copies: int = 0
    num_needed: int | None = None

    @property
    def can_show(self) -> bool:
        """True if there are enough held out to show the budget, if they all agree."""
        return self.num_needed is not None and self.num_held_out >= self.num_needed


@record
class ShipStage(Record):
    """One stage, its outcome in words, and its duration in seconds.

    `told_s` is its share of the time that was told beforehand, None for what came before that;
    `was_kept` is True for a finding of an earlier run, which took no time in this one.
    """

    stage: str
    outcome: str
    duration_s: float
    told_s: float | None = None
    was_kept: bool = False


@record
class ShipReport(Record):
    """A checkpoint's way to a bundle, with the records of its stages.

    Attributes:
        output: the bundle that was written, and `digest`, which stands for every byte of it.
        source: the trained model, in words; `notes` are what was found, or assumed, about it.
        budget: the drop in accuracy, or the changed predictions, that are allowed, as a fraction;
            None where only float32 was asked for.
        quants: the lower precisions that were made, failed ones too.
        tuning: the search; its winner is what the bundle runs here.
        reasons: why a lower precision is not what is shipped; empty where one is.
        check: that of the bundle that was written.
        commands: those for the device.
    """

    output: str
    digest: str
    source: str
    notes: tuple[str, ...]
    samples: ShipSamples | None
    budget: float | None
    verification: VerifyReport
    quants: tuple[QuantReport, ...]
    tuning: TuneReport
    reasons: tuple[str, ...]
    check: CheckReport
    stages: tuple[ShipStage, ...]
    commands: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if the bundle passed its check."""
        return self.check.passed

    @property
    def told_s(self) -> float:
        """The time told for the stages after the first, in seconds."""
        return sum(one.told_s or 0.0 for one in self.stages)

    @property
    def took_s(self) -> float:
        """The time that those stages took, in seconds."""
        return sum(one.duration_s for one in self.stages if one.told_s is not None)
