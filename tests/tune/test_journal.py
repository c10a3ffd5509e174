"""What a stopped search has found, and whether it may go on with it."""

import json

import pytest

from resdeploy.errors import ResdeployError
from resdeploy.tune.journal import JOURNAL, Journal

IDENTITY = {"bundle": "a", "search": {"threads": [1, None]}, "data": None}


def never():
    raise AssertionError("it was found before")


def test_what_was_found_is_not_found_again(tmp_path):
    first = Journal.open(tmp_path / "work", IDENTITY)
    assert first.once("a", lambda: [0.1, None]) == [0.1, None]
    assert first.once("a", never) == [0.1, None]
    again = Journal.open(tmp_path / "work", IDENTITY)
    assert again.once("a", never) == [0.1, None]
    assert again.once("b", lambda: {"x": 1 / 3}) == {"x": 1 / 3}
    assert Journal.open(tmp_path / "work", IDENTITY).once("b", never) == {"x": 1 / 3}


def test_without_a_folder_nothing_is_kept():
    assert Journal().once("a", lambda: 1) == 1
    assert Journal().once("a", lambda: 2) == 2


def test_a_step_that_fails_is_found_the_next_time(tmp_path):
    journal = Journal.open(tmp_path, IDENTITY)
    with pytest.raises(KeyboardInterrupt):
        journal.once("a", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert Journal.open(tmp_path, IDENTITY).once("a", lambda: 5) == 5


@pytest.mark.parametrize("cut", [1, 8])
def test_a_line_that_was_not_written_whole_is_dropped(tmp_path, cut):
    journal = Journal.open(tmp_path, IDENTITY)
    journal.once("a", lambda: 1)
    journal.once("b", lambda: 2)
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal.open(tmp_path, IDENTITY)
    assert again.once("a", never) == 1
    assert again.once("b", lambda: 3) == 3
    # What was cut off does not spoil the line that is written next.
    assert [json.loads(line)["found"] for line in path.read_text().splitlines()[1:]] == [1, 3]


@pytest.mark.parametrize("content", [b"", b'{"bundle": "a"'])
def test_one_stopped_before_its_first_line_starts_anew(tmp_path, content):
    (tmp_path / JOURNAL).write_bytes(content)
    Journal.open(tmp_path, IDENTITY).once("a", lambda: 1)
    assert Journal.open(tmp_path, IDENTITY).once("a", never) == 1


def test_another_search_s_findings_are_refused_with_what_differs(tmp_path):
    Journal.open(tmp_path, IDENTITY).once("a", lambda: 1)
    other = {**IDENTITY, "bundle": "b", "data": ["x"]}
    with pytest.raises(ResdeployError, match="with other bundle, data"):
        Journal.open(tmp_path, other)
    assert Journal.open(tmp_path, IDENTITY).once("a", never) == 1


@pytest.mark.parametrize(
    "content", [b"hello\n", b"hello", b"[1]\n", b'{"bundle": "a"}\n3\n', b"[1]\n2"]
)
def test_what_is_no_journal_is_refused(tmp_path, content):
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(ResdeployError, match=r"with other|something else"):
        Journal.open(tmp_path, IDENTITY)
    assert (tmp_path / JOURNAL).read_bytes() == content


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(ResdeployError, match="something else than a search"):
        Journal.open(tmp_path, IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
