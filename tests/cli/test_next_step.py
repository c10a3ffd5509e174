"""The command that comes next: it parses, and says what was said."""

import shlex

import pytest

from resdeploy.cli import cli
from resdeploy.cli.next_step import next_step

STEPS = {
    "train digits-resnet8": "export runs/digits-resnet8 -o digits-resnet8.onnx",
    "train a/recipe.toml -o runs/mine": "export runs/mine -o mine.onnx",
    "train mine/recipe.toml": "export runs/mine -o mine.onnx",
    "export a.pth --arch resnet8_tiny --arch-option in_channels=1 -o a.onnx": "verify a.onnx "
    "--reference a.pth --arch resnet8_tiny --arch-option in_channels=1",
    "export --model my.net:build --input 3,8,8 -o a.onnx": "verify a.onnx --model my.net:build "
    "--input 3,8,8",
    "export 'my run' -o a.onnx": "verify a.onnx --reference 'my run'",
    "fold-bn a.onnx -o b.onnx": "verify b.onnx --reference a.onnx",
    "fold-bn run -o b.safetensors": "export b.safetensors -o b.onnx",
    "fold-bn run --dry-run": "fold-bn run -o OUTPUT",
    "verify a.onnx --reference run": "bench a.onnx",
    "quantize a.onnx -o b.onnx --calibration photos": "evaluate b.onnx --against a.onnx "
    "--data photos",
    "tune parts": "tune parts -o tuned",
    "tune parts -o tuned": "check tuned",
    "bench a.onnx": "bench a.onnx --profile",
    "bench a.onnx --against b.onnx": None,
    "bench a.onnx --provider cuda": None,
    "bundle run -o parts": "check parts",
    "ship run -o parts.zip": "check parts.zip",
    "check parts": "predict parts IMAGE",
    "check parts --on pi@kitchen": "bench parts --on pi@kitchen",
    "predict parts a.png": "evaluate parts --data FOLDER",
    "evaluate parts --data photos": "evaluate parts --data photos --against OTHER",
    "probe": "probe -o target.json",
    "probe -o t.json": "export CHECKPOINT -o model.onnx --for t.json",
    "doctor": "probe",
    "demo": "check demo-out/bundle",
    "selftest run": "selftest run --attack",
}


def after(line: str, *, passed: bool) -> str | None:
    name, *words = shlex.split(line)
    context = cli.commands[name].make_context(name, words)
    return next_step(context, passed=passed)


@pytest.mark.parametrize("line", STEPS)
def test_a_command_is_followed_by_one_that_parses(line):
    expected = STEPS[line]
    found = after(line, passed=True)
    assert found == (None if expected is None else f"resdeploy {expected}")
    if found is not None:
        _, name, *words = shlex.split(found)
        cli.commands[name].make_context(name, words)


def test_every_command_has_one():
    assert {line.partition(" ")[0] for line, step in STEPS.items() if step} == set(cli.commands)


def test_a_failure_is_followed_by_what_finds_its_cause_or_by_nothing():
    assert after("verify a.onnx --reference r --arch resnet18", passed=False) == (
        "resdeploy verify a.onnx --reference r --arch resnet18 --artifacts faults"
    )
    for line in (
        "export run -o a.onnx",
        "quantize a.onnx -o b.onnx --calibration x",
        "check parts",
    ):
        assert after(line, passed=False) is None
