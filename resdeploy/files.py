"""Files by content, and outputs that are whole or absent.

An output is made in a private folder next to its target, on the same file system, and renamed into
place at the end. A run that fails or is killed leaves the target as it was: never half of it.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from resdeploy.errors import ResdeployError
from resdeploy.schema.files import FileInfo

__all__ = [
    "atomic_directory",
    "atomic_write",
    "file_info",
    "refuse_existing_directory",
    "refuse_existing_file",
    "refuse_missing_parent",
    "refuse_output",
    "refuse_outside_weight",
    "sha256_file",
]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in lower-case hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_info(path: Path, *, relative_to: Path) -> FileInfo:
    """Return `path` by content, named relative to the folder `relative_to`, with `/`.

    Raises:
        ValueError: the file is not below that folder.
        OSError: the file cannot be read.
    """
    return FileInfo(
        path=path.relative_to(relative_to).as_posix(),
        sha256=sha256_file(path),
        size_bytes=path.stat().st_size,
    )


def refuse_outside_weight(name: str, location: str, *, model: Path | None) -> None:
    """Refuse a weight's file outside the folder of its model: a model is not trusted.

    `location` is the file of the weight `name`, as the model has it; a `model` of None is one in
    memory, which has no folder.

    Raises:
        ResdeployError: the file is elsewhere, or a link leads there.
    """
    windows = PureWindowsPath(location)  # which also splits at `/`
    escapes = (
        not location
        or "\0" in location
        or location.startswith("*/")  # ONNX Runtime's mark of an address in memory
        or PurePosixPath(location).is_absolute()
        or bool(windows.anchor)
        or ".." in windows.parts
        or model is None
        # A link may lead anywhere.
        or not _real(model.parent / location).is_relative_to(_real(model.parent))
    )
    if escapes:
        raise ResdeployError(
            f"The weight {name!r} lies outside the folder of the model: {location!r}.",
            where="a model in memory" if model is None else str(model),
            fix="use a model whose files lie beside it",
        )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # which, unlike resolve(), takes links that go in circles


@contextmanager
def atomic_write(
    path: Path, *, force: bool = False, companion: str | None = None
) -> Iterator[Path]:
    """Give a path to write to; the file appears at `path` when the block ends well.

    The temporary path has the file name of `path`, as some writers depend on the name or its
    suffix. Other files that the block writes next to it are dropped, but for one with the name
    `companion`: both appear, or neither.

    Raises:
        ResdeployError: a target exists and `force` is not given, or is not a regular file, or its
            folder is missing or cannot be written to, or the disk is full.
    """
    refuse_existing_file(path, force=force)
    with _workplace(path) as workplace:
        temporary = workplace / path.name
        yield temporary
        # Asked again, for the target may have appeared while the block ran.
        refuse_existing_file(path, force=force)
        if companion is None or not (workplace / companion).exists():
            temporary.replace(path)
            return
        second = path.with_name(companion)
        refuse_existing_file(second, force=force)
        # An old file steps aside first: it must never stand next to the companion of the new one.
        aside = workplace / "old"
        aside.mkdir()
        old = [(target, aside / target.name) for target in (path, second) if target.exists()]
        _rename_all([*old, (workplace / companion, second), (temporary, path)])


def _rename_all(moves: list[tuple[Path, Path]]) -> None:
    """Rename files or folders in this order, or put all of them back."""
    done: list[tuple[Path, Path]] = []
    try:
        for before, after in moves:
            before.rename(after)
            done.append((before, after))
    except BaseException:
        for before, after in reversed(done):
            after.rename(before)
        raise


@contextmanager
def atomic_directory(
    path: Path, *, force: bool = False, marker: str | None = None
) -> Iterator[Path]:
    """Give an empty folder to fill; it appears at `path` when the block ends well.

    `force` replaces an existing folder, with all that is in it, but only one that has a file named
    `marker` or is empty, so that a slip of the hand (`-o . --force`) does not delete other files.

    Raises:
        ResdeployError: the target exists and may not be replaced, or the folder around it is
            missing or cannot be written to, or the disk is full.
    """
    refuse_existing_directory(path, force=force, marker=marker)
    with _workplace(path) as workplace:
        temporary = workplace / "new"
        temporary.mkdir()
        yield temporary
        refuse_existing_directory(path, force=force, marker=marker)
        # No rename replaces a full folder, so the old one steps aside, and back if need be.
        old = [(path, workplace / "old")] if path.exists() else []
        _rename_all([*old, (temporary, path)])


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Give a private folder next to `target`, and remove it at the end in any case."""
    refuse_missing_parent(target)
    parent = target.absolute().parent
    try:
        workplace = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=parent))
    except OSError as error:
        raise ResdeployError(
            f"The folder cannot be written to: {error.strerror}.",
            where=str(parent),
            fix="give an output path in a folder that you may write to",
        ) from error
    try:
        yield workplace
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResdeployError(
            "There is no space left to write the output.",
            where=str(target),
            fix="free some space, or give an output path on another disk",
        ) from error
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def refuse_missing_parent(path: Path) -> None:
    """Raise ResdeployError if there is no folder to write `path` to."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise ResdeployError(
            "The folder to write to does not exist.",
            where=str(parent),
            fix=f"create it first (mkdir -p {path.parent}), or give another output path",
        )


def refuse_existing_file(path: Path, *, force: bool) -> None:
    """Raise the errors of `atomic_write` about `path`, before the work that leads there."""
    # Renaming over a device or a folder would destroy it, or fail after all the work.
    _refuse_existing(path, "a regular file", is_one=path.is_file(), force=force)


def refuse_output(path: Path, *, force: bool) -> None:
    """Raise what the path of an output, a file or a folder, tells before the work.

    Raises:
        ResdeployError: there is something and `force` is not given, or no folder around it.
    """
    refuse_missing_parent(path)
    _refuse_existing(path, "a file or folder", is_one=path.is_file() or path.is_dir(), force=force)


def refuse_existing_directory(path: Path, *, force: bool, marker: str | None) -> None:
    """Raise the errors of `atomic_directory` about `path`, before the work that leads there."""
    is_folder = path.is_dir()
    _refuse_existing(path, "a folder", is_one=is_folder, force=force)
    if is_folder and marker and not (path / marker).is_file() and any(path.iterdir()):
        raise ResdeployError(
            f"The folder to replace has no {marker}: it holds something else.",
            where=str(path),
            fix="give another output path, or remove that folder yourself",
        )


def _refuse_existing(path: Path, kind: str, *, is_one: bool, force: bool) -> None:
    if os.path.lexists(path) and not (is_one and force):
        raise ResdeployError(
            "The output exists already." if is_one else f"The output exists and is not {kind}.",
            where=str(path),
            fix="give another path, or use --force" if is_one else "give another output path",
        )
