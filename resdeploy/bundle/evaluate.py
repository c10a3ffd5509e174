"""Accuracy of a model with its interval, and its paired comparison with another model.

Shapes: N samples, K classes.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resdeploy.bundle.archive import is_archive, opened_bundle
from resdeploy.data.samples import LabelledSamples, inputs_from_raw
from resdeploy.errors import ResdeployError
from resdeploy.schema.codec import from_json
from resdeploy.schema.evaluations import (
    AccuracyResult,
    EvaluatedModel,
    EvaluateReport,
    Flip,
    PairedResult,
)
from resdeploy.schema.exports import LABELS_KEY, PREPROCESS_KEY
from resdeploy.schema.recipes import Preprocess
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.run import run_session
from resdeploy.session.session import Session, open_session, output_specs
from resdeploy.statistics.proportions import (
    clopper_pearson,
    mcnemar_exact,
    paired_difference_interval,
)

__all__ = [
    "CONFIDENCE",
    "Answers",
    "LoadSamples",
    "Progress",
    "answer",
    "classes_of",
    "compare_answers",
    "evaluate",
    "require_class_scores",
    "stated_records",
]

CONFIDENCE = 0.95

# Samples in memory at a time.
_BATCH_SIZE = 64

LoadSamples = Callable[[Preprocess | None], LabelledSamples]
Progress = Callable[[int, int | None, str], None]


def evaluate(
    model: Path,
    load: LoadSamples,
    spec: SessionSpec,
    *,
    against: Path | None = None,
    against_spec: SessionSpec | None = None,
    max_drop: float | None = None,
    on_progress: Progress = lambda done, total, remark: None,
) -> EvaluateReport:
    """Return the accuracy of `model`, compared with that of `against` on the same samples.

    Models are ONNX files or bundles. `load` returns the samples, decoded as a model's preprocessing
    says; `against_spec` is the session of `against`, None for that of `model`; `max_drop` is the
    largest drop in accuracy from `against`, as a fraction; `on_progress` is called with the samples
    done, their total, and the model's name.

    Raises:
        ResdeployError: a model or the samples are damaged or do not fit each other, the samples
            have no labels or unknown ones, or an output is not finite.
        EnvironmentLacksError: the provider did not start.
    """
    load_once = functools.cache(load)  # two models mostly agree on how samples are decoded
    answers = answer(model, load_once, spec, on_progress)
    others = None
    if against is not None:
        others = answer(against, load_once, against_spec or spec, on_progress)
    return compare_answers(answers, others, max_drop)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """Predictions of a model for N samples, and its accuracy.

    `labels` are the names of its classes, if known; `truth`, (N,), are places among its outputs, as
    are those `predicted`, (N,); `margin`, (N,), is the lead of the predicted score over the next.
    """

    model: EvaluatedModel
    samples: LabelledSamples
    labels: tuple[str, ...]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    margin: NDArray[np.float64]


def answer(
    model: Path,
    load: LoadSamples,
    spec: SessionSpec,
    on_progress: Progress = lambda done, total, remark: None,
) -> Answers:
    """Return the predictions of a model; arguments and errors are those of `evaluate`."""
    name = str(model)
    with _opened_model(model, spec) as (session, preprocess, labels):
        require_class_scores(session, where=name)
        samples = load(preprocess)
        truth_N = classes_of(samples, labels)
        num_samples = len(samples.x)
        predicted, margins = [], []
        for start in range(0, num_samples, _BATCH_SIZE):
            on_progress(start, num_samples, name)
            raw = samples.x[start : start + _BATCH_SIZE]
            inputs = inputs_from_raw(raw, preprocess)
            scores_NK = run_session(session, inputs).astype(np.float64)
            if bad := np.flatnonzero(~np.isfinite(scores_NK).all(axis=1)).tolist():
                raise ResdeployError(
                    "The model's outputs for this sample are not finite.",
                    where=f"{name}, {samples.names[start + bad[0]]}",
                    fix="check the sample for NaN and huge values, and the model with resdeploy "
                    "verify",
                )
            predicted.append(scores_NK.argmax(axis=1))
            margins.append(_lead(scores_NK))
            if start == 0:
                _check_range(truth_N, scores_NK.shape[1], samples, name)
        on_progress(num_samples, num_samples, name)
        predicted_N = np.concatenate(predicted)
        num_correct = int((predicted_N == truth_N).sum())
        result = AccuracyResult(
            num_correct=num_correct,
            num_samples=num_samples,
            interval=clopper_pearson(num_correct, num_samples, confidence=CONFIDENCE),
        )
        return Answers(
            model=EvaluatedModel(name=name, session=session.info, result=result),
            samples=samples,
            labels=labels,
            truth=truth_N,
            predicted=predicted_N,
            margin=np.concatenate(margins),
        )


def compare_answers(
    answers: Answers, against: Answers | None = None, max_drop: float | None = None
) -> EvaluateReport:
    """Return the accuracy of a model, compared with that of another on the same samples.

    Raises:
        ResdeployError: the models do not have the same classes.
    """
    if against and answers.labels and against.labels and answers.labels != against.labels:
        raise ResdeployError(
            "The two models do not have the same classes in the same order.",
            where=f"{answers.model.name} and {against.model.name}",
            fix="compare models of the same training, or evaluate each by itself",
        )
    return EvaluateReport(
        model=answers.model,
        samples=answers.samples.description,
        labels=answers.labels or answers.samples.labels,
        confidence=CONFIDENCE,
        against=None if against is None else against.model,
        paired=None if against is None else _paired(answers, against),
        max_drop=max_drop,
    )


@contextlib.contextmanager
def _opened_model(
    path: Path, spec: SessionSpec
) -> Iterator[tuple[Session, Preprocess | None, tuple[str, ...]]]:
    """Open a bundle, every byte of which is checked, or an ONNX file; yield its records too."""
    if path.is_dir() or is_archive(path):
        with opened_bundle(path) as bundle:
            yield open_session(bundle.model, spec), bundle.manifest.preprocess, bundle.labels
    else:
        session = open_session(path, spec)
        yield session, *stated_records(session, where=str(path))


def require_class_scores(session: Session, *, where: str) -> None:
    """Raise ResdeployError unless a model has one output, a row of scores for each sample."""
    outputs = output_specs(session)
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise ResdeployError(
            "This model has no single row of class scores: its outputs are "
            + ", ".join(f"{o.name} {'x'.join(map(str, o.shape))}" for o in outputs)
            + ".",
            where=where,
            fix="run resdeploy predict with -o FILE.npz, which writes the outputs themselves",
        )


def stated_records(session: Session, *, where: str) -> tuple[Preprocess | None, tuple[str, ...]]:
    """Return the preprocessing and the labels in the metadata of an ONNX file of resdeploy."""
    said = session.ort.get_modelmeta().custom_metadata_map
    try:
        labels = tuple(map(str, json.loads(said.get(LABELS_KEY, "[]"))))
        preprocess = json.loads(said.get(PREPROCESS_KEY, "null"))
    except (TypeError, ValueError) as error:
        raise ResdeployError(f"The model's metadata is not JSON: {error}.", where=where) from error
    if preprocess is None:
        return None, labels
    return from_json(Preprocess, preprocess, where=f"{where}: {PREPROCESS_KEY}"), labels


def _lead(scores_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the lead of the largest score over the next; of a single class, that score."""
    if scores_NK.shape[1] == 1:
        return scores_NK[:, 0]
    two_N2 = np.partition(scores_NK, -2, axis=1)[:, -2:]
    return np.asarray(two_N2[:, 1] - two_N2[:, 0])


