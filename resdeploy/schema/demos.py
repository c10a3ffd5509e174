"""The demo."""

from collections.abc import Mapping

from resdeploy.schema.benchmarks import BenchResult
from resdeploy.schema.bundles import CheckReport
from resdeploy.schema.codec import Record, record
from resdeploy.schema.exports import ExportReport
from resdeploy.schema.recipes import TrainReport
from resdeploy.schema.verdicts import VerifyReport


@record
class DemoStage(Record):
    """One stage of the demo: its outcome in words, and its duration."""

    stage: str
    outcome: str
    duration_s: float


@record
class DemoReport(Record):
    """The whole chain on embedded data: the records of its stages and the files it wrote.

    `paths` are by kind; `unavailable` has the reason of each provider that did not start.
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
        """True if every verdict along the way is a pass."""
        verdicts = (self.export.verification, self.verification, self.check)
        return all(one is not None and one.passed for one in verdicts)
