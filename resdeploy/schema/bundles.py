"""Bundles, their check, predictions, and the demo that makes one."""

from collections.abc import Mapping

from resdeploy.schema.benchmarks import BenchResult
from resdeploy.schema.codec import Judged, Record, record
from resdeploy.schema.exports import ExportReport
from resdeploy.schema.files import FileInfo, TensorSpec
from resdeploy.schema.recipes import Preprocess, TrainReport
from resdeploy.schema.sessions import SessionInfo
from resdeploy.schema.tunings import GoldenAnswers, TunedSettings
from resdeploy.schema.verdicts import FileProof, GoldenInfo, VerifyReport


@record
class Manifest(Record):
    """The table of contents of a bundle, with the records that led to it.

    `tuned` are the fastest settings, by kind of machine, that `tune` found; `proof` is that of the
    model file. `is_own_reference` is True of an ONNX file from elsewhere whose golden outputs are
    its own, in float64: they show that a machine computes what the file says, and not that the file
    is the network which was trained.
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
    proof: FileProof | None = None
    is_own_reference: bool = False


@record
class TunedCheck(Judged):
    """Settings tuned for this kind of machine, and their outputs for the golden inputs now.

    Lossless settings must pass verification as float32; those within a budget may not be clearly
    worse than when tuned.
    """

    settings: TunedSettings
    found: GoldenAnswers
    reasons: tuple[str, ...] = ()


@record
class CheckReport(Record):
    """An intact bundle, with a verdict for each provider.

    `digest` stands for every byte of it; `tuned` are the checks of the settings that `tune` found
    on a machine like this one.
    """

    name: str
    num_files: int
    digest: str
    verification: VerifyReport
    tuned: tuple[TunedCheck, ...] = ()

    @property
    def passed(self) -> bool:
        """True if the verification and every check of tuned settings passed."""
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
    """The likeliest classes of one input, the likeliest first; `input` is its file, and its row.

    `classes` are () where outputs were written instead.
    """

    input: str
    classes: tuple[ClassScore, ...]


@record
class PredictReport(Record):
    """Predictions of a bundle's model, in the order of the inputs.

    `digest` is the SHA-256 of the bundle's manifest, or of an ONNX file; `model` is the file that
    was run. `file` is the `.npz` that the outputs were written to in place of classes, `outputs`
    are its arrays, a row for each input.
    """

    name: str
    digest: str
    model: str
    session: SessionInfo
    predictions: tuple[Prediction, ...]
    file: FileInfo | None = None
    outputs: tuple[TensorSpec, ...] = ()


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
