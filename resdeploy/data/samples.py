"""Samples: data sets in memory, and a user's images and arrays, live or in files and folders."""

import itertools
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.data.preprocess import load_image, preprocess_batch
from resdeploy.errors import ResdeployError
from resdeploy.schema.recipes import Preprocess

__all__ = [
    "IMAGE_SUFFIXES",
    "Dataset",
    "LabelledSamples",
    "inputs_from_raw",
    "read_arrays",
    "read_inputs",
    "read_samples",
]

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
# What is taken from a folder; a file named by itself may have any name.
_IMAGES, _ARRAYS = (*IMAGE_SUFFIXES, ".pbm", ".pnm"), (".npy", ".npz")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Raw samples with their labels, int64 (N,); `labels` names the classes, () if unknown."""

    train_x: NDArray[Any]
    train_y: NDArray[np.int64]
    test_x: NDArray[Any]
    test_y: NDArray[np.int64]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledSamples:
    """Raw samples (N, ...) as stored, with their classes, int64 (N,) or None without labels.

    `names` are the file of each sample, or its file and row; `labels` the names of the classes, ()
    if unknown; `description` is their source, in words.
    """

    x: NDArray[Any]
    y: NDArray[np.int64] | None
    names: tuple[str, ...]
    labels: tuple[str, ...]
    description: str


def read_samples(inputs: Any, preprocess: Preprocess | None) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the name and the model's input (C, H, W), (F,) or (H, W, C) of each sample, in order.

    Args:
        inputs: an image, or its file; an array, `.npy` or `.npz` (its array `x`) with samples, or
            one sample, for `preprocess_batch`; a folder of images, or of arrays, in the order of
            their names; or several of these. An input in memory is named by its place.
        preprocess: how a raw sample becomes an input; None where that is not known: arrays are
            then network inputs.

    Raises:
        ResdeployError: a file is missing, damaged, or unfit for this model.
        TypeError: an input is none of these.
    """
    for place, one in enumerate(inputs if isinstance(inputs, list | tuple) else [inputs]):
        if isinstance(one, str | os.PathLike):
            for path in _files(Path(one)):
                if path.suffix.lower() in _ARRAYS:
                    yield from _from_array(_x_of(path), str(path), preprocess)
                else:
                    yield str(path), _from_image(path, preprocess)
        elif _is_image(one):
            yield f"input {place}", _from_image(one, preprocess)
        elif hasattr(one, "__array__"):
            yield from _from_array(np.asarray(one), f"input {place}", preprocess)
        else:
            raise TypeError(
                f"an input must be a path, an image or an array, not {type(one).__name__}"
            )


def _is_image(value: object) -> bool:
    """Test for an image of Pillow, without loading Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def read_inputs(
    path: Path, preprocess: Preprocess | None, *, most: int | None = None
) -> NDArray[np.float32]:
    """Return the first `most` samples of `path` as network inputs (N, ...), all if None.

    Raises:
        ResdeployError: as of `read_samples`, or two samples have different shapes.
    """
    samples = itertools.islice(read_samples(path, preprocess), most)
    first_name, first = next(samples)
    rows = [first]
    for name, sample in samples:
        if sample.shape != first.shape:
            raise ResdeployError(
                f"{first_name} is an input of shape {first.shape}, {name} one of {sample.shape}.",
                where=str(path),
                fix="give inputs of one shape",
            )
        rows.append(sample)
    return np.stack(rows)


def _files(path: Path) -> list[Path]:
    """Return the file itself, or the images of a folder, or its arrays."""
    if not path.is_dir():
        return [path]
    for suffixes in (_IMAGES, _ARRAYS):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
        if files:
            return files
    raise ResdeployError(
        "The folder holds no images and no arrays.",
        where=str(path),
        fix=f"name the files themselves, or a folder of {', '.join((*_IMAGES, *_ARRAYS))}",
    )


def _from_image(image: Any, preprocess: Preprocess | None) -> NDArray[Any]:
    where = str(image) if isinstance(image, Path) else "an image"
    if isinstance(image, Path) and not image.is_file():
        raise ResdeployError("There is no such image.", where=where)
    if preprocess is None:
        raise ResdeployError(
            "How an image becomes an input of this model is not known.",
            where=where,
            fix="give .npy with float32 network inputs, or bundle the model with --preprocess-as",
        )
    inputs_NCHW = preprocess_batch(load_image(image, preprocess)[np.newaxis], preprocess)
    return np.asarray(inputs_NCHW[0])


def _from_array(
    raw: NDArray[Any], name: str, preprocess: Preprocess | None
) -> Iterator[tuple[str, NDArray[Any]]]:
    if preprocess is not None and raw.ndim == len(preprocess.input_shape):
        raw = raw[np.newaxis]
    if raw.ndim < 2 or not len(raw):
        raise ResdeployError(f"The array has shape {raw.shape}: no samples.", where=name)
    try:
        samples = inputs_from_raw(raw, preprocess)
    except ResdeployError as error:
        raise ResdeployError(error.what, where=name, fix=error.fix) from error
    for row, sample in enumerate(samples):
        yield f"{name}[{row}]", sample


def inputs_from_raw(raw: NDArray[Any], preprocess: Preprocess | None) -> NDArray[Any]:
    """Return raw samples as network inputs; without a `preprocess`, they must be inputs already.

    Raises:
        ResdeployError: they are not, or `preprocess_batch` does not take them.
    """
    if preprocess is not None:
        return preprocess_batch(raw, preprocess)
    if raw.dtype.kind != "f":
        raise ResdeployError(
            f"How a raw sample ({raw.dtype}) becomes an input of this model is not known.",
            fix="give float32 network inputs, or bundle the model with --preprocess-as",
        )
    return raw.astype(np.float32)


def _x_of(path: Path) -> NDArray[Any]:
    arrays = read_arrays(path)
    if not isinstance(arrays, dict):
        return arrays
    if "x" not in arrays:
        raise ResdeployError(
            f"The archive has no array 'x' (it has {', '.join(arrays) or 'none'}).",
            where=str(path),
        )
    return arrays["x"]


def read_arrays(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return the array of a file, or those of an .npz by name; never a pickle, a program."""
    try:
        # Opened here, as numpy leaves a damaged archive open.
        with path.open("rb") as file:
            loaded: Any = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except FileNotFoundError as error:
        raise ResdeployError("There is no such file.", where=str(path)) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ResdeployError(
            f"The arrays cannot be read: {error}.",
            where=str(path),
            fix="write them with numpy.save or numpy.savez, numbers only",
        ) from error
