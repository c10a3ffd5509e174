"""How often a model is right, and what another one does differently on the same samples."""

from resdeploy.schema.codec import Record, record
from resdeploy.schema.sessions import SessionInfo

__all__ = ["AccuracyResult", "EvaluateReport", "EvaluatedModel", "Flip", "PairedResult"]


@record
class AccuracyResult(Record):
    """How many samples a model gets right; `interval` is Clopper and Pearson's, of the fraction."""

    num_correct: int
    num_samples: int
    interval: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """The fraction that is right."""
        return self.num_correct / self.num_samples


@record
class EvaluatedModel(Record):
    """A model, where it ran, and how often it is right."""

    name: str
    session: SessionInfo
    result: AccuracyResult


@record
class Flip(Record):
    """A sample that two models put into different classes.

    Attributes:
        sample: its file, or its file and row.
        index: its place among the samples.
        label: the class it is of.
        predicted: the class that the model says.
        against_predicted: the class that the other model says.
        margin: by how much the model's largest output leads the next, in units of its outputs.
        against_margin: likewise of the other model.
    """

    sample: str
    index: int
    label: int
    predicted: int
    against_predicted: int
    margin: float
    against_margin: float


@record
class PairedResult(Record):
    """Two models on the same samples: "only" counts those that one gets right and the other wrong.

    Attributes:
        num_model_only: samples that the model alone gets right.
        num_against_only: samples that the other alone gets right.
        p_value: of McNemar's exact test that both are right equally often.
        drop_interval: Tango's score interval of the fraction by which the model is right less
            often than the other; below zero it is right more often.
        flips: every sample whose class changed, also from one wrong class to another.
    """

    num_model_only: int
    num_against_only: int
    p_value: float
    drop_interval: tuple[float, ...]
    flips: tuple[Flip, ...]


@record
class EvaluateReport(Record):
    """How often a model is right on labelled samples, and next to another model.

    Attributes:
        model: what was evaluated.
        samples: what it was evaluated on, in words.
        labels: the names of the classes, if they are known.
        confidence: of every interval here.
        against: the other model, if there is one.
        paired: the two on the same samples.
        max_drop: the largest fraction by which the model may be right less often, if one was given.
    """

    model: EvaluatedModel
    samples: str
    labels: tuple[str, ...]
    confidence: float
    against: EvaluatedModel | None = None
    paired: PairedResult | None = None
    max_drop: float | None = None

    @property
    def drop(self) -> float | None:
        """The fraction by which the model is right less often than the other."""
        if self.against is None:
            return None
        return self.against.result.accuracy - self.model.result.accuracy

    @property
    def passed(self) -> bool:
        """Whether the whole interval of the drop is within what is allowed."""
        if self.max_drop is None or self.paired is None:
            return True
        return self.paired.drop_interval[1] <= self.max_drop
