"""`python -m benchmarks.cuda.train_speed` on the CPU, with a tiny network."""

import json

import pytest
from click.testing import CliRunner

from benchmarks.cuda.train_speed import Setting, Way, macs_of, main, measure_ways, ways_on
from resdeploy.training.loop import train

TINY = Setting(arch="resnet8_tiny", side=8, batch_size=2, num_steps=2, device="cpu")


def test_both_loops_are_timed_in_every_form_and_one_that_fails_is_left_out(monkeypatch):
    ways = [*ways_on(compiles=False), Way(loop="resdeploy", compile=True)]

    def refuse(*arguments, **options):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr("torch.compile", refuse)
    speeds = measure_ways(TINY, ways, num_epochs=3, say=lambda line: None)
    assert [speed.way for speed in speeds] == ways
    *timed, failed = speeds
    for speed in timed:
        assert len(speed.epochs_s) == 3
        assert min(*speed.epochs_s, *speed.warmup_s) > 0
    assert failed.failure == "RuntimeError: no compiler here"
    assert failed.epochs_s == ()


def test_what_is_timed_is_the_product_s_own_training(monkeypatch):
    recipes = []

    def spy(recipe, *arguments, **options):
        recipes.append(recipe)
        return train(recipe, *arguments, **options)

    monkeypatch.setattr("resdeploy.training.loop.train", spy)
    measure_ways(TINY, ways_on(compiles=False), num_epochs=1, say=lambda line: None)
    assert [(r.train.precision, r.train.channels_last) for r in recipes] == [
        ("float32", False),
        ("bfloat16", True),
    ]
    assert {r.train.batch_size for r in recipes} == {2}


def test_the_multiplications_are_those_of_the_paper():
    """He et al. count 3.8e9 for ResNet-50 at 224 pixels; with the stride in its 3 x 3, 4.1e9."""
    setting = Setting(arch="resnet50", side=224, batch_size=2, num_steps=1, device="cpu")
    assert macs_of(setting) == pytest.approx(4.09e9, rel=0.01)


def test_the_command_writes_its_figures(tmp_path):
    path = tmp_path / "speed.json"
    arguments = ["--device", "cpu", "--arch", "resnet8_tiny", "--side", 8, "--batch", 2]
    arguments += ["--steps", 2, "--epochs", 2, "--no-compile", "--json", path]
    result = CliRunner().invoke(main, [str(value) for value in arguments])
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert all(speed["images_per_s"] > 0 for speed in found["speeds"])
    assert all(speed["roofline_share"] > 0 for speed in found["speeds"])
    assert set(found["ratios"]) == {"resdeploy, float32", "resdeploy, bfloat16, channels last"}
    for ratio, low, high in found["ratios"].values():
        assert low <= ratio <= high


def test_without_a_gpu_it_says_so(no_cuda):
    result = CliRunner().invoke(main, ["--device", "cuda"])
    assert result.exit_code == 3
    assert "cannot use the device 'cuda'" in result.output
