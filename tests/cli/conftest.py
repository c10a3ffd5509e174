"""A small trained network, its checkpoint in both forms, and a way to run commands."""

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from resdeploy.cli import cli
from resdeploy.networks import build_network
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess
from resdeploy.training.checkpoint import save_checkpoint

MODEL = ModelSpec(arch="resnet8_tiny", num_classes=10, options={"in_channels": 1})


@pytest.fixture
def run():
    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture(scope="session")
def network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_network(MODEL)
        for _ in range(3):
            module(torch.randn(16, 1, 8, 8))
    return module.eval()


@pytest.fixture
def checkpoint(network, tmp_path) -> Path:
    return _save(network, tmp_path / "checkpoint.safetensors")


def _save(network: torch.nn.Module, path: Path) -> Path:
    preprocess = Preprocess(input_shape=(1, 8, 8), divisor=255.0, color="gray")
    labels = tuple(map(str, range(10)))
    save_checkpoint(
        path, network, CheckpointInfo(model=MODEL, preprocess=preprocess, labels=labels)
    )
    return path


@pytest.fixture(scope="session")
def exported_once(network, tmp_path_factory) -> Path:
    """Export once for all tests, which takes longer than what most of them do with it."""
    folder = tmp_path_factory.mktemp("exported")
    source = _save(network, folder / "checkpoint.safetensors")
    arguments = ["export", str(source), "-o", str(folder / "model.onnx")]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    return folder / "model.onnx"


@pytest.fixture
def exported(exported_once, tmp_path) -> Path:
    return Path(shutil.copy(exported_once, tmp_path / "model.onnx"))
