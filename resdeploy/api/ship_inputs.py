"""Preprocessing and class names of a trained model, found from the samples of `ship`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from resdeploy.errors import ResdeployError
from resdeploy.schema.recipes import Preprocess

if TYPE_CHECKING:
    from resdeploy.export.source import SourceModel
    from resdeploy.ship.samples import SplitSamples

__all__ = ["with_found_inputs"]

# Labelled pictures that tell the preprocessing.
_NUM_TELLING = 32


def with_found_inputs(model: "SourceModel", split: "SplitSamples") -> "SourceModel":
    """Return a model with the class names and the preprocessing that it lacks, and notes of them.

    Raises:
        ResdeployError: the preprocessing is not known, and the samples cannot tell it.
    """
    from resdeploy.export.choose_preprocess import num_classes_of
    from resdeploy.export.source_inputs import SourceInputs

    labels, preprocess, notes = model.labels, model.preprocess, [*model.notes]
    if not labels and split.has_names and len(split.labels) == num_classes_of(model):
        labels = split.labels
        notes.append(f"class names: the {len(labels)} folders of the samples")
    if preprocess is None:
        preprocess, note = _chosen_preprocess(model, split, labels)
        notes.append(note)
    if model.info is not None:
        info = dataclasses.replace(model.info, labels=labels, preprocess=preprocess)
        return dataclasses.replace(model, info=info, notes=tuple(notes))
    stated = SourceInputs(
        input_shape=model.input_shape, preprocess=preprocess, labels=labels, notes=()
    )
    return dataclasses.replace(model, stated=stated, notes=tuple(notes))


def _chosen_preprocess(
    model: "SourceModel", split: "SplitSamples", labels: tuple[str, ...]
) -> tuple[Preprocess, str]:
    telling = [one for one in split.calibration if one.label in labels and split.has_names]
    if not telling:
        raise ResdeployError(
            "How a sample becomes an input of this model is not known, and cannot be told from "
            "samples without the names of its classes.",
            where=model.description,
            fix="say it: --preprocess-as imagenet, or --mean and --std",
        )
    import numpy as np

    from resdeploy.export.choose_preprocess import choose_preprocess

    few = telling[:_NUM_TELLING]
    classes = np.array([labels.index(one.label or "") for one in few])
    chosen = choose_preprocess(model, [Path(str(one.place)) for one in few], classes)
    counts = ", ".join(f"{name} {num}" for name, num in chosen.num_right.items())
    note = f"preprocessing: {chosen.name}, by right predictions of {len(few)} samples ({counts})"
    if 2 * chosen.num_right[chosen.name] < len(few):
        note += "; so few are right that it may be another: say it with --preprocess-as"
    return chosen.preprocess, note
