"""`resdeploy ship`: its arguments before torch, its progress, and what an interruption says."""

import subprocess
import sys

import pytest

from resdeploy.api import ship as ship_module

# `resdeploy.api.ship` is the module; the command imports the verb from it when it is called.
MODULE = sys.modules[ship_module.__name__]


def test_an_interruption_says_how_to_go_on(run, checkpoint, tmp_path, monkeypatch):
    def interrupted(*_, on_note, **__):
        on_note("time: about 4.1 min from here")
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "ship", interrupted)
    done = run("ship", checkpoint, "-o", tmp_path / "parts.zip")
    assert done.exit_code == 130
    assert "time: about 4.1 min from here" in done.output
    folder = tmp_path / "parts.zip.work"
    assert f"finished stages are in {folder}: the same command goes on" in done.output
    done = run("ship", checkpoint, "-o", tmp_path / "parts.zip", "--work", tmp_path / "w")
    assert f"finished stages are in {tmp_path / 'w'}:" in done.output


def test_options_become_those_of_the_verb(run, checkpoint, tmp_path, monkeypatch):
    seen = {}

    def recorded(source, out, **options):
        seen.update(options, path=source.path)
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "ship", recorded)
    run(
        *("ship", checkpoint, "-o", tmp_path / "p.zip", "--data", "digits", "--max-drop", "0.5"),
        *("--precision", "int8,fp16", "--provider", "cpu"),
    )
    assert seen["max_drop"] == 0.005
    assert seen["precisions"] == ("int8", "float16")
    assert seen["providers"] == ("cpu",)
    assert seen["path"] == str(checkpoint)


MISTAKES = {
    "the checkpoint is not there": (["absent.ckpt", "-o", "p.zip"], "no such file"),
    "no checkpoint": (["-o", "p.zip"], "No model was given"),
    "the data is not there": (["net.ckpt", "-o", "p.zip", "--data", "absent"], "no data set"),
    "a budget without data": (["net.ckpt", "-o", "p.zip", "--max-drop", "1"], "needs samples"),
    "no folder for the output": (["net.ckpt", "-o", "none/p.zip"], "does not exist"),
    "the record of a target is none": (["net.ckpt", "-o", "p.zip", "--for", "no.json"], "no.json"),
    "a budget of nothing": (
        ["net.ckpt", "-o", "p.zip", "--data", "digits", "--max-drop", "0"],
        "No number of samples",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_before_torch_is_imported(tmp_path, mistake):
    arguments, answer = MISTAKES[mistake]
    (tmp_path / "net.ckpt").write_bytes(b"weights")
    script = (
        "import sys\n"
        "from resdeploy.cli import cli\n"
        "try:\n"
        f"    cli(['ship', *{arguments!r}])\n"
        "except SystemExit as end:\n"
        "    print(end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert answer in done.stderr
    assert done.stdout == "2 False\n"
    assert [path.name for path in tmp_path.iterdir()] == ["net.ckpt"]
