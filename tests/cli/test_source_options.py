"""Weights from elsewhere on the command line: what was found is said, and the file is PROVED."""

import argparse
import json

import pytest
import torch
from click.testing import CliRunner

import resdeploy
from resdeploy.cli import cli
from resdeploy.errors import ResdeployError
from resdeploy.networks import build_network
from resdeploy.schema.recipes import ModelSpec

MODEL = ModelSpec(arch="resnet8_tiny", num_classes=3, options={"in_channels": 1, "width": 8})
SIZE = ("--input", "1,8,8")


def run(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    state_dict = {f"net.{n}": t for n, t in build_network(MODEL).state_dict().items()}
    extra = {"criterion.weight": torch.ones(3)}
    hyper_parameters = argparse.Namespace(lr=0.1, class_names=["nut", "bolt", "screw"])
    content = {"state_dict": state_dict | extra, "hyper_parameters": hyper_parameters}
    torch.save(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_an_export_says_what_it_found_and_its_file_is_proved(weights, tmp_path):
    options = ("--preprocess-as", "half", *SIZE)
    done = run("export", weights, *options, "-o", tmp_path / "a.onnx")
    assert done.exit_code == 0, done.output
    for line in (
        "network: resnet8_tiny, in_channels=1, width=8, 3 classes, by the weights' names",
        "weights: state_dict.net",
        "left out: state_dict.criterion (1 tensor)",
        "class names: from hyper_parameters: class_names",
    ):
        assert line in done.stdout
    done = run("verify", tmp_path / "a.onnx", "--reference", weights, *options)
    assert "PROVED" in done.stdout, done.output
    assert "weights: state_dict.net" in done.stdout


def test_records_and_bundles_say_it_too(weights, tmp_path):
    done = run("fold-bn", weights, "--dry-run", "--json", *SIZE)
    assert "weights: state_dict.net" in json.loads(done.stdout)["source"]
    done = run("bundle", weights, "-o", tmp_path / "a", "--mean", "0.5", "--std", "0.25", *SIZE)
    assert done.exit_code == 0, done.output
    assert "weights: state_dict.net" in done.stdout
    with resdeploy.load(tmp_path / "a") as bundle:
        assert bundle.labels == ("nut", "bolt", "screw")
        assert bundle.manifest.preprocess.std == (0.25,)


def test_the_options_are_arguments_of_load(weights):
    model = resdeploy.load(weights, mean=[0.5], std=[0.25], resize=10, crop=8)
    assert model.input_shape == (1, 8, 8)
    assert (model.preprocess.resize, model.preprocess.divisor) == (10, 255)
    assert resdeploy.load(weights, crop=(8, 6), mean=[0], std=[1]).input_shape == (1, 8, 6)
    with pytest.raises(ResdeployError, match="1000 labels for 3 classes"):
        resdeploy.load(weights, labels="imagenet")
    with pytest.raises(ResdeployError, match="no weights 'ema'"):
        resdeploy.load(weights, weights="ema")
    with pytest.raises(ValueError, match="preprocess_as must be one of imagenet"):
        resdeploy.load(weights, preprocess_as="imagenett")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mean", "a,b"), "not a list of numbers such as 0.5,0.5,0.5"),
        (("--std", "0.5,nan"), "not a list of numbers"),
        (("--crop", "1,2,3"), "more than two numbers"),
        (("--crop", "224x224"), "not a size such as 224"),
        (("--resize", "0"), "--resize"),
        (("--preprocess-as", "imagenett"), "--preprocess-as"),
        (("--mean", "0.5"), "scale of the pixels is not known"),
        (("--labels", "gone.txt"), "no labels 'gone.txt'"),
        (("--weights", "ema"), "no weights 'ema'"),
    ],
)
def test_options_that_are_none_are_refused(weights, options, message):
    done = run("fold-bn", weights, "--dry-run", *options)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
