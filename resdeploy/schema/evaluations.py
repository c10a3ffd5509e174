"""Accuracies on labelled samples, and paired comparisons of two models."""

from resdeploy.schema.codec import Record, record
from resdeploy.schema.sessions import SessionInfo


@record
class AccuracyResult(Record):
    """Correct predictions of a model; `interval` is Clopper and Pearson's, of the fraction."""

    num_correct: int
    num_samples: int
    interval: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """The fraction that is right."""
        return self.num_correct / self.num_samples


@record
class EvaluatedModel(Record):
    """A model, its session, and its accuracy."""

    name: str
    session: SessionInfo
    result: AccuracyResult


@record
class Flip(Record):
    """A sample that two models put into different classes.

    Attributes:
        sample: its file, or its file and row.
        index: its place among the samples.
        label: its class.
        predicted: the class by the model.
        against_predicted: the class by the other model.
        margin: lead of the model's largest output over the next, in units of its outputs.
        against_margin: the same of the other model.
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
    """Accuracy of a model on labelled samples, beside that of another model if one is given.

    Attributes:
        model: the model.
        samples: the samples, in words.
        labels: the names of the classes, if they are known.
        confidence: of every interval here.
        against: the other model, or None.
        paired: the two on the same samples.
        max_drop: the largest drop in accuracy that is allowed, as a fraction, or None.
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
        """Drop in accuracy from the other model, as a fraction."""
        if self.against is None:
            return None
        return self.against.result.accuracy - self.model.result.accuracy

    @property
    def passed(self) -> bool:
        """True if the whole interval of the drop is at most `max_drop`."""
        if self.max_drop is None or self.paired is None:
            return True
        return self.paired.drop_interval[1] <= self.max_drop
