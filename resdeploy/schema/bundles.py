"""Bundles, their check, predictions."""

from collections.abc import Mapping

from resdeploy.schema.codec import Record, record
from resdeploy.schema.exports import ExportReport
from resdeploy.schema.files import FileInfo, TensorSpec
from resdeploy.schema.recipes import Preprocess
from resdeploy.schema.sessions import SessionInfo
from resdeploy.schema.tunings import GoldenAnswers, TunedSettings
from resdeploy.schema.verdicts import GoldenInfo, VerifyReport

__all__ = [
    "CheckReport",
    "ClassScore",
    "Manifest",
    "PredictReport",
    "Prediction",
    "TunedCheck",
]


@record
class Manifest(Record):
    """The table of contents of a bundle, with the records that led to it.

    `tuned` are the fastest ways to run it that `tune` found, on the machines they are for.
    """

    name: str
    files: tuple[FileInfo, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None
    num_labels: int
    golden: GoldenInfo
    export: ExportReport | None
    versions: Mapping[str, str]
    tuned: tuple[TunedSettings, ...] = ()


@record
class TunedCheck(Record):
    """A way to run the bundle that was tuned for such a machine, and what it computes now.

    Attributes:
        settings: the way, and what it promised.
        found: what it makes of the golden inputs now.
        reasons: why it is not what it was: what was found without loss must pass verification as
            float32; what was found within a budget may not be clearly worse than it was then.
    """

    settings: TunedSettings
    found: GoldenAnswers
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it is what it was."""
        return not self.reasons


@record
class CheckReport(Record):
    """A bundle whose files are intact, and what each provider computed from its golden inputs.

    `tuned` are the ways to run it that `tune` found on a machine like this one.
    """

    name: str
    num_files: int
    verification: VerifyReport
    tuned: tuple[TunedCheck, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the model computes what the bundle says it should, in every way it is run."""
        return self.verification.passed and all(one.passed for one in self.tuned)


@record
class ClassScore(Record):
    """One class of a prediction: its place among the outputs, its name, and its probability.

    `label` is None where the bundle names no classes; `probability` is the softmax of the model's
    outputs, computed in float64.
    """

    index: int
    label: str | None
    probability: float


@record
class Prediction(Record):
    """The likeliest classes of one input, the likeliest first; `input` is its file, and its row."""

    input: str
    classes: tuple[ClassScore, ...]


@record
class PredictReport(Record):
    """What a model of a bundle says of each input, in the order they were given.

    `digest` stands for the bundle, every byte of which was checked first; `model` is the file of it
    that was run.
    """

    name: str
    digest: str
    model: str
    session: SessionInfo
    predictions: tuple[Prediction, ...]
