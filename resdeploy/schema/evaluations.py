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

    `sample` is its file, or its file and row; `index` its place among the samples; `label` its
    class. A margin is the lead of a model's largest output over the next, in units of its outputs;
    `against_` is of the other model.
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

    `p_value` is of McNemar's exact test for equal accuracies; `drop_interval` is the
    interval of the drop in accuracy from the exact ones of both counts, as a fraction, negative for
    a gain; `flips` has every sample whose class changed, also from one wrong class to another.
    """

    num_model_only: int
    num_against_only: int
    p_value: float
    drop_interval: tuple[float, ...]
    flips: tuple[Flip, ...]


@record
class EvaluateReport(Record):
    """Accuracy of a model on labelled samples, beside that of another model if one is given.

    `samples` is a description; `labels` are the names of the classes, if known; `confidence` is of
    every interval here; `max_drop` is the largest drop that is allowed, as a fraction.
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
