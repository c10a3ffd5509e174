"""A bundle as one `.zip` file: written to the same bytes everywhere, and read without trust.

A plain zip archive in one form only: members sorted by name, stored and not deflated (zlib builds
differ in their bytes), one fixed date, no comments, no extra fields, nothing between the parts. The
reader accepts that form alone, to the byte: no header has a free bit to hide a link, a path, a
second copy or a huge size in. The content of the members is then checked as in every bundle.

Layout, of APPNOTE.TXT 4.3: (local header, name, content) per member; (central header, name) per
member; end record.
"""

import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from resdeploy.bundle.folder import BundleFolder, damaged, is_plain_name, read_bundle
from resdeploy.errors import BundleError, EnvironmentLacksError, ResdeployError
from resdeploy.files import atomic_write

__all__ = ["is_archive", "opened_bundle", "read_members", "write_archive"]

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")

_VERSION = 10  # the first: stored members, no folders
_MADE_BY = 3 << 8 | _VERSION  # Unix, so that the file mode below counts
_DATE = 1 << 5 | 1  # 1 January 1980, the first day there is
_MODE = 0o100644 << 16  # an ordinary file, rw-r--r--
_MOST_BYTES = 2**32 - 1  # beyond, a zip needs another form, which old tools do not read
_MOST_MEMBERS = 64
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Member:
    """One file of an archive: its name, size, CRC-32, and the offset of its header."""

    name: str
    size_bytes: int
    crc32: int
    header_at: int

    @property
    def content_at(self) -> int:
        return self.header_at + _LOCAL.size + len(self.name)

    @property
    def ends_at(self) -> int:
        return self.content_at + self.size_bytes

    def local_header(self) -> bytes:
        return _LOCAL.pack(b"PK\3\4", _VERSION, *self._common()) + self.name.encode("ascii")

    def central_header(self) -> bytes:
        fields = (*self._common(), 0, 0, 0, _MODE, self.header_at)
        return _CENTRAL.pack(b"PK\1\2", _MADE_BY, _VERSION, *fields) + self.name.encode("ascii")

    def _common(self) -> tuple[int, ...]:
        sizes = (self.size_bytes, self.size_bytes)
        return (0, 0, 0, _DATE, self.crc32, *sizes, len(self.name), 0)


def is_archive(path: Path) -> bool:
    """Return True for the path of a bundle in one file, written or to be written."""
    return path.suffix.lower() == ".zip"


def write_archive(folder: Path, out: Path, *, force: bool = False) -> None:
    """Write the bundle in `folder` as the archive `out`; the same bundle gives the same bytes.

    Raises:
        BundleError: the folder is not an intact bundle.
        ResdeployError: `out` exists or cannot be written, or the bundle is larger than 4 GiB.
    """
    read_bundle(folder)
    members: list[_Member] = []
    end = 0
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        members.append(_Member(path.name, path.stat().st_size, _crc32(path), end))
        end = members[-1].ends_at
    if end > _MOST_BYTES - _END.size - sum(_CENTRAL.size + len(m.name) for m in members):
        raise ResdeployError(
            f"The bundle has {end} bytes, more than a plain zip archive can hold.",
            where=str(out),
            fix="give -o a name without .zip, which makes a folder",
        )
    with atomic_write(out, force=force) as temporary, temporary.open("wb") as file:
        for member in members:
            file.write(member.local_header())
            with (folder / member.name).open("rb") as content:
                shutil.copyfileobj(content, file, _CHUNK_BYTES)
        file.write(_directory(members, end))