def classes_of(samples: LabelledSamples, known: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the label of each sample as a place among the model's outputs.

    By the names of the classes if the model has all of them, so that data of fewer classes, or in
    another order, keep their meaning. By number otherwise, as in ImageNet's folders.
    """
    if samples.y is None:
        raise ResdeployError(
            "The samples have no labels.",
            where=samples.description,
            fix="give an .npz with x and y, or a folder with one folder of images per class",
        )
    if not samples.labels or not known or samples.labels == known:
        return samples.y
    place_of = {label: place for place, label in enumerate(known)}
    if set(samples.labels) <= set(place_of):
        return np.array([place_of[label] for label in samples.labels], np.int64)[samples.y]
    if len(samples.labels) != len(known):
        unknown = next(label for label in samples.labels if label not in place_of)
        raise ResdeployError(
            f"The data has {len(samples.labels)} classes, the model {len(known)}, and "
            f"{unknown!r} is none of the model's: they cannot be matched.",
            where=samples.description,
            fix="name the folders as the model names its classes: " + ", ".join(place_of),
        )
    return samples.y


def _check_range(
    truth_N: NDArray[np.int64], num_classes: int, samples: LabelledSamples, name: str
) -> None:
    if bad := np.flatnonzero((truth_N < 0) | (truth_N >= num_classes)).tolist():
        raise ResdeployError(
            f"The label {truth_N[bad[0]]} is none of the model's classes, 0 to {num_classes - 1}.",
            where=f"{name}, {samples.names[bad[0]]}",
            fix="evaluate on the data that the model was trained for",
        )


def _paired(model: Answers, against: Answers) -> PairedResult:
    is_right, others = (one.truth == one.predicted for one in (model, against))
    model_only, against_only = int((is_right & ~others).sum()), int((others & ~is_right).sum())
    names = model.samples.names
    return PairedResult(
        num_model_only=model_only,
        num_against_only=against_only,
        p_value=mcnemar_exact(model_only, against_only),
        drop_interval=paired_difference_interval(
            against_only, model_only, len(names), confidence=CONFIDENCE
        ),
        flips=tuple(
            Flip(
                sample=names[i],
                index=i,
                label=int(model.truth[i]),
                predicted=int(model.predicted[i]),
                against_predicted=int(against.predicted[i]),
                margin=float(model.margin[i]),
                against_margin=float(against.margin[i]),
            )
            for i in np.flatnonzero(model.predicted != against.predicted).tolist()
        ),
    )
