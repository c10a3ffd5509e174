"""A model that names classes, opened from an ONNX file or a bundle, with what it says of itself."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resdeploy.bundle.archive import is_archive, opened_bundle
from resdeploy.errors import ResdeployError
from resdeploy.schema.codec import from_json
from resdeploy.schema.exports import LABELS_KEY, PREPROCESS_KEY
from resdeploy.schema.recipes import Preprocess
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.session import Session, open_session, output_specs

__all__ = ["Classifier", "opened_classifier", "require_class_scores"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classifier:
    """An open session of a model with one row of class scores.

    Attributes:
        name: what the user called it.
        session: where it runs.
        preprocess: how a raw sample becomes an input; None where that is not known.
        labels: the names of the classes, () where there are none.
    """

    name: str
    session: Session
    preprocess: Preprocess | None
    labels: tuple[str, ...]


@contextmanager
def opened_classifier(path: Path, spec: SessionSpec) -> Iterator[Classifier]:
    """Open a bundle, folder or archive, every byte of which is checked first, or an ONNX file.

    Raises:
        ResdeployError: it is damaged, or its outputs are no class scores.
        EnvironmentLacksError: the provider did not start.
    """
    if path.is_dir() or is_archive(path):
        with opened_bundle(path) as bundle:
            session = open_session(bundle.model, spec)
            preprocess, labels = bundle.manifest.preprocess, bundle.labels
            yield _classifier(str(path), session, preprocess, labels)
        return
    session = open_session(path, spec)
    preprocess, labels = _said_by_file(session, where=str(path))
    yield _classifier(str(path), session, preprocess, labels)


def require_class_scores(session: Session, *, where: str) -> None:
    """Raise ResdeployError unless a model has one output, a row of scores for each sample."""
    outputs = output_specs(session)
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise ResdeployError(
            "This model has no single row of class scores: its outputs are "
            + ", ".join(f"{o.name} {'x'.join(map(str, o.shape))}" for o in outputs)
            + ".",
            where=where,
        )


def _classifier(
    name: str, session: Session, preprocess: Preprocess | None, labels: tuple[str, ...]
) -> Classifier:
    require_class_scores(session, where=name)
    return Classifier(name=name, session=session, preprocess=preprocess, labels=labels)


def _said_by_file(session: Session, *, where: str) -> tuple[Preprocess | None, tuple[str, ...]]:
    """Return the preprocessing and the labels that stand in an ONNX file of resdeploy."""
    said = session.ort.get_modelmeta().custom_metadata_map
    try:
        labels = tuple(map(str, json.loads(said.get(LABELS_KEY, "[]"))))
        preprocess = json.loads(said.get(PREPROCESS_KEY, "null"))
    except (TypeError, ValueError) as error:
        raise ResdeployError(f"The model's metadata is not JSON: {error}.", where=where) from error
    if preprocess is None:
        return None, labels
    return from_json(Preprocess, preprocess, where=f"{where}: {PREPROCESS_KEY}"), labels
