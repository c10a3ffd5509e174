"""The table of devices at work: on a terminal, and nowhere else."""

from resdeploy.cli.progress import show_devices


def test_a_terminal_shows_every_device_with_its_stage(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with show_devices("bench", ["kitchen [1]", "cellar"]) as enter:
        enter(0, "install")
        enter(1, "failed")
    drawn = capsys.readouterr().err
    for text in ("bench", "kitchen [1]", "install", "cellar", "failed"):
        assert text in drawn


def test_a_pipe_shows_nothing(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with show_devices("bench", ["kitchen"]) as enter:
        enter(0, "install")
    assert capsys.readouterr() == ("", "")
