"""Files of `torch.save`, of `pickle.dump` and of `torch.jit.save`, read as data.

Four forms. Since 1.6, a zip archive: a pickle `NAME/data.pkl`, and the values of each storage in
`NAME/data/KEY`. TorchScript is such an archive too, with its program in `NAME/code`; the program is
not read. From 0.1.10 on, pickles in turn: a magic number, a version, the machine, the object, the
storages' keys; then the values. Before that, a tar archive. (torch/serialization.py.)
"""

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from resdeploy.errors import ResdeployError
from resdeploy.weights.pickled import Reader, Storage, element_type

__all__ = ["load_torch_file"]

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001
Store = dict[str, Storage]


def load_torch_file(path: Path) -> Any:
    """Return the content of a file: containers, scalars, tensors, and `StandIn`s for all else.

    Raises:
        ResdeployError: the file is damaged, is no such file, or names a function of the system.
    """
    try:
        with path.open("rb") as file:
            return _load(file)
    except ResdeployError as error:
        raise ResdeployError(error.what, where=str(path), fix=error.fix) from error
    except RecursionError as error:
        raise ResdeployError("The pickle is nested too deeply.", where=str(path)) from error
    except Exception as error:
        # A damaged pickle fails as anything: EOFError, KeyError, IndexError, UnicodeDecodeError, …
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = lines[0].rstrip(".") if lines else type(error).__name__
        raise ResdeployError(
            f"The file is damaged or is no torch checkpoint: {cause}.",
            where=str(path),
            fix="copy or download it again",
        ) from error


def _load(file: IO[bytes]) -> Any:
    if zipfile.is_zipfile(file):
        file.seek(0)
        return _load_zip(file)
    file.seek(0)
    if tarfile.is_tarfile(file):
        file.seek(0)
        return _load_tar(file)
    file.seek(0)
    first = Reader(file, load_bytes=lambda content: _load(io.BytesIO(content))).load()
    return _load_in_turn(file) if first == _MAGIC_NUMBER else first


def _load_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise pickle.UnpicklingError("a zip archive without one data.pkl")
        root = names[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") == b"big":
            raise pickle.UnpicklingError("its values are of a big-endian machine")
        store: Store = {}

        def load_storage(pid: Any) -> Any:
            _, kind, key, *_ = pid
            if key not in store:
                values = bytearray(archive.read(f"{root}data/{key}"))
                store[key] = Storage(element_type(kind), values)
            return Storage(element_type(kind), store[key].values)

        return Reader(io.BytesIO(archive.read(names[0])), load_storage).load()


def _load_in_turn(file: IO[bytes]) -> Any:
    """Load what follows the magic number."""
    if (version := Reader(file).load()) != _VERSION:
        raise pickle.UnpicklingError(f"version {version} of the format")
    if Reader(file).load().get("little_endian") is False:
        raise pickle.UnpicklingError("its values are of a big-endian machine")
    store: Store = {}
    found = Reader(file, _in_store(store)).load()
    for key in Reader(file).load():
        (num_elements,) = struct.unpack("<q", file.read(8))
        values = store[key].values
        if num_elements * store[key].dtype.itemsize != len(values):
            raise pickle.UnpicklingError(f"storage {key} is of another size")
        content = file.read(len(values))
        if len(content) < len(values):
            raise EOFError("the file ends early")
        values[:] = content
    return found


def _in_store(store: Store) -> Callable[[Any], Any]:
    """Return a loader of storages whose values come after the pickle, as zeros until then."""

    def load_storage(pid: Any) -> Any:
        if pid[0] == "module":
            return pid[1]
        _, kind, key, _, num_elements, view = pid
        dtype = element_type(kind)
        if key not in store:
            store[key] = Storage(dtype, bytearray(num_elements * dtype.itemsize))
        return store[key] if view is None else store[key].part(*view[1:])

    return load_storage


def _load_tar(file: IO[bytes]) -> Any:
    """Load the archive of the first releases: storages, then tensors, then the object."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        storages, tensors = _member(archive, "storages"), _member(archive, "tensors")
        store: dict[Any, Any] = {}
        for _ in range(Reader(storages).load()):
            key, _, kind = Reader(storages).load()
            (num_elements,) = struct.unpack("<q", storages.read(8))
            dtype = element_type(kind)
            store[key] = Storage(dtype, bytearray(storages.read(num_elements * dtype.itemsize)))
        for key, root, offset, length in Reader(storages).load():
            store[key] = store[root].part(offset, length)
        for _ in range(Reader(tensors).load()):
            key, storage_key, _ = Reader(tensors).load()
            num_dims, _ = struct.unpack("<ii", tensors.read(8))
            size = struct.unpack(f"<{num_dims}q", tensors.read(8 * num_dims))
            stride = struct.unpack(f"<{num_dims}q", tensors.read(8 * num_dims))
            (offset,) = struct.unpack("<q", tensors.read(8))
            storage = store[storage_key]
            flat = torch.frombuffer(storage.values, dtype=storage.dtype)
            store[key] = flat.as_strided(size, stride, offset)
        pickled = _member(archive, "pickle")
        return Reader(
            pickled, lambda pid: pid[0] if isinstance(pid, tuple) else store[int(pid)]
        ).load()


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    member = archive.extractfile(name)
    if member is None:
        raise pickle.UnpicklingError(f"a tar archive without {name}")
    return io.BytesIO(member.read())
