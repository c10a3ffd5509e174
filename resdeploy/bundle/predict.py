"""Predictions of a model: the likeliest classes of each input, or its outputs themselves.

Shapes: N inputs, K classes.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.bundle.evaluate import require_class_scores
from resdeploy.bundle.folder import BundleFolder
from resdeploy.data.samples import read_named, read_samples
from resdeploy.errors import ResdeployError
from resdeploy.files import atomic_write, file_info
from resdeploy.schema.bundles import ClassScore, Prediction, PredictReport
from resdeploy.schema.files import TensorSpec
from resdeploy.schema.recipes import Preprocess
from resdeploy.session.run import run_session, session_outputs
from resdeploy.session.session import Session, input_specs

__all__ = ["ModelCard", "card_of", "predict_classes", "predict_outputs", "predict_with", "softmax"]

# Samples in memory at a time.
_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """A model's name, digest, names of classes, and preprocessing, as far as they are known."""

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


def predict_with(
    card: ModelCard,
    model: str,
    session: Session,
    inputs: Any,
    *,
    top: int,
    out: Path | None = None,
    force: bool = False,
) -> PredictReport:
    """Return the `top` likeliest classes of every input, or write the outputs for it to `out`.

    `session` is of the file `model`; `inputs` are those of `read_samples`, or of `read_named`.

    Raises:
        ResdeployError: an input does not fit the model; without `out`, its outputs are no class
            scores; or `out` exists and `force` is not given.
    """
    report = PredictReport(
        name=card.name, digest=card.digest, model=model, session=session.info, predictions=()
    )
    if out is None:
        require_class_scores(session, where=card.name)
        return replace(report, predictions=predict_classes(card, session, inputs, num_classes=top))
    names, outputs = predict_outputs(session, inputs, card.preprocess)
    with atomic_write(out, force=force) as path, zipfile.ZipFile(path, "w") as archive:
        # By hand, as numpy.savez takes no array that is called `file`.
        for name, array in outputs.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return replace(
        report,
        predictions=tuple(Prediction(input=name, classes=()) for name in names),
        file=file_info(out, relative_to=out.parent),
        outputs=tuple(
            TensorSpec(name=n, dtype=y.dtype.name, shape=y.shape) for n, y in outputs.items()
        ),
    )


def predict_classes(
    card: ModelCard, session: Session, inputs: Any, *, num_classes: int = 5
) -> tuple[Prediction, ...]:
    """Return the likeliest classes of every input.

    `session` is of a model with one row of class scores, described by `card`; `inputs` are those of
    `read_samples`, or of `read_named`; at most `num_classes` classes are named.

    Raises:
        ResdeployError: an input does not fit the model, or an output is not finite.
    """
    return tuple(
        _prediction(name, scores_K, card, num_classes)
        for names, batch in _batches(session, inputs, card.preprocess)
        for name, scores_K in zip(names, run_session(session, batch), strict=True)
    )


def predict_outputs(
    session: Session, inputs: Any, preprocess: Preprocess | None
) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """Return the names of the N inputs, and the outputs for them by name, each (N, ...).

    Raises:
        ResdeployError: an input does not fit the model; inputs, or the outputs for them, are of
            several shapes; or there are no inputs.
    """
    names: list[str] = []
    parts: list[dict[str, NDArray[Any]]] = []
    for group, batch in _batches(session, inputs, preprocess):
        names += group
        parts.append(session_outputs(session, batch))
        if len(shapes := {str({n: y.shape[1:] for n, y in one.items()}) for one in parts}) > 1:
            raise ResdeployError(
                f"The outputs have different shapes: {', '.join(sorted(shapes))}.",
                where=names[-1],
                fix="ask for inputs of one size at a time",
            )
    if not parts:
        raise ResdeployError("There are no inputs.", fix="give at least one")
    return tuple(names), {n: np.concatenate([one[n] for one in parts]) for n in parts[0]}


def _batches(
    session: Session, inputs: Any, preprocess: Preprocess | None
) -> Iterator[tuple[tuple[str, ...], NDArray[Any]]]:
    """Yield the samples of a model in batches, with their names."""
    fed = [tensor.name for tensor in input_specs(session)]
    is_single = len(fed) == 1
    samples = read_samples(inputs, preprocess) if is_single else read_named(inputs, fed)
    while group := list(islice(samples, _BATCH_SIZE)):
        names, arrays = zip(*group, strict=True)
        if len(shapes := {str(array.shape if is_single else array.dtype) for array in arrays}) > 1:
            raise ResdeployError(f"The inputs have different shapes: {', '.join(sorted(shapes))}.")
        yield names, np.stack(arrays)


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
