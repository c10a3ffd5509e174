"""Data sets by name: `DataSpec` to raw numpy arrays, without torch and without downloads.

Raw means as stored: uint8 images NCHW or NHWC, or float vectors (N, F), for `preprocess_batch`.
"""

import itertools
import os
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resdeploy.data.cifar import read_cifar
from resdeploy.data.names import DATA_NAMES, EMBEDDED, IMAGE_SUFFIXES
from resdeploy.data.preprocess import load_image
from resdeploy.data.samples import Dataset, LabelledSamples, read_arrays
from resdeploy.errors import MissingExtraError, ResdeployError
from resdeploy.schema.recipes import DataSpec, Preprocess

__all__ = [
    "DATA_NAMES",
    "FolderImage",
    "epoch_order",
    "folder_images",
    "labelled_arrays",
    "load_dataset",
    "load_labelled",
    "parse_data",
    "stratified_split",
    "training_labels",
]

# By data set: a file or a folder, and the fix where there is none.
_PLACES = {
    "npz": ("file", "give an .npz with x, or train_x, train_y, test_x and test_y"),
    "image-folder": (
        "folder",
        "put images in train/CLASS/ and test/CLASS/, or in CLASS/, one folder per class",
    ),
}
_TEST_FRACTION = 0.2
_DIGIT_WHITE = 16
_TEN_DIGITS = tuple("0123456789")


def parse_data(text: str) -> DataSpec:
    """Return the data set that a command line names.

    One of `digits`, `mnist1d`, `NAME:PATH` for the others (`cifar10:data/`), a path that ends in
    `.npz`, or a folder of images.

    Raises:
        ResdeployError: the text is none of these.
    """
    name, colon, path = text.partition(":")
    if name in DATA_NAMES:
        if name in EMBEDDED and colon:
            raise ResdeployError(f"{name} comes with resdeploy and takes no path.", where=text)
        return DataSpec(name=name, path=path or None)
    if text.endswith(".npz"):
        return DataSpec(name="npz", path=text)
    if text and Path(text).expanduser().is_dir():
        return DataSpec(name="image-folder", path=text)
    raise ResdeployError(
        f"There is no data set {text!r}, and no such folder.",
        fix="one of: digits, mnist1d, cifar10:PATH, cifar100:PATH, image-folder:PATH, FILE.npz, "
        "a folder of images",
    )


def load_dataset(spec: DataSpec, preprocess: Preprocess) -> Dataset:
    """Return a data set, in memory, in an order that never changes.

    digits: uint8 (N, 1, 8, 8), 0…255; one fifth of each class is held out, by `spec.split_seed`.
    mnist1d: float32 (N, 40), generated from the package's own seed; 4000 and 1000.
    cifar10, cifar100: uint8 (N, 3, 32, 32) from the official archives.
    image-folder: uint8 (N, C, H, W) through `load_image`, from `train/CLASS/` and `test/CLASS/`
        (or `val/CLASS/`), or from `CLASS/` with a fifth of each class held out.
    npz: `train_x`, `train_y`, `test_x`, `test_y`.

    Raises:
        ResdeployError: the data is not where `spec` says, is damaged, or does not fit together.
        MissingExtraError: the package that generates it is not installed.
    """
    match spec.name:
        case "digits":
            return _load_digits(spec)
        case "mnist1d":
            return _load_mnist1d()
        case "cifar10" | "cifar100":
            return read_cifar(spec.name, spec.path)
        case "image-folder":
            return _load_image_folder(spec, preprocess)
        case "npz":
            return _load_npz_dataset(_existing(spec))
    raise ResdeployError(
        f"There is no data set {spec.name!r}.",
        where="data.name",
        fix=f"one of: {', '.join(DATA_NAMES)}",
    )


def load_labelled(spec: DataSpec, preprocess: Preprocess | None) -> LabelledSamples:
    """Return the held-out samples, with their labels and names as far as there are any.

    The test part of `load_dataset`; of an .npz `x` and `y` if it has them; and of a folder that
    holds images rather than classes all of them, in the order of their names, without labels.

    Raises:
        ResdeployError: as `load_dataset`; or image files are given without a `preprocess`, which
            decodes them.
        MissingExtraError: as `load_dataset`.
    """
    if spec.name == "npz":
        return _load_npz_evaluation(_existing(spec))
    if spec.name == "image-folder":
        return _load_labelled_images(spec, preprocess)
    # None of these is decoded, so that any preprocessing will do.
    dataset = load_dataset(spec, preprocess or Preprocess(input_shape=(1,)))
    return _in_rows(dataset.test_x, dataset.test_y, spec.name, dataset.labels)


def labelled_arrays(x: NDArray[Any], y: NDArray[Any]) -> LabelledSamples:
    """Return raw samples (N, ...) in memory with their classes (N,), whole numbers.

    Raises:
        ResdeployError: they are not as many, or not whole numbers.
    """
    name = "the given samples"
    return _in_rows(x, _integer_labels(y, len(x), name), name)


