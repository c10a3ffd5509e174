"""Bundles as one zip file: the same bytes, readable by every tool, and not one byte free."""

import io
import os
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest
from flat_bundle import write_small_bundle

from resdeploy.bundle import archive as bundle_archive
from resdeploy.bundle.archive import opened_bundle, read_members, write_archive
from resdeploy.bundle.folder import read_bundle
from resdeploy.errors import BundleError, EnvironmentLacksError, ResdeployError

FILES = ["README.md", "golden.npz", "labels.txt", "manifest.json", "model.onnx"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"not really a model")
    write_small_bundle(
        tmp_path / "tiny",
        "tiny",
        tmp_path / "m.onnx",
        np.ones((1, 2), np.float32),
        np.ones((1, 2)),
        labels=("cat", "dog"),
    )
    return tmp_path / "tiny"


@pytest.fixture
def archive(folder, tmp_path):
    write_archive(folder, tmp_path / "tiny.zip")
    return tmp_path / "tiny.zip"


def contents(raw: bytes) -> dict[str, bytes]:
    members = read_members(io.BytesIO(raw), where="x.zip")
    return {name: b"".join(pieces) for name, pieces in members}


def test_an_archive_holds_what_the_folder_holds_and_every_tool_reads_it(folder, archive):
    with zipfile.ZipFile(archive) as other_tool:
        assert other_tool.testzip() is None
        assert other_tool.namelist() == FILES
        for info in other_tool.infolist():
            assert other_tool.read(info) == (folder / info.filename).read_bytes()
            assert stat.S_IMODE(info.external_attr >> 16) == 0o644
    with opened_bundle(archive) as bundle:
        assert bundle.digest == read_bundle(folder).digest
        assert bundle.labels == ("cat", "dog")
        unpacked = bundle.path
    assert not unpacked.exists()


def test_the_same_bundle_gives_the_same_bytes_whatever_the_day(folder, tmp_path, archive):
    for name in FILES:
        os.utime(folder / name, (1, 1))
        os.chmod(folder / name, 0o600)
    write_archive(folder, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_an_archive_is_replaced_only_by_force(folder, archive):
    with pytest.raises(ResdeployError, match="exists already"):
        write_archive(folder, archive)
    write_archive(folder, archive, force=True)


def test_a_damaged_folder_is_not_packed(folder, tmp_path):
    (folder / "labels.txt").write_text("cat\ncow\n")
    with pytest.raises(BundleError, match=r"labels\.txt"):
        write_archive(folder, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_a_bundle_too_large_for_a_plain_zip_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_archive, "_MOST_BYTES", 1000)
    with pytest.raises(ResdeployError, match="more than a plain zip") as caught:
        write_archive(folder, tmp_path / "out.zip")
    assert "folder" in caught.value.fix
    assert not (tmp_path / "out.zip").exists()


# --- damage --------------------------------------------------------------------------------------


def test_every_byte_of_an_archive_counts(archive):
    """Each is changed in turn, in all its bits and in the lowest: headers, names, contents."""
    raw = bytearray(archive.read_bytes())
    whole = contents(bytes(raw))
    assert sorted(whole) == FILES
    for position in range(len(raw)):
        for flip in (0xFF, 1):
            raw[position] ^= flip
            with pytest.raises(BundleError):
                contents(bytes(raw))
            raw[position] ^= flip
    assert contents(bytes(raw)) == whole


def test_a_changed_byte_of_a_file_is_found_and_the_file_named(folder, archive):
    raw = archive.read_bytes()
    for name in FILES:
        at = raw.index((folder / name).read_bytes())
        archive.write_bytes(raw[: at + 3] + bytes([raw[at + 3] ^ 4]) + raw[at + 4 :])
        with pytest.raises(BundleError, match=name) as caught, opened_bundle(archive):
            pytest.fail("it was opened")
        assert str(archive) in caught.value.where


@pytest.mark.parametrize("kept", [0, 10, 21, 22, 0.5, 0.99])
def test_a_truncated_archive_is_refused(archive, kept):
    raw = archive.read_bytes()
    archive.write_bytes(raw[: int(kept * len(raw)) if kept < 1 else kept])
    with pytest.raises(BundleError, match="whole zip archive"), opened_bundle(archive):
        pass


@pytest.mark.parametrize("extra", [b"\0", b"PK", b"# a comment"])
def test_bytes_before_and_after_an_archive_are_refused(archive, extra):
    raw = archive.read_bytes()
    for changed in (raw + extra, extra + raw):
        with pytest.raises(BundleError):
            contents(changed)


def test_a_change_with_a_checksum_that_fits_is_found_by_the_manifest(folder, tmp_path):
    """As by someone who unpacks, edits and packs again with a tool of the same form."""
    members = [(name, (folder / name).read_bytes()) for name in FILES]
    members[4] = ("model.onnx", b"another model of 18"[:18])
    path = tmp_path / "forged.zip"
    path.write_bytes(forged(members))
    expected = pytest.raises(BundleError, match=r"model\.onnx was changed")
    with expected as caught, opened_bundle(path):
        pass
    assert caught.value.where == f"{path}: model.onnx"


def forged(members) -> bytes:
    """Return an archive in the very form of ours, with these names and contents."""
    made, body = [], b""
    for name, data in members:
        member = bundle_archive._Member(name, len(data), zlib.crc32(data), len(body))
        made.append(member)
        body += member.local_header() + data
    return body + bundle_archive._directory(made, len(body))


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "C:x", "a\0b"]
)
def test_a_name_that_leaves_the_folder_is_refused_and_nothing_written(tmp_path, name):
    path = tmp_path / "forged.zip"
    path.write_bytes(forged([(name, b"x")]))
    with pytest.raises(BundleError, match="not a plain file name"), opened_bundle(path):
        pass
    assert os.listdir(tmp_path) == ["forged.zip"]


