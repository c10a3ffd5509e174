"""Calibration samples, read again on every pass: as many as there are, few in memory at a time.

Of DATA they are the training samples, where there are any. Images are decoded, and an .npz is read,
sample by sample on every pass, so that memory does not depend on their number. Needs no torch.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from resdeploy.data.datasets import load_dataset, training_files
from resdeploy.data.preprocess import load_image, preprocess_batch
from resdeploy.data.samples import inputs_from_raw
from resdeploy.errors import ResdeployError
from resdeploy.graph.affine_layer import Array
from resdeploy.schema.recipes import DataSpec, Preprocess

__all__ = ["SampleSplit", "Samples", "batches", "load_calibration", "memory_limit", "spread"]

# The first of these that an .npz has.
_ARRAYS = ("train_x", "x", "test_x")
_Header = tuple[tuple[int, ...], bool, np.dtype[Any]]
# One sample in four is kept to judge by, as long as it is kept in memory; so are those that choices
# are explored with. At 224 x 224 pixels this is about 200 images and 100.
_HELD_OUT_EVERY = 4
_HELD_OUT_BYTES = 128 * 2**20
_EXPLORED_BYTES = 64 * 2**20
_MOST_HELD_OUT = 1024
_MOST_EXPLORED = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Network inputs that can be read as often as needed.

    Attributes:
        description: for the record.
        num: how many there are.
        read: yields those of the given ascending indices, one by one: float32 (C, H, W) or (F,),
            or uint8 (H, W, C) for a model that takes pixels.
    """

    description: str
    num: int
    read: Callable[[Sequence[int]], Iterator[NDArray[np.float32]]]

    @classmethod
    def of_array(cls, inputs: Array) -> "Samples":
        """Return the samples of an array (N, ...)."""
        return cls(
            description="an array",
            num=len(inputs),
            read=lambda indices: (np.asarray(inputs[i], dtype=np.float32) for i in indices),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleSplit:
    """Calibration samples, split into those to calibrate with and those to judge by.

    Attributes:
        samples: all of them.
        calibrate: the indices that ranges come from.
        explored: some of these, in memory, to choose with.
        held_out: others, in memory, to judge by.
        warnings: oddities of the samples.
    """

    samples: Samples
    calibrate: tuple[int, ...]
    explored: NDArray[np.float32]
    held_out: NDArray[np.float32]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, samples: Samples) -> "SampleSplit":
        """Split samples, evenly over their order; look at them first.

        Raises:
            ResdeployError: there are none, or one of those in memory is not finite.
        """
        if samples.num < 1:
            raise ResdeployError("There are no calibration samples.", where=samples.description)
        every = range(samples.num)
        held_out = [i for i in every if i % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1]
        calibrate = [i for i in every if i % _HELD_OUT_EVERY != _HELD_OUT_EVERY - 1]
        first = next(_checked(samples, [0]))
        judged = spread(held_out or calibrate, memory_limit(first, _HELD_OUT_BYTES, _MOST_HELD_OUT))
        explored = spread(calibrate, memory_limit(first, _EXPLORED_BYTES, _MOST_EXPLORED))
        num_held_out = len(judged) if held_out else 0
        seen, unseen = (_gather(samples, some, like=first) for some in (explored, judged))
        return cls(
            samples=samples,
            calibrate=tuple(calibrate),
            explored=seen,
            held_out=unseen,
            warnings=tuple(_oddities(samples.num, (seen, unseen), num_held_out)),
        )

    def read_calibration(self) -> Iterator[NDArray[np.float32]]:
        """Yield the samples that ranges come from.

        Raises:
            ResdeployError: one of them is not finite.
        """
        return _checked(self.samples, self.calibrate)


def batches(samples: Iterator[Array], size: int) -> Iterator[Array]:
    """Yield samples in batches of at most `size`."""
    while group := list(islice(samples, size)):
        yield np.stack(group)


