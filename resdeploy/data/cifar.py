"""CIFAR-10 and CIFAR-100 from the official archives, as downloaded or as extracted.

Both official versions are read, the Python one and the binary one:

    cifar-10-batches-py/     data_batch_1 … data_batch_5, test_batch, batches.meta
    cifar-10-batches-bin/    data_batch_1.bin … test_batch.bin, batches.meta.txt
    cifar-100-python/        train, test, meta
    cifar-100-binary/        train.bin, test.bin, fine_label_names.txt

The Python version is a pickle, and a pickle is a program. Only what rebuilds a numpy array may run.
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError

__all__ = ["CifarArrays", "read_cifar"]

_IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CifarArrays:
    """Images uint8 (N, 3, 32, 32) RGB, labels int64 (N,), and the names of the classes."""

    train_x: NDArray[np.uint8]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.int64]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """One official version: its folder, its archive, its files, and how labels are stored.

    Attributes:
        label_key: the pickled dictionary's entry; None for the binary version.
        label_bytes: bytes before each image of the binary version; the last one is the label.
    """

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str
    num_classes: int
    label_key: str | None = None
    names_key: str = ""
    label_bytes: int = 1

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names)


_LAYOUTS = {
    "cifar10": (
        _Layout(
            folder="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            train=tuple(f"data_batch_{i}" for i in range(1, 6)),
            test="test_batch",
            names="batches.meta",
            num_classes=10,
            label_key="labels",
            names_key="label_names",
        ),
        _Layout(
            folder="cifar-10-batches-bin",
            archive="cifar-10-binary.tar.gz",
            train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            test="test_batch.bin",
            names="batches.meta.txt",
            num_classes=10,
        ),
    ),
    "cifar100": (
        _Layout(
            folder="cifar-100-python",
            archive="cifar-100-python.tar.gz",
            train=("train",),
            test="test",
            names="meta",
            num_classes=100,
            label_key="fine_labels",
            names_key="fine_label_names",
        ),
        _Layout(
            folder="cifar-100-binary",
            archive="cifar-100-binary.tar.gz",
            train=("train.bin",),
            test="test.bin",
            names="fine_label_names.txt",
            num_classes=100,
            label_bytes=2,
        ),
    ),
}


def read_cifar(name: str, path: str | Path | None) -> CifarArrays:
    """Return `cifar10` or `cifar100` (its fine labels) from where the user keeps it.

    Args:
        name: "cifar10" or "cifar100".
        path: an archive, an extracted folder, or the folder that holds either.

    Raises:
        ResdeployError: nothing of the kind is there, or a file is truncated, damaged, or a pickle
            that wants more than numpy arrays.
    """
    layouts = _LAYOUTS[name]
    layout, files = _find(name, layouts, path)
    where = str(path)
    parts = [_read_batch(files[member], layout, f"{where}: {member}") for member in layout.train]
    if len({len(labels) for _, labels in parts}) > 1:
        sizes = ", ".join(str(len(labels)) for _, labels in parts)
        raise ResdeployError(
            f"The training batches differ in size ({sizes} images): one of them is cut short.",
            where=where,
            fix="extract the archive again",
        )
    test_x, test_y = _read_batch(files[layout.test], layout, f"{where}: {layout.test}")
    return CifarArrays(
        train_x=np.concatenate([images for images, _ in parts]),
        train_y=np.concatenate([labels for _, labels in parts]),
        test_x=test_x,
        test_y=test_y,
        labels=_read_names(files[layout.names], layout, f"{where}: {layout.names}"),
    )


def _find(
    name: str, layouts: tuple[_Layout, ...], path: str | Path | None
) -> tuple[_Layout, dict[str, bytes]]:
    """Return the version that is at `path`, and the content of its files by name."""
    root = Path(path).expanduser() if path is not None else None
    if root is not None and root.is_file():
        for layout in layouts:
            files = _read_tar(root, layout.files)
            if files:
                return layout, _complete(files, layout, root)
        raise ResdeployError(f"This archive does not hold {name}.", where=str(root))
    if root is not None:
        for layout in layouts:
            for folder in (root, root / layout.folder):
                if any((folder / member).is_file() for member in (*layout.train, layout.test)):
                    return layout, _complete(_read_folder(folder, layout.files), layout, folder)
        for layout in layouts:
            if (root / layout.archive).is_file():
                return _find(name, (layout,), root / layout.archive)
    archives = " or ".join(layout.archive for layout in layouts)
    folders = " or ".join(layout.folder for layout in layouts)
    raise ResdeployError(
        f"{name} is not here." if root is not None else f"Where is {name}? No path was given.",
        where=None if root is None else str(root),
        fix=f"download {archives} from https://www.cs.toronto.edu/~kriz/cifar.html and give the "
        f"folder it lies in, or the extracted {folders}, as {name}:PATH",
    )


def _read_folder(folder: Path, members: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in members if (folder / name).is_file()}


def _read_tar(path: Path, members: tuple[str, ...]) -> dict[str, bytes]:
    """Return those of `members` that the archive holds, read in memory: nothing is extracted."""
    files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                content = archive.extractfile(member) if name in members else None
                if content is not None:
                    files[name] = content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ResdeployError(
            f"The archive cannot be read: {error}.", where=str(path), fix="download it again"
        ) from error
    return files


def _complete(files: dict[str, bytes], layout: _Layout, path: Path) -> dict[str, bytes]:
    missing = [name for name in layout.files if name not in files]
    if missing:
        raise ResdeployError(
            f"The file {missing[0]} of {layout.folder} is missing.",
            where=str(path),
            fix="extract the archive again",
        )
    return files


def _read_batch(
    content: bytes, layout: _Layout, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if layout.label_key is None:
        images, labels = _split_records(content, layout, where)
    else:
        batch = _unpickle(content, where)
        images, labels = _entry(batch, "data", where), _entry(batch, layout.label_key, where)
    images = np.asarray(images)
    labels = np.asarray(labels)
    if images.dtype != np.uint8 or images.shape != (len(images), _IMAGE_BYTES) or not len(images):
        raise ResdeployError(
            f"Expected uint8 images of {_IMAGE_BYTES} bytes; "
            f"found {images.dtype} of shape {images.shape}.",
            where=where,
        )
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ResdeployError(
            f"{len(images)} images with labels of shape {labels.shape} ({labels.dtype}).",
            where=where,
        )
    if labels.min() < 0 or labels.max() >= layout.num_classes:
        raise ResdeployError(f"A label is outside 0…{layout.num_classes - 1}.", where=where)
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _split_records(
    content: bytes, layout: _Layout, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    record_bytes = layout.label_bytes + _IMAGE_BYTES
    if not content or len(content) % record_bytes:
        raise ResdeployError(
            f"{len(content)} bytes are not a whole number of {record_bytes}-byte records: "
            "the file is cut short or is something else.",
            where=where,
            fix="extract the archive again",
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record_bytes)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1]


def _read_names(content: bytes, layout: _Layout, where: str) -> tuple[str, ...]:
    if layout.label_key is None:
        names: Any = content.decode("utf-8", errors="replace").split()
    else:
        names = _entry(_unpickle(content, where), layout.names_key, where)
    if not isinstance(names, list) or len(names) != layout.num_classes:
        raise ResdeployError(f"Expected the names of {layout.num_classes} classes.", where=where)
    return tuple(n.decode("ascii", "replace") if isinstance(n, bytes) else str(n) for n in names)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, texts, lists, dictionaries and numpy arrays; nothing else has a name."""

    def find_class(self, module: str, name: str) -> Any:
        # Asked of an array, since the module that holds the function moved in numpy 2.
        reconstruct = np.empty(0).__reduce__()[0]
        allowed: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            # How protocol 2 spells a bytes object.
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is not data")
        return allowed[module, name]


def _encode(text: str, encoding: str) -> bytes:
    # Not codecs.encode itself, which would import a codec by the name that the file gives.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it wants the encoding {encoding!r}, which is not data")
    return text.encode("latin1")


def _unpickle(content: bytes, where: str) -> Mapping[Any, Any]:
    try:
        data = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        # The pickle module promises no particular exception for a damaged file.
        raise ResdeployError(
            f"This is not a CIFAR batch: {error or type(error).__name__}.",
            where=where,
            fix="download the official archive again",
        ) from error
    if not isinstance(data, Mapping):
        raise ResdeployError("This is not a CIFAR batch: not a dictionary.", where=where)
    return data


def _entry(batch: Mapping[Any, Any], key: str, where: str) -> Any:
    # Written by Python 2 the keys are texts under latin1; re-pickled by Python 3 often bytes.
    for spelling in (key, key.encode()):
        if spelling in batch:
            return batch[spelling]
    raise ResdeployError(f"The batch has no entry {key!r}.", where=where)