def test_added_removed_and_renamed_files_are_named(folder, tmp_path):
    members = [(name, (folder / name).read_bytes()) for name in FILES]
    path = tmp_path / "forged.zip"
    for changed, named in (
        ([*members, ("zzz", b"")], "zzz"),
        (members[:-1], r"model\.onnx"),
        ([*members[:-1], ("model.onnx.bak", members[-1][1])], r"model\.onnx"),
        (members[:3] + members[4:], r"manifest\.json"),
    ):
        path.write_bytes(forged(changed))
        with pytest.raises(BundleError, match=named), opened_bundle(path):
            pass


@pytest.mark.parametrize("names", [["b", "a"], ["a", "a"], ["A", "a"]])
def test_a_second_copy_or_another_order_is_refused(names):
    with pytest.raises(BundleError, match="twice, or in another order"):
        contents(forged([(name, b"") for name in names]))


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o755, 0o100755, 0])
def test_a_member_that_is_a_link_or_a_folder_is_refused(folder, mode):
    raw = forged([(name, (folder / name).read_bytes()) for name in FILES])
    assert sorted(contents(raw)) == FILES
    # The last of these marks: golden.npz, a zip archive too, has its own.
    at = raw.rindex(b"PK\1\2")
    header = bytearray(raw[at:])
    struct.pack_into("<I", header, 38, mode << 16)
    with pytest.raises(BundleError, match="table of contents"):
        contents(raw[:at] + bytes(header))


def test_what_another_tool_packed_anew_is_refused(folder, tmp_path):
    """Its bytes depend on the tool, the day and the zlib, so its digest would say nothing."""
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as other:
        for name in FILES:
            other.write(folder / name, name)
    with pytest.raises(BundleError, match=r"header of README\.md"), opened_bundle(path):
        pass


def test_a_bomb_costs_nothing(tmp_path):
    """Members that overlap, and sizes far beyond the file."""
    raw = bytearray(forged([("a", b"x" * 100)]))
    central = raw.index(b"PK\1\2")
    struct.pack_into("<II", raw, central + 20, 2**32 - 2, 2**32 - 2)
    struct.pack_into("<II", raw, 18, 2**32 - 2, 2**32 - 2)
    with pytest.raises(BundleError):
        contents(bytes(raw))
    with pytest.raises(BundleError, match="table of contents"):
        contents(forged([(f"{i:04}", b"") for i in range(1000)]))


def test_a_link_to_an_archive_is_refused(archive, tmp_path):
    (tmp_path / "link.zip").symlink_to(archive)
    with pytest.raises(BundleError, match="ordinary file"), opened_bundle(tmp_path / "link.zip"):
        pass


def test_no_room_to_unpack_is_the_machines_fault(archive, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_archive, "_unpack", full)
    expected = pytest.raises(EnvironmentLacksError, match="No space left")
    with expected as caught, opened_bundle(archive):
        pass
    assert "TMPDIR" in caught.value.fix


def test_something_else_is_not_a_bundle(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"hello" * 100)
    expected = pytest.raises(BundleError, match="neither a folder nor a whole zip")
    with expected, opened_bundle(tmp_path / "x.zip"):
        pass
    with pytest.raises(BundleError, match="no such folder"), opened_bundle(tmp_path / "none.zip"):
        pass