def spread(indices: Sequence[int], most: int) -> list[int]:
    """Return at most so many of them, evenly over their order: folders are sorted by class."""
    if len(indices) <= most:
        return list(indices)
    return [indices[i * len(indices) // most] for i in range(most)]


def memory_limit(sample: Array, num_bytes: int, most: int) -> int:
    """Return the number of samples of this size that fit, at least one and at most `most`."""
    return max(1, min(most, num_bytes // max(1, sample.nbytes)))


def _gather(samples: Samples, indices: Sequence[int], *, like: Array) -> NDArray[np.float32]:
    """Return samples (N, ...), of which there is never a second copy in memory."""
    gathered = np.empty((len(indices), *like.shape), like.dtype)
    for place, sample in zip(gathered, _checked(samples, indices, like.shape), strict=True):
        place[...] = sample
    return gathered


def _checked(
    samples: Samples, indices: Sequence[int], shape: tuple[int, ...] | None = None
) -> Iterator[NDArray[np.float32]]:
    for index, sample in zip(indices, samples.read(indices), strict=True):
        shape = shape or sample.shape
        if sample.shape != shape:
            raise ResdeployError(
                f"Calibration sample {index} has shape {sample.shape}, others {shape}.",
                where=samples.description,
            )
        if not np.isfinite(sample).all():
            raise ResdeployError(
                f"Calibration sample {index} holds NaN or infinity.",
                where=samples.description,
                fix="remove it, or find out how it came to be",
            )
        yield sample


def _oddities(num: int, groups: Sequence[Array], num_held_out: int) -> Iterator[str]:
    if not num_held_out:
        yield (
            f"only {num} calibration {'sample' if num == 1 else 'samples'}: too few to hold any "
            "out, so the result is judged on what it was calibrated with"
        )
    elif num_held_out < 100:
        yield f"only {num_held_out} samples to judge by: one flip is {1 / num_held_out:.1%} of them"
    num_seen, first = sum(map(len, groups)), groups[0][0]
    if num_seen > 1 and all((group == first).all() for group in groups):
        yield (
            f"the {num_seen} calibration samples looked at are all the same: ranges fit one only"
        )
    if all((group == first.flat[0]).all() for group in groups):
        yield "every value of the calibration samples is the same: ranges mean nothing"


# --- DATA ---


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
    if not path.is_file():
        raise ResdeployError(
            "There is no such file.", where=str(path), fix="give an .npz with x or train_x"
        )
    with _array(path) as (_, name, header):
        shape, fortran, dtype = header
    if fortran or dtype.kind not in "uif" or len(shape) < 2 or not shape[0]:
        raise ResdeployError(
            f"The array {name} ({dtype}, shape {shape}) is not a batch of samples, one "
            "after the other.",
            where=str(path),
            fix="save numpy.ascontiguousarray of numbers, (N, C, H, W) or (N, F)",
        )
    if preprocess is None and dtype.kind != "f":
        raise _not_known(path.name)
    return Samples(
        description=f"npz ({path.name}, {name})",
        num=shape[0],
        read=lambda indices: (
            inputs_from_raw(raw[np.newaxis], preprocess)[0] for raw in _rows(path, indices)
        ),
    )


def _rows(path: Path, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Yield rows of the array in ascending order, without reading the whole of it."""
    with _array(path) as (stream, _, (shape, _, dtype)):
        size = int(np.prod(shape[1:])) * dtype.itemsize
        place = 0
        for index in indices:
            stream.seek((index - place) * size, 1)
            content = stream.read(size)
            place = index + 1
            yield np.frombuffer(content, dtype).reshape(shape[1:])


@contextmanager
def _array(path: Path) -> Iterator[tuple[IO[bytes], str, _Header]]:
    """Open the calibration array behind its header: shape, order and type; and give its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            name = next((name for name in _ARRAYS if f"{name}.npy" in names), None)
            if name is None:
                raise ResdeployError(
                    f"The file has no array 'x' or 'train_x'; it has {', '.join(names) or 'none'}.",
                    where=str(path),
                    fix="save it with numpy.savez(…, x=)",
                )
            with archive.open(f"{name}.npy") as stream:
                is_old = npy.read_magic(stream) == (1, 0)
                read = npy.read_array_header_1_0 if is_old else npy.read_array_header_2_0
                yield stream, name, read(stream)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ResdeployError(f"The file cannot be read: {error}.", where=str(path)) from error


def _not_known(title: str) -> ResdeployError:
    return ResdeployError(
        "How raw samples become inputs of this model is not known.",
        where=title,
        fix="name a recipe whose preprocessing applies, with --recipe, or give float32 inputs",
    )
