"""The table of devices at work: on a terminal, and nowhere else."""

from resdeploy.cli import progress
from resdeploy.cli.progress import show_devices, show_steps


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


def test_a_pipe_shows_nothing(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with show_devices("bench", ["kitchen"]) as enter:
        enter(0, "install")
    assert capsys.readouterr() == ("", "")
