"""Correct sessions of real architectures do not alarm, far from the limit."""

import pytest
import torch

from resdeploy.export.export import export_onnx
from resdeploy.export.golden import golden_for
from resdeploy.export.source import load_source
from resdeploy.networks import build_network
from resdeploy.recipe import load_recipe
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess, SourceSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.session import open_session
from resdeploy.training.checkpoint import save_checkpoint
from resdeploy.verify.conformance import check_conformance

NETWORKS = {
    "digits-resnet8": None,
    "mnist1d-preact-mlp": None,
    "resnet18": (ModelSpec(arch="resnet18", num_classes=100), (3, 64, 64)),
    "cifar_resnet20": (ModelSpec(arch="cifar_resnet20", num_classes=10), (3, 32, 32)),
    "cifar_preact_resnet20": (ModelSpec(arch="cifar_preact_resnet20", num_classes=10), (3, 32, 32)),
}


def settled(model, shape):
    """A network of random weights whose BatchNorms have seen data, and are all different."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        module = build_network(model).train()
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.3)
        for _ in range(20):
            module(torch.randn(16, *shape))
    return module.eval()


@pytest.mark.parametrize(
    "name",
    [
        name if name == "mnist1d-preact-mlp" else pytest.param(name, marks=pytest.mark.slow)
        for name in NETWORKS
    ],
)
@pytest.mark.parametrize("level", ["disabled", "all"])
def test_a_right_session_of_a_real_network_is_far_within_the_limit(tmp_path, name, level):
    recipe = None if NETWORKS[name] else load_recipe(name)
    model, shape = NETWORKS[name] or (recipe.model, recipe.preprocess.input_shape)
    info = CheckpointInfo(model=model, preprocess=Preprocess(input_shape=shape))
    save_checkpoint(tmp_path / "net.safetensors", settled(model, shape), info)
    source = load_source(SourceSpec(path=str(tmp_path / "net.safetensors")))
    golden = golden_for(source)
    export_onnx(source, ExportSpec(), tmp_path / "net.onnx", golden=golden)
    session = open_session(tmp_path / "net.onnx", SessionSpec(num_threads=2, graph_level=level))
    conformance = check_conformance(tmp_path / "net.onnx", golden, session)
    assert conformance.passed, conformance.reasons
    distances = [*conformance.batches.values(), *conformance.levels.values()]
    assert max(distances) < conformance.limit / 2
    # Measured: at most 1.9.
    assert max(conformance.stress.values()) < conformance.limit / 2
