"""Predictions of a model: the likeliest classes of each input.

Shapes: N inputs, K classes.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.bundle.folder import BundleFolder
from resdeploy.data.samples import read_named, read_samples
from resdeploy.errors import ResdeployError
from resdeploy.schema.bundles import ClassScore, Prediction, PredictReport
from resdeploy.schema.recipes import Preprocess
from resdeploy.session.run import run_session
from resdeploy.session.session import Session, input_specs

__all__ = ["ModelCard", "card_of", "predict_classes", "softmax"]

# Samples in memory at a time.
_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is known about a model: its name, its digest, its classes' names, its preprocessing."""

    name: str
    digest: str
    labels: tuple[str, ...]
    preprocess: Preprocess | None


def card_of(bundle: BundleFolder) -> ModelCard:
    """Return the card of a bundle's model."""
    return ModelCard(
        name=bundle.manifest.name,
        digest=bundle.digest,
        labels=bundle.labels,
        preprocess=bundle.manifest.preprocess,
    )


def predict_classes(
    card: ModelCard, model: str, session: Session, inputs: Any, *, num_classes: int = 5
) -> PredictReport:
    """Return the likeliest classes of every input.

    `session` is of the file `model`, a model with one row of class scores, described by `card`;
    `inputs` are those of `read_samples`; at most `num_classes` classes are named.

    Raises:
        ResdeployError: an input does not fit the model, or an output is not finite.
    """
    predictions: list[Prediction] = []
    fed = [tensor.name for tensor in input_specs(session)]
    is_single = len(fed) == 1
    samples = read_samples(inputs, card.preprocess) if is_single else read_named(inputs, fed)
    while group := list(islice(samples, _BATCH_SIZE)):
        names, arrays = zip(*group, strict=True)
        if len(shapes := {str(array.shape if is_single else array.dtype) for array in arrays}) > 1:
            raise ResdeployError(f"The inputs have different shapes: {', '.join(sorted(shapes))}.")
        predictions += [
            _prediction(name, scores_K, card, num_classes)
            for name, scores_K in zip(names, run_session(session, np.stack(arrays)), strict=True)
        ]
    return PredictReport(
        name=card.name,
        digest=card.digest,
        model=model,
        session=session.info,
        predictions=tuple(predictions),
    )


def softmax(scores_K: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return exp(s) over its sum, in float64, with the largest score subtracted first.

    In float32 the probabilities of 1000 classes sum to 1 only within 1e-5, and a class that is
    e^-104 times as likely as the first becomes 0.
    """
    wide_K = scores_K.astype(np.float64)
    with np.errstate(under="ignore"):
        exp_K: NDArray[np.float64] = np.exp(wide_K - wide_K.max())
        return np.asarray(exp_K / exp_K.sum())


def _prediction(
    name: str, scores_K: NDArray[np.floating], card: ModelCard, num_classes: int
) -> Prediction:
    if not np.isfinite(scores_K).all():
        raise ResdeployError(
            "The model's outputs for this input are not finite.",
            where=name,
            fix="check the input for NaN and huge values, and the bundle with resdeploy check",
        )
    probabilities_K = softmax(scores_K)
    # Stable: of equals, the first output is the first here.
    best = np.argsort(-scores_K.astype(np.float64), kind="stable")[:num_classes]
    return Prediction(
        input=name,
        classes=tuple(
            ClassScore(
                index=int(k),
                label=card.labels[k] if card.labels else None,
                probability=float(probabilities_K[k]),
            )
            for k in best
        ),
    )
