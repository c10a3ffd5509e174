"""DATA as calibration samples: an .npz, a folder of images, or a data set by its name.

Of DATA they are the training samples, where there are any. Images are decoded, and an .npz is read,
sample by sample on every pass, so that memory does not depend on their number. Needs no torch.
"""

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from resdeploy.data.datasets import load_dataset, training_labels
from resdeploy.data.preprocess import load_image, preprocess_batch
from resdeploy.data.samples import inputs_from_raw
from resdeploy.errors import ResdeployError
from resdeploy.graph.affine_layer import Array
from resdeploy.quant.samples import Samples, digest, fields, spread
from resdeploy.schema.recipes import DataSpec, Preprocess

__all__ = ["check_shapes", "load_calibration"]

# The first of these that an .npz has.
_ARRAYS = ("train_x", "x", "test_x")
_Header = tuple[tuple[int, ...], bool, np.dtype[Any]]
Shapes = Mapping[str, Sequence[int | None]]

# Images whose size is looked at, to find out whether they are enlarged.
_NUM_SIZED = 64


def load_calibration(
    spec: DataSpec, preprocess: Preprocess | None, *, inputs: Sequence[str] = ()
) -> Samples:
    """Return the samples that a model is calibrated with.

    Args:
        spec: where they are.
        preprocess: how a raw sample becomes an input; None where that is not known: an .npz of
            float32 network inputs is then all that is taken.
        inputs: the names of the model's inputs; of several, an .npz has an array for each.

    Raises:
        ResdeployError: the data is not there, is damaged, or is raw and `preprocess` is None.
    """
    if spec.name == "npz":
        path = Path(spec.path or "").expanduser()
        return _of_records(path, inputs) if len(inputs) > 1 else _of_npz(path, preprocess, inputs)
    if len(inputs) > 1:
        raise ResdeployError(
            f"The model has {len(inputs)} inputs: {', '.join(inputs)}.",
            where=spec.name,
            fix=f"give an .npz with an array for each: numpy.savez(…, {inputs[0]}=, {inputs[1]}=)",
        )
    if preprocess is None:
        raise _not_known(spec.name)
    title = spec.name if spec.path is None else f"{spec.name} ({Path(spec.path).name})"
    if spec.name == "image-folder":
        files, labels, names = training_labels(spec)
        return Samples(
            description=title,
            num=len(files),
            read=lambda indices: (
                preprocess_batch(load_image(files[i], preprocess)[np.newaxis], preprocess)[0]
                for i in indices
            ),
            digests=lambda: _digests_of(files),
            labels=labels,
            label_names=names,
            warnings=tuple(_enlarged(files, preprocess)),
        )
    dataset = load_dataset(spec, preprocess)
    raw = dataset.train_x
    return Samples(
        description=title,
        num=len(raw),
        read=lambda indices: (preprocess_batch(raw[i : i + 1], preprocess)[0] for i in indices),
        digests=lambda: [digest(sample.tobytes()) for sample in raw],
        labels=dataset.train_y,
        label_names=dataset.labels,
    )


def check_shapes(samples: Samples, shapes: Shapes) -> None:
    """Raise ResdeployError unless samples have the shapes of a model's inputs, before any is run.

    `shapes` are those of one sample, by the input's name; None is a size that is open.
    """
    first = fields(next(iter(samples.read([0]))))
    for (name, shape), values in zip(shapes.items(), first.values(), strict=True):
        is_fit = len(shape) == values.ndim and all(
            size in (None, found) for size, found in zip(shape, values.shape, strict=True)
        )
        if not is_fit:
            raise ResdeployError(
                f"A calibration sample is {_text(values.shape)}, the model's input {name!r} "
                f"{_text(shape)}.",
                where=samples.description,
                fix="give images, which are resized as the recipe says, or arrays of the model's "
                "size; or export the model for theirs: resdeploy export --input "
                + ",".join(map(str, values.shape)),
            )


