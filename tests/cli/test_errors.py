"""Bad input: the exit code, the three parts of the message, and nothing left behind."""

import pickle
import subprocess
import sys
from pathlib import Path

import click
import onnxruntime
import pytest
import torch
from torch import nn

from resdeploy.bench import process
from resdeploy.cli import cli
from resdeploy.cli.options import Number, Percent
from resdeploy.export import export as export_module
from resdeploy.extras import install_extra
from resdeploy.verify import outputs as outputs_module

ARCH = ("--arch", "resnet8_tiny", "--arch-option", "in_channels=1")


@pytest.fixture
def folder(tmp_path):
    """An empty folder to run in, so that whatever is left behind shows."""
    path = tmp_path / "work"
    path.mkdir()
    return path


def assert_refused(result, folder, *, code, what, fix=None):
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    # What comes before are the stages that went well.
    first, *rest = result.stderr[result.stderr.index("error: ") :].splitlines()
    assert what in first
    assert any(line.startswith("  where: ") for line in rest)
    if fix is not None:
        assert any(line.startswith("  fix:   ") and fix in line for line in rest), rest
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_a_truncated_checkpoint(run, checkpoint, folder, kept):
    raw = checkpoint.read_bytes()
    checkpoint.write_bytes(raw[: int(kept * len(raw)) if kept < 1 else kept])
    result = run("export", checkpoint, "-o", folder / "model.onnx")
    assert_refused(result, folder, code=2, what="not a whole safetensors file", fix="again")


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_a_truncated_checkpoint_from_elsewhere(run, network, tmp_path, folder, kept):
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept * len(raw)) if kept < 1 else kept])
    result = run("fold-bn", path, *ARCH, "-o", folder / "folded.safetensors")
    assert_refused(result, folder, code=2, what="")


def test_a_wrong_arch(run, network, tmp_path, folder):
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    result = run("export", path, "--arch", "resnet50", "-o", folder / "model.onnx")
    assert_refused(result, folder, code=2, what="do not fit the network", fix="--arch")


class Planted:
    """Unpickling this would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickled_module_is_refused_and_runs_nothing(run, tmp_path, folder):
    path = tmp_path / "module.pt"
    torch.save(nn.Linear(2, 2), path)
    result = run("export", path, *ARCH, "-o", folder / "model.onnx")
    assert_refused(result, folder, code=2, what="a pickled module", fix="in that program")
    assert "torch.save(module.state_dict()" in result.stderr


def test_a_malicious_pickle_runs_nothing(run, tmp_path, folder):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"state_dict": Planted(folder / "planted")}))
    result = run("export", path, *ARCH, "-o", folder / "model.onnx")
    assert_refused(result, folder, code=2, what="")


@pytest.mark.parametrize("command", [("bench",), ("verify", "--golden", __file__)])
def test_a_file_that_is_not_onnx(run, tmp_path, folder, command):
    path = tmp_path / "model.onnx"
    path.write_text("this is not a model")
    result = run(command[0], path, *command[1:])
    assert_refused(result, folder, code=2, what="not an ONNX model", fix=".onnx")


def test_a_missing_data_folder(run, folder):
    result = run(
        "train", "cifar10-resnet20", "--data", "cifar10:/nowhere/at/all", "-o", folder / "run"
    )
    assert_refused(result, folder, code=2, what="", fix="cifar-10")


@pytest.mark.parametrize("output", ["no/such/folder/model.onnx", "/proc/model.onnx"])
def test_an_output_that_cannot_be_written(run, checkpoint, folder, monkeypatch, output):
    monkeypatch.chdir(folder)
    result = run("export", checkpoint, "-o", output)
    assert_refused(result, folder, code=2, what="The folder", fix="output path")


def test_an_output_whose_folder_is_a_file(run, checkpoint, folder):
    result = run("export", checkpoint, "-o", checkpoint / "model.onnx")
    assert_refused(result, folder, code=2, what="The folder", fix="output path")


def test_an_existing_output_is_kept_without_force(run, checkpoint, exported):
    before = exported.read_bytes()
    result = run("export", checkpoint, "-o", exported)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert exported.read_bytes() == before
    assert run("export", checkpoint, "-o", exported, "--force").exit_code == 0


def test_an_unknown_recipe(run):
    result = run("train", "no-such-model")
    assert result.exit_code == 2
    assert "digits-resnet8" in result.stderr


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs the GPU wheel",
)
def test_cuda_where_there_is_none_is_exit_3_and_nothing_runs_on_the_cpu(
    run, checkpoint, exported, monkeypatch, no_cuda
):
    monkeypatch.setattr(outputs_module, "session_outputs", lambda *_: pytest.fail("it ran"))
    result = run("verify", exported, "--reference", checkpoint, "--provider", "cuda")
    assert result.exit_code == 3
    assert result.stdout == ""
    *_, first, where, fix = result.stderr.splitlines()
    assert first.startswith("error: CUDAExecutionProvider did not start: lib")
    assert first.endswith("missing.")
    assert "onnxruntime-gpu" in where
    assert "pip install" in fix


def test_an_interrupted_command_leaves_nothing_and_exits_130(run, checkpoint, folder, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "judge_outputs", interrupt)
    result = run("export", checkpoint, "-o", folder / "model.onnx")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert list(folder.iterdir()) == []


def test_a_bug_is_exit_70_and_says_so(run, exported, monkeypatch):
    monkeypatch.setattr(process, "bench", lambda *_, **__: 1 / 0)
    result = run("bench", exported)
    assert result.exit_code == 70
    assert "ZeroDivisionError" in result.stderr
    assert "this is a bug in resdeploy" in result.stderr


@pytest.mark.parametrize(
    ("package", "extra"), [("torch", "export"), ("onnxruntime", "cpu"), ("asyncssh", "remote")]
)
def test_a_missing_package_names_its_extra(checkpoint, exported, package, extra):
    command = {
        "torch": ["fold-bn", str(checkpoint), "--dry-run"],
        "onnxruntime": ["bench", str(exported)],
        "asyncssh": ["probe", "--on", "board"],
    }
    script = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"
        "from resdeploy.cli import cli\n"
        f"cli({command[package]!r})\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 3, result.stderr
    assert install_extra(extra) in result.stderr


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"resdeploy {name}" in result.stdout.partition("Example:")[2]


def test_python_cli_py_is_the_same_program():
    shim = Path(__file__).parents[2] / "cli.py"
    outputs = [
        subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
        for command in ([sys.executable, str(shim)], [sys.executable, "-m", "resdeploy"])
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("Usage: resdeploy")


NUMBERS = [
    (name, option.opts[0], "1%" if isinstance(option.type, Percent) else "1")
    for name, command in cli.commands.items()
    for option in command.params
    if isinstance(option.type, click.types.FloatParamType | Number)
]


@pytest.mark.parametrize(("command", "flag", "taken"), NUMBERS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1"])
def test_a_number_that_is_no_budget_is_a_usage_error(run, command, flag, taken, text):
    """No count of flips is more than NaN: `quantize --max-flips nan` had no budget."""
    text += "%" * taken.count("%")
    refused, heeded = (run(command, flag, value, "none") for value in (text, taken))
    assert refused.exit_code == 2
    assert f"Invalid value for '{flag}'" in refused.stderr
    assert f"Invalid value for '{flag}'" not in heeded.stderr


def test_every_number_of_a_command_is_a_finite_one():
    flags = {flag for _, flag, _ in NUMBERS}
    assert {"--max-flips", "--max-error", "--max-drop", "--fail-if-slower", "--qps"} <= flags
