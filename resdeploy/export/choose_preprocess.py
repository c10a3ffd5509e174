"""The preprocessing that a network was trained with, by its accuracy on labelled pictures.

Weights mostly come without it. Of the usual ones, that with the most right predictions is taken:
pixels on another scale cost a trained network most of its accuracy, so that a few pictures tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from resdeploy.data.preprocess import load_image, preprocess_batch
from resdeploy.data.usual_preprocess import USUAL, asked_preprocess
from resdeploy.errors import ResdeployError
from resdeploy.export.source import SourceModel
from resdeploy.schema.files import SourceSpec
from resdeploy.schema.recipes import Preprocess

__all__ = ["ChosenPreprocess", "choose_preprocess", "num_classes_of"]

_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPreprocess:
    """The usual preprocessing with the most right predictions, and that number for each by name."""

    name: str
    preprocess: Preprocess
    num_right: dict[str, int]


def choose_preprocess(
    source: SourceModel, images: Sequence[Path], classes_N: NDArray[np.int64]
) -> ChosenPreprocess:
    """Return the usual preprocessing that a network does best with; of equals, the first.

    Args:
        source: the network, which takes images (C, H, W).
        images: pictures of its classes.
        classes_N: the place of each among the outputs.

    Raises:
        ResdeployError: the network takes no images, or an image cannot be read.
    """
    if len(source.input_shape) != 3:
        raise ResdeployError(
            f"An input of shape {source.input_shape} is no picture.", where=source.description
        )
    shape = tuple(source.input_shape)
    found: dict[str, Preprocess] = {}
    num_right: dict[str, int] = {}
    for name, usual in USUAL.items():
        # Where the usual size is another, pictures are scaled to that of the network.
        is_resized = usual.resize is not None and shape[1:] != usual.input_shape[1:]
        found[name] = asked_preprocess(
            SourceSpec(
                preprocess_as=name, input_shape=shape, resize=min(shape[1:]) if is_resized else None
            ),
            None,
            shape,
        )
        num_right[name] = _num_right(source, found[name], images, classes_N)
    best = max(num_right, key=num_right.__getitem__)
    return ChosenPreprocess(name=best, preprocess=found[best], num_right=num_right)


def num_classes_of(source: SourceModel) -> int | None:
    """Return the number of classes of a network; None where its output is no row of scores."""
    if source.info is not None:
        return source.info.model.num_classes
    with torch.no_grad():
        scores = source.module(torch.zeros(1, *source.input_shape))
    is_row = isinstance(scores, torch.Tensor) and scores.ndim == 2
    return int(scores.shape[1]) if is_row else None


def _num_right(
    source: SourceModel,
    preprocess: Preprocess,
    images: Sequence[Path],
    classes_N: NDArray[np.int64],
) -> int:
    right = 0
    for start in range(0, len(images), _BATCH_SIZE):
        raw = np.stack([load_image(one, preprocess) for one in images[start:][:_BATCH_SIZE]])
        with torch.no_grad():
            scores_NK = source.module(torch.from_numpy(preprocess_batch(raw, preprocess)))
        right += int((scores_NK.argmax(1).numpy() == classes_N[start:][:_BATCH_SIZE]).sum())
    return right