def _in_rows(
    x: NDArray[Any], y: NDArray[np.int64] | None, source: str, labels: tuple[str, ...] = ()
) -> LabelledSamples:
    names = tuple(f"{source}[{row}]" for row in range(len(x)))
    description = f"all {len(x)} held-out samples of {source}"
    return LabelledSamples(x=x, y=y, names=names, labels=labels, description=description)


def _load_labelled_images(spec: DataSpec, preprocess: Preprocess | None) -> LabelledSamples:
    path = _existing(spec)
    if preprocess is None:
        raise ResdeployError(
            "How an image becomes an input of this model is not known.",
            where=str(path),
            fix="say it when the model is made, with --preprocess-as or --recipe; or give an .npz",
        )
    loose = _image_files(path)
    parts = None if loose else _find_parts(path, spec)
    files, y = (loose, None) if parts is None else parts.test
    which = f"all {len(files)} images"
    if parts is not None and parts.is_split_here:
        num_images = len(parts.train[0]) + len(files)
        which = f"{len(files)} of {num_images} images (the fifth of each class held out)"
    return LabelledSamples(
        x=_decode(files, preprocess),
        y=y,
        names=tuple(map(str, files)),
        labels=() if parts is None else parts.labels,
        description=f"{which} of {path}",
    )


def training_labels(
    spec: DataSpec,
) -> tuple[tuple[Path, ...], NDArray[np.int64] | None, tuple[str, ...]]:
    """Return the images of a folder that are not held out, their classes, and the names of these.

    All of them, without classes and names, if it holds images rather than folders of them.

    Raises:
        ResdeployError: there is no such folder, or it holds no images.
    """
    path = _existing(spec)
    if loose := _image_files(path):
        return loose, None, ()
    parts = _find_parts(path, spec)
    return *parts.train, parts.labels


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderImage:
    """An image of a folder, with its class and its part as far as the folder has such."""

    path: Path
    label: str | None = None
    part: Literal["train", "test"] | None = None


def folder_images(spec: DataSpec) -> tuple[FolderImage, ...]:
    """Return all images of a folder, in the order of their names; none is opened.

    Raises:
        ResdeployError: there is no such folder, or it holds no images.
    """
    path = _existing(spec)
    if loose := _image_files(path):
        return tuple(FolderImage(path=one) for one in loose)
    parts = _find_parts(path, spec)
    sides: tuple[tuple[Literal["train", "test"], _Part], ...] = (
        ("train", parts.train),
        ("test", parts.test),
    )
    return tuple(
        FolderImage(path=one, label=parts.labels[y], part=None if parts.is_split_here else part)
        for part, (files, labels_N) in sides
        for one, y in zip(files, labels_N, strict=True)
    )


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the samples in one epoch, a function of (seed, epoch) alone.

    So that a resumed run needs no state of a random generator.
    """
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


def stratified_split(
    y: NDArray[np.int64], *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the training and of the test samples, each in ascending order.

    Of each class a fifth is held out, rounded, and at least one sample.

    Raises:
        ResdeployError: a class has a single sample, which cannot be on both sides.
    """
    rng = np.random.default_rng(seed)
    test: list[NDArray[np.int64]] = []
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        if len(members) < 2:
            raise ResdeployError(f"Class {label} has a single sample: none is left to train on.")
        test.append(members[: max(1, round(_TEST_FRACTION * len(members)))])
    test_indices = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(y)), test_indices), test_indices


def _load_digits(spec: DataSpec) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="train") from error
    bunch = load_digits()
    # As 8-bit images, so that a picture of a digit from a file means the same as a sample.
    x = np.rint(bunch.images * (255 / _DIGIT_WHITE)).astype(np.uint8)[:, np.newaxis]
    y = bunch.target.astype(np.int64)
    train, test = stratified_split(y, seed=spec.split_seed)
    return Dataset(
        train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test], labels=_TEN_DIGITS
    )


def _load_mnist1d() -> Dataset:
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise MissingExtraError("mnist1d", extra="train") from error
    # The package seeds the global generators, which belong to the caller.
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        data = make_dataset(get_dataset_args())
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
    return Dataset(
        train_x=data["x"].astype(np.float32),
        train_y=data["y"].astype(np.int64),
        test_x=data["x_test"].astype(np.float32),
        test_y=data["y_test"].astype(np.int64),
        labels=_TEN_DIGITS,
    )


# --- image folders -------------------------------------------------------------------------------


