"""Stages kept in a folder: whole or absent, under a key of what they came from."""

import time

import pytest

from resdeploy.errors import ResdeployError
from resdeploy.ship.stages import Clock, Stages, content_digest


def counted(calls, answer=1):
    def make(folder, clock):
        calls.append(answer)
        (folder / "made.txt").write_text(str(answer))
        clock("first")
        clock("second")
        return {"answer": answer}

    return make


def test_a_finished_stage_is_taken_as_it_is(tmp_path):
    calls = []
    first = Stages(tmp_path / "work").once("export", {"of": "a"}, counted(calls))
    second = Stages(tmp_path / "work").once("export", {"of": "a"}, counted(calls))
    assert calls == [1]
    assert (first.was_kept, second.was_kept) == (False, True)
    assert second.data == {"answer": 1}
    assert (second.folder / "made.txt").read_text() == "1"
    assert set(second.parts_s) == {"first", "second"}


def test_other_inputs_are_another_stage(tmp_path):
    calls = []
    stages = Stages(tmp_path / "work")
    for inputs in ({"of": "a"}, {"of": "b"}, {"of": "a", "by": None}):
        stages.once("export", inputs, counted(calls))
    assert len(calls) == 3
    assert stages.has("export", {"of": "b"})
    assert not stages.has("verify", {"of": "b"})


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_a_stage_that_was_stopped_is_absent_and_done_again(tmp_path, stop):
    def stopped(folder, clock):
        (folder / "half.txt").write_text("half")
        raise stop

    stages, calls = Stages(tmp_path / "work"), []
    with pytest.raises(stop):
        stages.once("export", {}, stopped)
    assert not stages.has("export", {})
    found = Stages(tmp_path / "work").once("export", {}, counted(calls))
    assert calls == [1]
    assert not (found.folder / "half.txt").exists()


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ResdeployError, match="holds something else"):
        Stages(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "work").write_text("a file")
    with pytest.raises(ResdeployError, match="cannot be used"):
        Stages(tmp_path / "work")


def test_a_damaged_finding_says_what_to_remove(tmp_path):
    stages = Stages(tmp_path / "work")
    folder = stages.once("export", {}, counted([])).folder
    (folder / "finding.json").write_text("{")
    with pytest.raises(ResdeployError, match="damaged") as raised:
        stages.once("export", {}, counted([]))
    assert raised.value.where == str(folder)


def test_a_clock_adds_up_what_comes_again(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    clock = Clock()
    for name in ("load", "run", "load", None):
        clock(name)
    assert clock.parts_s == {"load": 5.0, "run": 2.0}


def test_the_content_of_a_checkpoint_includes_what_lies_beside(tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(b"weights")
    first = content_digest(checkpoint)
    (tmp_path / "other.bin").write_bytes(b"no words")
    assert content_digest(checkpoint) == first
    (tmp_path / "config.json").write_text('{"mean": 0.5}')
    second = content_digest(checkpoint)
    assert second != first
    assert content_digest(tmp_path) not in (first, second)
    with pytest.raises(ResdeployError, match="no such file"):
        content_digest(tmp_path / "absent.ckpt")
