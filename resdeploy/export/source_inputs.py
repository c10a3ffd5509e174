"""The inputs of a trained model and the names of its classes: asked for, or found beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from resdeploy.data.labels import load_labels
from resdeploy.data.usual_preprocess import asked_preprocess, says_preprocess
from resdeploy.errors import ResdeployError
from resdeploy.recipe import load_inputs
from resdeploy.schema.files import SourceSpec
from resdeploy.schema.recipes import CheckpointInfo, Preprocess
from resdeploy.weights.beside import Found, class_names, preprocessing
from resdeploy.weights.foreign_file import ForeignFile

__all__ = ["SourceInputs", "inputs_of"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInputs:
    """The shape of a sample, the way to it, the classes' names, and where each was found."""

    input_shape: tuple[int, ...]
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    notes: tuple[str, ...]


def inputs_of(
    spec: SourceSpec,
    input_shape: tuple[int, ...],
    *,
    num_classes: int | None = None,
    info: CheckpointInfo | None = None,
    file: ForeignFile | None = None,
) -> SourceInputs:
    """Return the inputs and classes of a model, as far as they are known.

    What `spec` says comes first, then its recipe, then the checkpoint's own record `info`, then
    what lies beside the weights in `file`.

    Args:
        spec: the request.
        input_shape: of one sample, where nothing says another.
        num_classes: of the network; None where that is not known.
        info: the checkpoint's record.
        file: weights from elsewhere.

    Raises:
        ResdeployError: a request contradicts the network, or itself.
    """
    shape = spec.input_shape or input_shape
    preprocess = None if info is None else info.preprocess
    labels = () if info is None else info.labels
    notes: list[str] = []
    if spec.recipe is not None:
        stated, named = load_inputs(spec.recipe)
        preprocess, labels = stated or preprocess, named or labels
    elif file is not None:
        beside = preprocessing(file, channels=shape[0], input_shape=spec.input_shape)
        preprocess, note = _beside(beside, "preprocessing")
        notes += [] if says_preprocess(spec) else note
    if says_preprocess(spec):
        preprocess = asked_preprocess(spec, preprocess, shape)
    if spec.labels is not None:
        labels = load_labels(spec.labels)
        _check_count(labels, num_classes, spec.labels)
        notes.append(f"class names: {len(labels)}, from {spec.labels}")
    elif file is not None and num_classes is not None and not labels:
        names, note = _beside(class_names(file, num_classes), "class names")
        labels = names or ()
        notes += note
    if preprocess is not None and (info is not None or spec.input_shape is None):
        shape = preprocess.input_shape
    return SourceInputs(input_shape=shape, preprocess=preprocess, labels=labels, notes=tuple(notes))


def _beside(found: Found[T] | None, what: str) -> tuple[T | None, list[str]]:
    """Return the find beside the weights, and a line about it."""
    if found is None:
        return None, []
    if found.value is None:
        return None, [f"{what}: not taken from {found.source}: {found.refusal}"]
    return found.value, [f"{what}: from {found.source}"]


def _check_count(labels: Sequence[str], num_classes: int | None, source: str) -> None:
    if num_classes is not None and len(labels) != num_classes:
        raise ResdeployError(
            f"{len(labels)} labels for {num_classes} classes.",
            where=source,
            fix="give one name for each output of the network",
        )
