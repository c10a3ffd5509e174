"""The demo."""

from collections.abc import Mapping

from resdeploy.schema.benchmarks import BenchResult
from resdeploy.schema.bundles import CheckReport
from resdeploy.schema.codec import Record, record
from resdeploy.schema.exports import ExportReport
from resdeploy.schema.recipes import TrainReport
from resdeploy.schema.verdicts import VerifyReport

__all__ = ["DemoReport", "DemoStage"]


@record
class DemoStage(Record):
    """One stage of the demo: what came of it, in words, and how long it took."""

    stage: str
    outcome: str
    duration_s: float


@record
class DemoReport(Record):
    """The whole chain on embedded data: the records of its stages and the files it wrote.

    `paths` are by what they are; `unavailable` says of each provider that did not start why.
    """

    train: TrainReport
    export: ExportReport
    verification: VerifyReport
    bench: tuple[BenchResult, ...]
    check: CheckReport
    stages: tuple[DemoStage, ...]
    unavailable: Mapping[str, str]
    paths: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every verdict along the way was a pass."""
        exported = self.export.verification
        return (
            exported is not None
            and exported.passed
            and self.verification.passed
            and self.check.passed
        )
