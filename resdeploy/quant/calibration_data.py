"""DATA as calibration samples: training samples where there are any, few in memory at a time.

Images are decoded, and an .npz is read, sample by sample on every pass, so that memory does not
depend on their number. Needs no torch.
"""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.data.datasets import load_dataset, training_files
from resdeploy.data.preprocess import load_image, preprocess_batch
from resdeploy.data.samples import inputs_from_raw
from resdeploy.errors import ResdeployError
from resdeploy.quant.samples import Samples
from resdeploy.schema.recipes import DataSpec, Preprocess

__all__ = ["load_calibration"]

# The first of these that an .npz has.
_ARRAYS = ("train_x", "x", "test_x")


def load_calibration(spec: DataSpec, preprocess: Preprocess | None) -> Samples:
    """Return the samples that a model is calibrated with.

    Args:
        spec: where they are.
        preprocess: how a raw sample becomes an input; None where that is not known: an .npz of
            float32 network inputs is then all that is taken.

    Raises:
        ResdeployError: the data is not there, is damaged, or is raw and `preprocess` is None.
    """
    if spec.name == "npz":
        return _of_npz(Path(spec.path or "").expanduser(), preprocess)
    if preprocess is None:
        raise _not_known(spec.name)
    title = spec.name if spec.path is None else f"{spec.name} ({Path(spec.path).name})"
    if spec.name == "image-folder":
        files = training_files(spec)
        return Samples(
            description=title,
            num=len(files),
            read=lambda indices: (
                preprocess_batch(load_image(files[i], preprocess)[np.newaxis], preprocess)[0]
                for i in indices
            ),
        )
    raw = load_dataset(spec, preprocess).train_x
    return Samples(
        description=title,
        num=len(raw),
        read=lambda indices: (preprocess_batch(raw[i : i + 1], preprocess)[0] for i in indices),
    )


def _of_npz(path: Path, preprocess: Preprocess | None) -> Samples:
    member, shape, dtype = _look_into(path)
    if preprocess is None and dtype.kind != "f":
        raise _not_known(path.name)

    def read(indices: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        for raw in _rows(path, member, indices):
            yield inputs_from_raw(raw[np.newaxis], preprocess)[0]

    return Samples(description=f"npz ({path.name}, {member[:-4]})", num=shape[0], read=read)


def _look_into(path: Path) -> tuple[str, tuple[int, ...], np.dtype[Any]]:
    """Return the name, shape and type of the calibration array."""
    if not path.is_file():
        raise ResdeployError(
            "There is no such file.", where=str(path), fix="give an .npz with x or train_x"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            member = next((f"{n}.npy" for n in _ARRAYS if f"{n}.npy" in names), None)
            if member is None:
                raise ResdeployError(
                    f"The file has no array 'x' or 'train_x'; it has {', '.join(names) or 'none'}.",
                    where=str(path),
                    fix="save it with numpy.savez(…, x=)",
                )
            with archive.open(member) as stream:
                shape, fortran, dtype = _header(stream)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ResdeployError(f"The file cannot be read: {error}.", where=str(path)) from error
    if fortran or dtype.kind not in "uif" or len(shape) < 2 or not shape[0]:
        raise ResdeployError(
            f"The array {member[:-4]} ({dtype}, shape {shape}) is not a batch of samples, one "
            "after the other.",
            where=str(path),
            fix="save numpy.ascontiguousarray of numbers, (N, C, H, W) or (N, F)",
        )
    return member, shape, dtype


def _rows(path: Path, member: str, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Yield rows of an array in ascending order, without reading the whole of it."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            shape, _, dtype = _header(stream)
            size = int(np.prod(shape[1:])) * dtype.itemsize
            place = 0
            for index in indices:
                stream.seek((index - place) * size, 1)
                content = stream.read(size)
                place = index + 1
                yield np.frombuffer(content, dtype).reshape(shape[1:])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ResdeployError(f"The file cannot be read: {error}.", where=str(path)) from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(stream)
    return shape, fortran, dtype


def _not_known(title: str) -> ResdeployError:
    return ResdeployError(
        "How raw samples become inputs of this model is not known.",
        where=title,
        fix="name a recipe whose preprocessing applies, with --recipe, or give float32 inputs",
    )