def _text(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "one number"


# --- folders of images ---------------------------------------------------------------------------


def _digests_of(files: Sequence[Path]) -> list[Hashable]:
    """Return a digest of each file; files of different sizes are told apart without being read."""
    sizes = [os.stat(file).st_size for file in files]
    count = Counter(sizes)
    return [
        digest(file.read_bytes()) if count[size] > 1 else size
        for file, size in zip(files, sizes, strict=True)
    ]


def _enlarged(files: Sequence[Path], preprocess: Preprocess) -> Iterator[str]:
    """Yield a warning if half of the images are blown up to twice their size or more."""
    from PIL import Image  # noqa: PLC0415 - arrays need no Pillow

    looked_at = [files[i] for i in spread(range(len(files)), _NUM_SIZED)]
    wanted = preprocess.resize or min(preprocess.input_shape[1:])
    sides = []
    for file in looked_at:
        try:
            with Image.open(file) as image:
                sides.append(min(image.size))
        except OSError:  # reported where it is decoded
            return
    if sides and float(np.median(sides)) * 2 <= wanted:
        yield (
            f"half of the images have at most {np.median(sides):.0f} pixels along their shorter "
            f"side and are enlarged to {wanted}: are they those that the model is for?"
        )


# --- arrays --------------------------------------------------------------------------------------


def _of_npz(path: Path, preprocess: Preprocess | None, inputs: Sequence[str]) -> Samples:
    with _opened(path) as archive:
        given = _names_in(archive)
        name = next((name for name in (*_ARRAYS, *inputs) if name in given), None)
        if name is None:
            raise ResdeployError(
                f"The file has no array 'x' or 'train_x'; it has {', '.join(given) or 'none'}.",
                where=str(path),
                fix="save it with numpy.savez(…, x=)",
            )
        shape, dtype = _header_of(archive, name, path)
        labels = _labels_in(archive, f"{name.removesuffix('x')}y", shape[0], path)
    if preprocess is None and dtype.kind != "f":
        raise _not_known(path.name)

    def read(indices: Sequence[int]) -> Iterator[Array]:
        for raw in _rows(path, name, indices):
            yield inputs_from_raw(raw[np.newaxis], preprocess)[0]

    return Samples(
        description=f"npz ({path.name}, {name})",
        num=shape[0],
        read=read,
        digests=lambda: [digest(row.tobytes()) for row in _rows(path, name, range(shape[0]))],
        labels=labels,
    )


def _of_records(path: Path, inputs: Sequence[str]) -> Samples:
    """Return samples of several inputs, which are network inputs already."""
    with _opened(path) as archive:
        given = _names_in(archive)
        if missing := [name for name in inputs if name not in given]:
            raise ResdeployError(
                f"The model has {len(inputs)} inputs, and the file no array {missing[0]!r}; it has "
                f"{', '.join(given) or 'none'}.",
                where=str(path),
                fix=f"save it with numpy.savez(…, {', '.join(f'{name}=' for name in inputs)})",
            )
        headers = {name: _header_of(archive, name, path) for name in inputs}
        lengths = {name: shape[0] for name, (shape, _) in headers.items()}
        num = next(iter(lengths.values()))
        if len({*lengths.values()}) > 1:
            raise ResdeployError(
                "The arrays have different numbers of samples: "
                + ", ".join(f"{length} of {name}" for name, length in lengths.items())
                + ".",
                where=str(path),
                fix="save one row of each array for each sample",
            )
        labels = _labels_in(archive, "y", num, path)
    record = np.dtype(
        [
            (name, np.float32 if dtype.kind == "f" else dtype, shape[1:])
            for name, (shape, dtype) in headers.items()
        ]
    )

    def read(indices: Sequence[int]) -> Iterator[Array]:
        for values in zip(*(_rows(path, name, indices) for name in inputs), strict=True):
            sample = np.empty((), record)
            for name, value in zip(inputs, values, strict=True):
                sample[name] = value
            yield sample

    return Samples(
        description=f"npz ({path.name}: {', '.join(inputs)})",
        num=num,
        read=read,
        digests=lambda: [digest(sample.tobytes()) for sample in read(range(num))],
        labels=labels,
    )


def _rows(path: Path, name: str, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Yield rows of an array in ascending order, without reading the whole of it."""
    with ExitStack() as stack:
        archive = stack.enter_context(_opened(path))
        stream = stack.enter_context(archive.open(f"{name}.npy"))
        shape, _, dtype = _read_header(stream)
        size = int(np.prod(shape[1:])) * dtype.itemsize
        place = 0
        for index in indices:
            stream.seek((index - place) * size, 1)
            content = stream.read(size)
            place = index + 1
            yield np.frombuffer(content, dtype).reshape(shape[1:])


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise ResdeployError(
            "There is no such file.", where=str(path), fix="give an .npz with x or train_x"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ResdeployError(f"The file cannot be read: {error}.", where=str(path)) from error


def _names_in(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist()]


def _header_of(
    archive: zipfile.ZipFile, name: str, path: Path
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of an array of samples, one after the other."""
    with archive.open(f"{name}.npy") as stream:
        shape, fortran, dtype = _read_header(stream)
    if fortran or dtype.kind not in "uif" or not shape or not shape[0]:
        raise _no_batch(name, dtype, shape, path)
    if len(shape) < 2 and name in _ARRAYS:
        raise _no_batch(name, dtype, shape, path)
    return shape, dtype


def _no_batch(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], path: Path
) -> ResdeployError:
    return ResdeployError(
        f"The array {name} ({dtype}, shape {shape}) is not a batch of samples, one after the "
        "other.",
        where=str(path),
        fix="save numpy.ascontiguousarray of numbers, (N, C, H, W) or (N, F)",
    )


def _labels_in(
    archive: zipfile.ZipFile, name: str, num: int, path: Path
) -> NDArray[np.int64] | None:
    """Return the labels beside the samples, (N, ...); None without, or if they are no classes."""
    if name not in _names_in(archive):
        return None
    with archive.open(f"{name}.npy") as stream:
        labels = npy.read_array(stream, allow_pickle=False)
    if labels.shape[:1] != (num,):
        raise ResdeployError(
            f"There are {num} samples, and the labels have shape {labels.shape}.",
            where=f"{path}, {name}",
            fix="save one label for each sample, or none",
        )
    return labels.astype(np.int64) if labels.dtype.kind in "iub" else None


def _read_header(stream: IO[bytes]) -> _Header:
    is_old = npy.read_magic(stream) == (1, 0)
    read = npy.read_array_header_1_0 if is_old else npy.read_array_header_2_0
    header: _Header = read(stream)
    return header


def _not_known(title: str) -> ResdeployError:
    return ResdeployError(
        "How raw samples become inputs of this model is not known.",
        where=title,
        fix="name a recipe whose preprocessing applies, with --recipe, or give float32 inputs",
    )
