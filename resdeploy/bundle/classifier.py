"""A classifier opened from an ONNX file or a bundle, with its preprocessing and labels."""

import contextlib
import json
from collections.abc import Iterator
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
    """An open session of a model with one row of class scores; `name` is the user's path of it.

    `preprocess` is None if unknown; `labels` are the names of the classes, or ().
    """

    name: str
    session: Session
    preprocess: Preprocess | None
    labels: tuple[str, ...]


@contextlib.contextmanager
def opened_classifier(path: Path, spec: SessionSpec) -> Iterator[Classifier]:
    """Open a bundle, folder or archive, every byte of which is checked first, or an ONNX file.

    Raises:
        ResdeployError: it is damaged, or its outputs are no class scores.
        EnvironmentLacksError: the provider did not start.
    """
    with contextlib.ExitStack() as stack:
        if path.is_dir() or is_archive(path):
            bundle = stack.enter_context(opened_bundle(path))
            session = open_session(bundle.model, spec)
            preprocess, labels = bundle.manifest.preprocess, bundle.labels
        else:
            session = open_session(path, spec)
            preprocess, labels = _metadata(session, where=str(path))
        require_class_scores(session, where=str(path))
        yield Classifier(name=str(path), session=session, preprocess=preprocess, labels=labels)


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


def _metadata(session: Session, *, where: str) -> tuple[Preprocess | None, tuple[str, ...]]:
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
