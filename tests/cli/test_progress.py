"""Progress: drawn on a terminal, lines elsewhere."""

import pytest

from resdeploy.cli import progress
from resdeploy.cli.progress import show_devices, show_stages, show_steps


def test_a_terminal_shows_every_device_with_its_stage(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with show_devices("bench", ["kitchen [1]", "cellar"]) as enter:
        enter(0, "install")
        enter(1, "failed")
    drawn = capsys.readouterr().err
    for text in ("bench", "kitchen [1]", "install", "cellar", "failed"):
        assert text in drawn


def test_who_passes_it_on_gets_lines(monkeypatch, capsys):
    monkeypatch.setenv("RESDEPLOY_PROGRESS", "lines")
    with show_steps("tune") as update:
        update(3, 12, "judge answers")
        update(0, None, "make int8: load")
    assert capsys.readouterr().err == (
        "progress: judge answers, 3 of 12\nprogress: make int8: load\n"
    )


def test_a_stage_that_says_how_far_it_is_goes_on(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with show_devices("tune", ["kitchen"]) as enter:
        enter(0, "tune: judge answers")
        now[0] = 90.0
        enter(0, "tune: race")
    assert "90 s" in capsys.readouterr().err


@pytest.fixture
def clock(monkeypatch):
    """A pipe, and a clock to turn."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_gets_one_line_for_each_stage_with_the_seconds_so_far(clock, capsys):
    with show_stages("export") as enter:
        enter("load")
        clock[0] = 12.34
        enter("trace")
        enter("trace")
    assert capsys.readouterr() == ("", "export:    0.0 s  load\nexport:   12.3 s  trace\n")


def test_a_pipe_gets_a_line_for_each_tenth_of_the_steps(clock, capsys):
    with show_steps("train") as update:
        for step in range(1, 201):
            update(step, 200, f"loss {1 / step:.3f}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", ")[2] for line in lines] == [
        "1 of 200",
        *(f"{done} of 200" for done in range(20, 201, 20)),
    ]


def test_a_pipe_gets_a_line_for_a_stage_of_no_known_length(clock, capsys):
    with show_steps("tune") as update:
        for _ in range(3):
            update(0, None, "make int8: load")
        update(1, 8, "race, 12 left")
        update(1, 8, "race, 11 left")
        update(1, 8, "against the defaults")
    said = [line.partition(" s  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert said == ["make int8: load", "race, 12 left, 1 of 8", "against the defaults, 1 of 8"]


def test_a_pipe_gets_the_stages_of_each_device(clock, capsys):
    with show_devices("bench", ["kitchen", "cellar"]) as enter:
        enter(0, "install")
        enter(1, "bench: 1 of 4")
        enter(1, "bench: 2 of 4")
    assert capsys.readouterr() == (
        "",
        "bench kitchen:    0.0 s  install\nbench cellar:    0.0 s  bench\n",
    )


def test_a_terminal_that_cannot_draw_gets_lines_too(clock, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    with show_stages("export") as enter:
        enter("load")
    assert capsys.readouterr().err == "export:    0.0 s  load\n"
