"""The scripts of benchmarks/tune: what they count, and each of them whole on a tiny network."""

import json

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper

from benchmarks.tune import compare, regret
from resdeploy.cli import cli
from resdeploy.networks import build_network
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess
from resdeploy.training.checkpoint import save_checkpoint

MODEL = ModelSpec(arch="resnet8_tiny", num_classes=10, options={"in_channels": 3})


def tiny(tmp_path):
    """Write a checkpoint and a bundle of a network with BatchNorms that have seen something."""
    torch.manual_seed(0)
    network = build_network(MODEL)
    for _ in range(3):
        network(torch.randn(16, 3, 8, 8))
    checkpoint = tmp_path / "tiny.safetensors"
    info = CheckpointInfo(
        model=MODEL,
        preprocess=Preprocess(input_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    save_checkpoint(checkpoint, network.eval(), info)
    bundle = tmp_path / "tiny"
    run("bundle", checkpoint, "-o", bundle)
    return checkpoint, bundle


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def write_noise(path, num):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (num, 3, 8, 8), dtype=np.uint8)
    np.savez(path, x=x, y=rng.integers(0, 10, num))
    return path


# --- what is counted -----------------------------------------------------------------------------


def test_the_fastest_is_so_over_all_blocks():
    blocks = [{"a": 1.0, "b": 2.0}, {"a": 9.0, "b": 2.0}]
    assert regret.fastest(blocks) == "b"
    assert regret.fastest(blocks[:1]) == "a"


def test_a_pick_that_is_the_best_is_not_measured():
    assert regret.regret_of("same", "same", {}, 1, 1) == {"regret": 0.0, "low": 0.0, "high": 0.0}


def test_violations_are_counted_among_winners_and_among_all_that_were_let_in():
    def held(violates):
        return {"violates": violates, "violates_for_sure": False}

    state = {
        "searches": [{"regret": {"regret": 0.01}}, {"regret": {"regret": 0.03}}, {}],
        "budget": [
            {"winner": held(False), "let_in": [held(False), held(True)]},
            {"winner": held(True), "let_in": [held(True)]},
        ],
    }
    found = regret.summary(state)
    assert found["median_regret"] == pytest.approx(0.02)
    assert (found["winners_that_violate"]["num"], found["winners_that_violate"]["of"]) == (1, 2)
    assert (found["let_in_that_violate"]["num"], found["let_in_that_violate"]["of"]) == (2, 3)
    assert found["winners_that_violate_for_sure"]["num"] == 0


def test_figures_of_another_model_are_not_gone_on_with(tmp_path):
    about = {"models": {"model.onnx": "abc"}, "num_judged": 5, "spec": {}}
    path = tmp_path / "regret.json"
    assert regret.read_state(path, about)["searches"] == []
    path.write_text(json.dumps({**about, "searches": [1], "exhaustive": [], "budget": []}))
    assert regret.read_state(path, about)["searches"] == [1]
    with pytest.raises(Exception, match="about another models"):
        regret.read_state(path, {**about, "models": {"model.onnx": "abd"}})


def test_rounded_weights_have_so_many_levels(tmp_path):
    _, bundle = tiny(tmp_path)
    out = regret.round_weights(bundle / "model.onnx", tmp_path / "rounded.onnx", 3)
    tensors = [numpy_helper.to_array(one) for one in onnx.load(out).graph.initializer]
    weights = [one for one in tensors if one.dtype == np.float32 and one.ndim >= 2]
    assert weights
    assert max(len(np.unique(one)) for one in weights) == 7


# --- each of them whole --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_comparison_holds_what_tune_finds_to_everything_else(tmp_path):
    checkpoint, bundle = tiny(tmp_path)
    noise = write_noise(tmp_path / "noise.npz", 64)
    int8 = tmp_path / "int8.onnx"
    options = ("--method", "minmax", "--max-flips", 1)
    run("quantize", bundle / "model.onnx", "-o", int8, "--calibration", f"npz:{noise}", *options)
    out = tmp_path / "compare.json"
    arguments = [checkpoint, bundle, int8, "--batches", "1", "--blocks", 2, "--runs", 12]
    command = [*map(str, [*arguments, "--json", out])]
    result = CliRunner().invoke(compare.main, command)
    assert result.exit_code == 0, result.output
    (cell,) = json.loads(out.read_text())["cells"]
    assert {one["search"] for one in cell["searches"]} == set(compare.OURS)
    others = {one["name"] for one in cell["competitors"]} - set(compare.OURS)
    assert others == {
        "ORT float32",
        "ORT quantize_static",
        "torch eager",
        "torch channels last",
        "torch.compile",
    }
    assert all(one["rel_l2"] < 1e-5 for one in cell["competitors"] if "torch" in one["name"])
    assert set(cell["ratios"]["tune, int8"]) == others | {"tune, lossless"}
    assert len(cell["medians_ns"]) == 2
    assert str(tmp_path) not in out.read_text()
    # What is there is not measured again.
    before = out.read_text()
    assert CliRunner().invoke(compare.main, command).exit_code == 0
    assert out.read_text() == before


@pytest.mark.slow
def test_the_regret_goes_on_where_it_stopped(tmp_path):
    _, bundle = tiny(tmp_path)
    samples = write_noise(tmp_path / "samples.npz", 192)
    out = tmp_path / "regret.json"
    few = ["--searches", 1, "--final-blocks", 6, "--runs", 20, "--num-calibration", 64]
    # Labels of noise show no drop of any size: the budget is all there is.
    few += ["--max-drop", 100, "--repeats", 1, "--json", out]

    def measure(blocks):
        command = [*map(str, [bundle, samples, *few, "--blocks", blocks])]
        result = CliRunner().invoke(regret.main, command)
        assert result.exit_code == 0, result.output
        return json.loads(out.read_text())

    first, second = measure(2), measure(3)
    assert second["searches"] == first["searches"]
    assert second["exhaustive"][:2] == first["exhaustive"]
    assert len(second["exhaustive"]) == 3
    assert second["summary"]["winners_that_violate"]["of"] == 1