_Part = tuple[tuple[Path, ...], NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Parts:
    """Files and labels of both parts of a folder; `is_split_here` if it has no parts of its own."""

    train: _Part
    test: _Part
    labels: tuple[str, ...]
    is_split_here: bool


def _load_image_folder(spec: DataSpec, preprocess: Preprocess) -> Dataset:
    parts = _find_parts(_existing(spec), spec)
    (train_files, train_y), (test_files, test_y) = parts.train, parts.test
    return Dataset(
        train_x=_decode(train_files, preprocess),
        train_y=train_y,
        test_x=_decode(test_files, preprocess),
        test_y=test_y,
        labels=parts.labels,
    )


def _find_parts(path: Path, spec: DataSpec) -> _Parts:
    held_out = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    if held_out is not None and (path / "train").is_dir():
        train, labels = _list_classes(path / "train")
        test, test_labels = _list_classes(held_out)
        if labels != test_labels:
            odd = sorted(set(labels) ^ set(test_labels))
            raise ResdeployError(
                f"train and {held_out.name} differ in their classes: {', '.join(odd[:5])}.",
                where=str(path),
            )
        return _Parts(train=train, test=test, labels=labels, is_split_here=False)
    (files, y), labels = _list_classes(path)
    train, test = (
        (tuple(files[i] for i in chosen), y[chosen])
        for chosen in stratified_split(y, seed=spec.split_seed)
    )
    return _Parts(train=train, test=test, labels=labels, is_split_here=True)


def _list_classes(folder: Path) -> tuple[_Part, tuple[str, ...]]:
    """Return the images of each sub-folder; classes and files are in the order of their names."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise ResdeployError(
            "There is no folder of a class here.",
            where=str(folder),
            fix=_PLACES["image-folder"][1],
        )
    found = [_image_files(class_folder) for class_folder in classes]
    if () in found:
        raise ResdeployError(
            "There is no image in this class.",
            where=str(classes[found.index(())]),
            fix=f"the files read end in {', '.join(IMAGE_SUFFIXES)}",
        )
    y = np.repeat(np.arange(len(found), dtype=np.int64), [len(files) for files in found])
    return (tuple(itertools.chain(*found)), y), tuple(p.name for p in classes)


def _image_files(folder: Path) -> tuple[Path, ...]:
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    return tuple(sorted(p for p in files if not p.name.startswith(".")))


def _decode(files: tuple[Path, ...], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Return image files as uint8 (N, C, H, W)."""
    x = np.empty((len(files), *preprocess.input_shape), dtype=np.uint8)

    def decode(index: int) -> None:
        x[index] = load_image(files[index], preprocess)

    # Threads, as Pillow decodes and resizes without holding the interpreter.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(decode, range(len(files))))
    return x


# --- npz -----------------------------------------------------------------------------------------


def _load_npz_dataset(path: Path) -> Dataset:
    arrays = _read_npz(path)
    missing = [n for n in ("train_x", "train_y", "test_x", "test_y") if n not in arrays]
    if missing:
        raise ResdeployError(
            f"The file has no array {missing[0]!r}; it has {', '.join(sorted(arrays)) or 'none'}.",
            where=str(path),
            fix="save it with numpy.savez(…, train_x=, train_y=, test_x=, test_y=)",
        )
    train_x, test_x = _batch(arrays["train_x"], path), _batch(arrays["test_x"], path)
    return Dataset(
        train_x=train_x,
        train_y=_integer_labels(arrays["train_y"], len(train_x), str(path)),
        test_x=test_x,
        test_y=_integer_labels(arrays["test_y"], len(test_x), str(path)),
    )


def _load_npz_evaluation(path: Path) -> LabelledSamples:
    arrays = _read_npz(path)
    prefix = "" if "x" in arrays else "test_"
    if f"{prefix}x" not in arrays:
        raise ResdeployError(
            f"The file has neither 'x' nor 'test_x'; it has {', '.join(sorted(arrays)) or 'none'}.",
            where=str(path),
            fix="save it with numpy.savez(…, x=, y=); y is optional",
        )
    x, y = _batch(arrays[f"{prefix}x"], path), arrays.get(f"{prefix}y")
    return _in_rows(x, None if y is None else _integer_labels(y, len(x), str(path)), str(path))


def _read_npz(path: Path) -> Mapping[str, NDArray[Any]]:
    arrays = read_arrays(path)
    if not isinstance(arrays, dict):
        raise ResdeployError("This is a single array, not an .npz.", where=str(path))
    return arrays


def _batch(x: NDArray[Any], path: Path) -> NDArray[Any]:
    if x.ndim < 2 or not len(x):
        raise ResdeployError(f"Samples of shape {x.shape} are not a batch.", where=str(path))
    return x


def _integer_labels(y: NDArray[Any], num_samples: int, where: str) -> NDArray[np.int64]:
    if y.dtype.kind not in "iu" or y.shape != (num_samples,):
        raise ResdeployError(
            f"{num_samples} samples need as many whole numbers as labels; "
            f"found {y.dtype} of shape {y.shape}.",
            where=where,
        )
    return y.astype(np.int64)


def _existing(spec: DataSpec) -> Path:
    kind, fix = _PLACES[spec.name]
    if spec.path is None:
        raise ResdeployError(
            f"Where is the data? {spec.name} needs a path.",
            fix=f"{fix}, as {spec.name}:PATH",
        )
    path = Path(spec.path).expanduser()
    if not (path.is_file() if kind == "file" else path.is_dir()):
        raise ResdeployError(f"There is no such {kind}.", where=str(path), fix=fix)
    return path