@contextmanager
def opened_bundle(path: Path) -> Iterator[BundleFolder]:
    """Yield the bundle at `path`, a folder or an archive, after checking every byte of it.

    An archive is unpacked to a private temporary folder, deleted when the block ends.

    Raises:
        BundleError: this is not a bundle, or it is not as it was written.
        EnvironmentLacksError: there is no room to unpack it.
    """
    if path.is_dir() or not path.exists():
        yield read_bundle(path)
        return
    with tempfile.TemporaryDirectory(prefix="resdeploy-") as temporary:
        folder = Path(temporary).resolve()
        try:
            _unpack(path, folder)
        except OSError as error:
            raise EnvironmentLacksError(
                f"The bundle cannot be unpacked: {error.strerror}.",
                where=str(folder),
                fix="free some space, or set TMPDIR to a folder that has it; "
                "a bundle that is a folder needs none",
            ) from error
        try:
            bundle = read_bundle(folder)
        except BundleError as error:
            # Name the archive: the user never sees the temporary folder.
            where = (error.where or "").replace(f"{folder}{os.sep}", "").replace(str(folder), "")
            raise BundleError(
                error.what, where=f"{path}{f': {where}' if where else ''}", fix=error.fix
            ) from error
        yield bundle


def read_members(file: BinaryIO, *, where: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the name and the content, in pieces, of each member of an archive.

    All headers are checked before the first is given; the content of one, against its CRC-32, once
    its last piece was taken.

    Raises:
        BundleError: the file is not an archive in the one form that `write_archive` makes.
    """
    for member in _members(file, where=where):
        yield member.name, _content(file, member, where=where)


def _crc32(path: Path) -> int:
    crc32 = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc32 = zlib.crc32(chunk, crc32)
    return crc32


def _directory(members: list[_Member], starts_at: int) -> bytes:
    """Return the bytes after the members: a central header for each, and the end record."""
    headers = b"".join(member.central_header() for member in members)
    num = len(members)
    return headers + _END.pack(b"PK\5\6", 0, 0, num, num, len(headers), starts_at, 0)


def _unpack(path: Path, folder: Path) -> None:
    if path.is_symlink() or not path.is_file():
        raise BundleError("This is not a bundle: it is not an ordinary file.", where=str(path))
    with path.open("rb") as file:
        for name, pieces in read_members(file, where=str(path)):
            # "x": never through an existing file or link.
            with (folder / name).open("xb") as out:
                for piece in pieces:
                    out.write(piece)


def _members(file: BinaryIO, *, where: str) -> list[_Member]:
    """Return the members of an archive, after comparing every header with `write_archive`'s."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(0, size_bytes - _END.size))
    if file.read(4) != b"PK\5\6":
        raise BundleError(
            "This is not a bundle: neither a folder nor a whole zip archive.",
            where=where,
            fix="give what `resdeploy bundle` wrote, unchanged (not packed again by another tool)",
        )
    members: list[_Member] = []
    end = file.seek(0)
    while len(members) < _MOST_MEMBERS and (header := file.read(_LOCAL.size))[:4] == b"PK\3\4":
        *_, crc32, _, member_bytes, name_bytes, _ = _LOCAL.unpack(header.ljust(_LOCAL.size, b"\0"))
        name = file.read(name_bytes).decode("latin-1")
        if not (is_plain_name(name) and name.isascii()):
            raise BundleError(
                f"The archive lists {name!r}, which is not a plain file name.",
                where=where,
                fix="do not use this bundle: no resdeploy wrote it",
            )
        member = _Member(name, member_bytes, crc32, end)
        too_long = member.ends_at > min(size_bytes, _MOST_BYTES)
        if too_long or header + name.encode("ascii") != member.local_header():
            raise damaged(f"The header of {name} in the archive was changed", where)
        members.append(member)
        end = file.seek(member.ends_at)
    names = [member.name for member in members]
    if names != sorted(names) or len({name.casefold() for name in names}) != len(names):
        raise damaged("The archive lists a file twice, or in another order", where)
    directory = _directory(members, end)
    file.seek(end)
    if file.read(len(directory) + 1) != directory:
        raise damaged("The table of contents of the archive was changed", where)
    return members


def _content(file: BinaryIO, member: _Member, *, where: str) -> Iterator[bytes]:
    file.seek(member.content_at)
    left, crc32 = member.size_bytes, 0
    while piece := file.read(min(left, _CHUNK_BYTES)):
        left -= len(piece)
        crc32 = zlib.crc32(piece, crc32)
        yield piece
    if left or crc32 != member.crc32:
        raise damaged(f"The file {member.name} was changed after the bundle was written", where)
