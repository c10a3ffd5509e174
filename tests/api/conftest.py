"""A small network, its file, and its bundle."""

from pathlib import Path

import pytest
import torch

import resdeploy
from resdeploy.networks import build_network
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess
from resdeploy.training.checkpoint import save_checkpoint

MODEL = ModelSpec(arch="resnet8_tiny", num_classes=10, options={"in_channels": 1})
PREPROCESS = Preprocess(input_shape=(1, 8, 8), divisor=255.0, color="gray")
LABELS = tuple(f"class {n}" for n in range(10))


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "checkpoint.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_network(MODEL)
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
                torch.nn.init.normal_(norm.bias, std=0.3)
        for _ in range(3):
            module(torch.randn(16, 1, 8, 8))
    info = CheckpointInfo(model=MODEL, preprocess=PREPROCESS, labels=LABELS)
    save_checkpoint(path, module.eval(), info)
    return path


@pytest.fixture(scope="package")
def model(checkpoint) -> resdeploy.Model:
    return resdeploy.load(checkpoint)


@pytest.fixture(scope="package")
def exported(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "m.onnx"
    resdeploy.export(model, path)
    return path


@pytest.fixture(scope="package")
def packed(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "parts.zip"
    resdeploy.bundle(model, path, num_inputs=2)
    return path
