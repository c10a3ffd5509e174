"""`resdeploy train` as a user runs it: what is printed, resumed, replaced and kept."""

import json
import os
import pty
import subprocess
import sys

import pytest
import torch

from resdeploy.schema.codec import load_json
from resdeploy.schema.recipes import EpochMetrics, TrainReport
from resdeploy.training.checkpoint import load_checkpoint

SHORT = ("train", "mnist1d-postnorm-mlp", "--epochs", 3)


@pytest.fixture
def trained(run, tmp_path):
    directory = tmp_path / "run"
    result = run(*SHORT, "-o", directory)
    assert result.exit_code == 0, result.output
    return directory, result


def test_a_run_leaves_checkpoint_metrics_and_recipe(trained):
    directory, result = trained
    assert "of 1000 test samples after 3 epochs" in result.stdout
    lines = result.stderr.splitlines()  # piped: plain ones
    assert all(line.startswith(("train mnist1d-postnorm-mlp: ", "next: ")) for line in lines)
    state_dict, info = load_checkpoint(directory)
    assert info.recipe.name == "mnist1d-postnorm-mlp"
    assert info.epoch == 3
    assert all(torch.isfinite(tensor).all() for tensor in state_dict.values())
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    metrics = [load_json(EpochMetrics, line, where="metrics") for line in lines]
    assert [m.epoch for m in metrics] == [1, 2, 3]
    assert metrics[-1].test_accuracy == info.test_accuracy


def test_a_run_that_is_there_is_kept_resumed_or_replaced(run, trained):
    directory, _ = trained
    before = (directory / "checkpoint.safetensors").read_bytes()
    refused = run(*SHORT, "-o", directory)
    assert refused.exit_code == 2
    assert (directory / "checkpoint.safetensors").read_bytes() == before
    resumed = run(*SHORT, "-o", directory, "--resume", "--json")
    assert load_json(TrainReport, resumed.stdout, where="stdout").last.epoch == 3
    assert (directory / "checkpoint.safetensors").read_bytes() == before
    other = run(*SHORT, "-o", directory, "--force", "--seed", 1)
    assert other.exit_code == 0, other.output
    assert (directory / "checkpoint.safetensors").read_bytes() != before


def test_force_never_removes_what_is_not_a_run(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    result = run(*SHORT, "-o", tmp_path, "--force")
    assert result.exit_code == 2
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


def test_the_default_directory_is_named_after_the_recipe(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("train", "mnist1d-preact-mlp", "--epochs", 3, "--json")
    record = json.loads(result.stdout)
    assert record["run_directory"] == "runs/mnist1d-preact-mlp"
    assert (tmp_path / "runs" / "mnist1d-preact-mlp" / "checkpoint.safetensors").is_file()


def test_a_trained_run_goes_through_the_chain(run, trained, tmp_path):
    directory, _ = trained
    model = tmp_path / "model.onnx"
    assert run("export", directory, "-o", model).exit_code == 0
    verified = run("verify", model, "--reference", directory, "--data", "mnist1d")
    assert verified.exit_code == 0, verified.output
    assert "all 1000 held-out samples of mnist1d" in verified.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_progress_shows_loss_accuracy_and_time_left(tmp_path):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "resdeploy", *map(str, SHORT), "-o", str(tmp_path / "run")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    output, _ = process.communicate()
    os.close(master)
    assert process.returncode == 0
    for figure in (b"loss", b"test", b"left", b"mnist1d-postnorm-mlp"):
        assert figure in shown
    assert b"loss" not in output


def test_what_makes_a_run_faster_goes_into_its_record(run, tmp_path):
    result = run(*SHORT, "-o", tmp_path / "run", "--precision", "bf16", "--channels-last", "--json")
    assert result.exit_code == 0, result.output
    report = load_json(TrainReport, result.stdout, where="stdout")
    assert report.recipe.train.precision == "bfloat16"
    assert report.recipe.train.channels_last
    assert not report.recipe.train.compile
    other = run(*SHORT, "-o", tmp_path / "run", "--resume")
    assert other.exit_code == 2
    assert "train differ" in other.stderr
