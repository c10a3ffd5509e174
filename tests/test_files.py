"""Files by content, and outputs that are whole or absent."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resdeploy.errors import ResdeployError
from resdeploy.files import atomic_directory, atomic_write, file_info, sha256_file

# FIPS 180-2, appendix B.1.
SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_hash_of_abc_is_the_one_of_the_standard(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256_file(path) == SHA256_OF_ABC


def test_a_file_is_named_relative_to_the_folder_with_forward_slashes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "abc.bin").write_bytes(b"abc")
    info = file_info(tmp_path / "a" / "abc.bin", relative_to=tmp_path)
    assert (info.path, info.sha256, info.size_bytes) == ("a/abc.bin", SHA256_OF_ABC, 3)


def test_a_file_outside_the_folder_has_no_relative_name(tmp_path):
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(ValueError, match="subpath"):
        file_info(tmp_path / "b", relative_to=tmp_path / "a")


# --- atomic_write --------------------------------------------------------------------------------


def test_the_file_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "out.bin"
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
        assert temporary.name == "out.bin"
        # The same file system, or the rename would be a copy.
        assert temporary.stat().st_dev == tmp_path.stat().st_dev
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_the_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    with atomic_write(tmp_path / "out") as temporary:
        temporary.write_bytes(b"")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def write_then_raise(target, error, *, force=False):
    with atomic_write(target, force=force) as temporary:
        temporary.write_bytes(b"half of the n")
        raise error


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("force", [False, True])
def test_a_crash_in_the_middle_leaves_everything_as_it_was(tmp_path, failure, force):
    target = tmp_path / "out.bin"
    if force:
        target.write_bytes(b"old")
    before = os.listdir(tmp_path)
    with pytest.raises(failure):
        write_then_raise(target, failure(), force=force)
    assert os.listdir(tmp_path) == before
    assert not force or target.read_bytes() == b"old"


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_program_leaves_the_old_file_whole(tmp_path):
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    script = (
        "import os, signal, sys, pathlib\n"
        "from resdeploy.files import atomic_write\n"
        "with atomic_write(pathlib.Path(sys.argv[1]), force=True) as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)],
        env={**os.environ, "PYTHONPATH": f"{os.getcwd()}{os.pathsep}{path}"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"


def test_an_existing_file_is_refused_before_the_work_begins(tmp_path):
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with pytest.raises(ResdeployError, match="exists already") as caught, atomic_write(target):
        pytest.fail("the block ran")
    assert caught.value.where == str(target)
    assert "--force" in caught.value.fix
    assert target.read_bytes() == b"old"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    target = tmp_path / "out"

    def write_while_another_does():
        with atomic_write(target) as temporary:
            temporary.write_bytes(b"mine")
            target.write_bytes(b"theirs")

    with pytest.raises(ResdeployError, match="exists already"):
        write_while_another_does()
    assert target.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["out"]


def test_force_replaces_an_existing_file(tmp_path):
    target = tmp_path / "out"
    target.write_bytes(b"old and longer")
    with atomic_write(target, force=True) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_a_dangling_link_counts_as_existing(tmp_path):
    target = tmp_path / "out"
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ResdeployError, match="exists"), atomic_write(target):
        pytest.fail("the block ran")


def test_even_force_does_not_replace_a_folder_or_a_device(tmp_path):
    """`-o /dev/null --force` as root once replaced /dev/null by a regular file, elsewhere."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("folder", "fifo"):
        with (
            pytest.raises(ResdeployError, match="not a regular file"),
            atomic_write(tmp_path / name, force=True),
        ):
            pytest.fail("the block ran")


def write_pair(target: Path, text: str, *, force: bool = False) -> None:
    with atomic_write(target, force=force, companion="out.data") as temporary:
        temporary.write_text(text)
        temporary.with_name("out.data").write_text(f"{text} data")


def test_two_files_appear_together_and_are_replaced_together(tmp_path):
    for text, force in (("first", False), ("second", True)):
        write_pair(tmp_path / "out", text, force=force)
        assert contents(tmp_path) == {"out": text, "out.data": f"{text} data"}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_companion_that_was_not_written_leaves_one_file(tmp_path):
    with atomic_write(tmp_path / "out", companion="out.data") as temporary:
        temporary.write_text("alone")
    assert contents(tmp_path) == {"out": "alone"}


