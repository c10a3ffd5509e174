"""CIFAR-10 and CIFAR-100 from the official archives, as downloaded or as extracted.

Either official version will do: binary records, or pickles. A pickle is a program: only what
rebuilds a numpy array may run.
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

from resdeploy.data.samples import Dataset
from resdeploy.errors import ResdeployError

__all__ = ["read_cifar"]

_IMAGE_BYTES = 3 * 32 * 32
_EXTRACT_AGAIN = "extract the archive again"


@dataclass(frozen=True, slots=True)
class _Version:
    """One official version of a data set: an archive with one folder, its last batch for testing.

    `names` is the file with the names of the classes; `label_key` the label entry of a pickled
    batch, None for the binary version; `label_bytes` are those before each image of the binary
    version, and the last of them is the label.
    """

    archive: str
    folder: str
    batches: tuple[str, ...]
    names: str
    num_classes: int
    label_key: str | None = None
    label_bytes: int = 1


_BATCHES_10 = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_BINARY_10 = tuple(f"{batch}.bin" for batch in _BATCHES_10)
# fmt: off
_VERSIONS = {
    "cifar10": (
        _Version("cifar-10-python.tar.gz", "cifar-10-batches-py", _BATCHES_10, "batches.meta",
                 10, label_key="labels"),
        _Version("cifar-10-binary.tar.gz", "cifar-10-batches-bin", _BINARY_10, "batches.meta.txt",
                 10),
    ),
    "cifar100": (
        _Version("cifar-100-python.tar.gz", "cifar-100-python", ("train", "test"), "meta",
                 100, label_key="fine_labels"),
        _Version("cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin", "test.bin"),
                 "fine_label_names.txt", 100, label_bytes=2),
    ),
}
# fmt: on


def read_cifar(name: str, path: str | Path | None) -> Dataset:
    """Return `cifar10` or `cifar100` (its fine labels): images uint8 (N, 3, 32, 32), RGB.

    `path` is an archive, an extracted folder, or the folder that holds either.

    Raises:
        ResdeployError: there is no such data set, or a file is truncated, damaged, or a pickle of
            more than numpy arrays.
    """
    version, files = _find(name, path)
    read = [_read_batch(files[batch], version, f"{path}: {batch}") for batch in version.batches]
    *train, (test_x, test_y) = read
    sizes = [str(len(labels)) for _, labels in train]
    if len(set(sizes)) > 1:
        raise ResdeployError(
            f"The training batches differ in size ({', '.join(sizes)} images): "
            "one of them is cut short.",
            where=str(path),
            fix=_EXTRACT_AGAIN,
        )
    return Dataset(
        train_x=np.concatenate([images for images, _ in train]),
        train_y=np.concatenate([labels for _, labels in train]),
        test_x=test_x,
        test_y=test_y,
        labels=_read_names(files[version.names], version, f"{path}: {version.names}"),
    )


def _find(name: str, path: str | Path | None) -> tuple[_Version, dict[str, bytes]]:
    """Return the version at `path`, and the content of its files by name."""
    versions = _VERSIONS[name]
    archives = " or ".join(version.archive for version in versions)
    folders = " or ".join(version.folder for version in versions)
    fix = (
        f"download {archives} from https://www.cs.toronto.edu/~kriz/cifar.html and give the "
        f"folder it lies in, or the extracted {folders}, as {name}:PATH"
    )
    if path is None:
        raise ResdeployError(f"Where is {name}? No path was given.", fix=fix)
    root = Path(path).expanduser()
    in_folders = [(version, root / sub) for version in versions for sub in ("", version.folder)]
    in_archives = [(version, root / version.archive) for version in versions]
    for version, place in in_folders + in_archives:
        files = _read_files(place, {*version.batches, version.names})
        if files.keys().isdisjoint(version.batches):
            continue
        for member in (*version.batches, version.names):
            if member not in files:
                raise ResdeployError(
                    f"The file {member} of {version.folder} is missing.",
                    where=str(place),
                    fix=_EXTRACT_AGAIN,
                )
        return version, files
    if root.is_file():
        raise ResdeployError(f"This archive does not hold {name}.", where=str(root))
    raise ResdeployError(f"{name} is not here.", where=str(root), fix=fix)


def _read_files(place: Path, names: set[str]) -> dict[str, bytes]:
    """Return those of `names` in a folder, or in an archive: nothing is extracted."""
    if not place.is_file():
        return {name: (place / name).read_bytes() for name in names if (place / name).is_file()}
    files = {}
    try:
        with tarfile.open(place) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                content = archive.extractfile(member) if name in names else None
                if content is not None:
                    files[name] = content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ResdeployError(
            f"The archive cannot be read: {error}.", where=str(place), fix="download it again"
        ) from error
    return files


def _read_batch(
    content: bytes, version: _Version, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if version.label_key is None:
        images, labels = _split_records(content, version.label_bytes, where)
    else:
        batch = _unpickle(content, where)
        images = np.asarray(_entry(batch, "data", where))
        labels = np.asarray(_entry(batch, version.label_key, where))
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
    if labels.min() < 0 or labels.max() >= version.num_classes:
        raise ResdeployError(f"A label is outside 0…{version.num_classes - 1}.", where=where)
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _split_records(
    content: bytes, label_bytes: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    record_bytes = label_bytes + _IMAGE_BYTES
    if not content or len(content) % record_bytes:
        raise ResdeployError(
            f"{len(content)} bytes are not a whole number of {record_bytes}-byte records: "
            "the file is cut short or is something else.",
            where=where,
            fix=_EXTRACT_AGAIN,
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record_bytes)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _read_names(content: bytes, version: _Version, where: str) -> tuple[str, ...]:
    if version.label_key is None:
        names: Any = content.decode("utf-8", errors="replace").split()
    else:
        key = version.label_key.replace("labels", "label_names")
        names = _entry(_unpickle(content, where), key, where)
    if not isinstance(names, list) or len(names) != version.num_classes:
        raise ResdeployError(f"Expected the names of {version.num_classes} classes.", where=where)
    return tuple(n.decode("ascii", "replace") if isinstance(n, bytes) else str(n) for n in names)


def _encode(text: str, encoding: str) -> bytes:
    # Not codecs.encode itself, which would import a codec by the name that the file gives.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it wants the encoding {encoding!r}, which is not data")
    return text.encode("latin1")


# The function that rebuilds an array; its module moved in numpy 2, so that it is asked of one.
_reconstruct = np.empty(0).__reduce__()[0]
_PICKLED_NAMES: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,  # the spelling of a bytes object in protocol 2
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of numbers, texts, lists, dictionaries and numpy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED_NAMES:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is not data")
        return _PICKLED_NAMES[module, name]


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