@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
@pytest.mark.parametrize("existing", [False, True])
def test_a_pair_is_put_back_where_a_rename_fails(tmp_path, monkeypatch, existing, fails_at):
    target = tmp_path / "out"
    if existing:
        write_pair(target, "old")
    before, calls, rename = contents(tmp_path), [], Path.rename

    def failing(self, to):
        calls.append(self)
        if len(calls) == fails_at + 1:
            raise OSError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    if existing or fails_at < 2:  # there are only two renames where nothing steps aside
        with pytest.raises(OSError, match="no"):
            write_pair(target, "new", force=True)
        assert contents(tmp_path) == before


def test_an_existing_companion_is_kept_without_force(tmp_path):
    (tmp_path / "out.data").write_text("mine")
    with pytest.raises(ResdeployError, match="exists already"):
        write_pair(tmp_path / "out", "new")
    assert contents(tmp_path) == {"out.data": "mine"}


@pytest.mark.parametrize("make", [atomic_write, atomic_directory])
def test_a_missing_folder_is_named_with_a_fix(tmp_path, make):
    with (
        pytest.raises(ResdeployError, match="does not exist") as caught,
        make(tmp_path / "a" / "out"),
    ):
        pytest.fail("the block ran")
    assert caught.value.where == str(tmp_path / "a")
    assert caught.value.fix
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [atomic_write, atomic_directory])
def test_a_folder_that_cannot_be_written_to_is_named_with_a_fix(tmp_path, make, monkeypatch):
    # The tests may run as root, for whom every folder can be written to.
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(ResdeployError, match="Permission denied") as caught, make(tmp_path / "out"):
        pytest.fail("the block ran")
    assert caught.value.where == str(tmp_path)
    assert caught.value.fix


def test_a_full_disk_is_an_error_of_the_user_and_leaves_nothing(tmp_path):
    with pytest.raises(ResdeployError, match="no space"):
        write_then_raise(tmp_path / "out", OSError(errno.ENOSPC, "No space left on device"))
    assert os.listdir(tmp_path) == []


def test_another_error_of_the_system_in_the_block_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "out"):
        (tmp_path / "not there").read_bytes()


# --- atomic_directory ----------------------------------------------------------------------------


def fill(folder, text):
    (folder / "a").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "b").write_text(text)


def test_the_folder_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "out"
    with atomic_directory(target) as temporary:
        fill(temporary, "new")
        assert not target.exists()
    assert (target / "sub" / "b").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_the_folder_has_the_permissions_of_any_new_folder(tmp_path):
    (tmp_path / "ordinary").mkdir()
    with atomic_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("force", [False, True])
def test_a_crash_leaves_the_old_folder_as_it_was(tmp_path, failure, force):
    target = tmp_path / "out"
    if force:
        target.mkdir()
        fill(target, "old")
    before = os.listdir(tmp_path)

    def fill_then_raise():
        with atomic_directory(target, force=force) as temporary:
            fill(temporary, "new")
            raise failure

    with pytest.raises(failure):
        fill_then_raise()
    assert os.listdir(tmp_path) == before
    assert not force or (target / "sub" / "b").read_text() == "old"


def test_force_replaces_a_folder_and_drops_what_was_in_it(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    fill(target, "old")
    with atomic_directory(target, force=True) as temporary:
        (temporary / "c").write_text("new")
    assert os.listdir(target) == ["c"]
    assert os.listdir(tmp_path) == ["out"]


def test_the_old_folder_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    fill(target, "old")
    rename = type(target).rename

    def fail_for_the_new_one(self, destination):
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, destination)

    monkeypatch.setattr(type(target), "rename", fail_for_the_new_one)
    with pytest.raises(KeyboardInterrupt), atomic_directory(target, force=True):
        pass
    assert (target / "sub" / "b").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_without_the_marker_is_never_replaced(tmp_path):
    target = tmp_path / "home"
    target.mkdir()
    fill(target, "precious")
    with (
        pytest.raises(ResdeployError, match="holds something else"),
        atomic_directory(target, force=True, marker="manifest.json"),
    ):
        pytest.fail("the block ran")
    assert (target / "a").read_text() == "precious"


def test_a_folder_with_the_marker_or_an_empty_one_is_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "manifest.json").write_text("{}")
    for name in ("empty", "ours"):
        with atomic_directory(tmp_path / name, force=True, marker="manifest.json") as temporary:
            (temporary / "c").write_text("new")
        assert os.listdir(tmp_path / name) == ["c"]


def test_an_existing_folder_and_a_file_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ResdeployError, match="exists already"),
        atomic_directory(tmp_path / "folder"),
    ):
        pytest.fail("the block ran")
    with (
        pytest.raises(ResdeployError, match="not a folder"),
        atomic_directory(tmp_path / "file", force=True),
    ):
        pytest.fail("the block ran")
