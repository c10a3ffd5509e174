"""The weights of exported files, bit by bit what they were when a fold of its own made each."""

import hashlib
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from resdeploy.export.export import export_onnx
from resdeploy.export.source import SourceModel, load_source
from resdeploy.networks import build_network, input_shape
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.recipes import ModelSpec, SourceSpec

# Of the files that commit 9093331 wrote, which folded before the translation to ONNX.
DIGESTS = {
    "residual_mlp": "ebefa12cebbea16b08d5ad7c94fe2f194f24baded678dd8e350384ff58024612",
    "cifar_preact_resnet20": "ae38f28696e7ec2b033526ca07936b2a60165c8d9ab8808aa45a28159a7deaeb",
    "resnet18": "a50661006dc1c9b0ea806c76a114f0014ff8de8766bf7770ef2ee4dc2111d5d7",
    "resnet50": "c27347df6237b53902d924191162286a585242933f18345144a7fa382f29ef03",
    "resnext50_32x4d": "93a795bf947d733d0aaec0f5ede4a25f8f3d5d2734397b0489df29f73f5bd88e",
}


def seeded(arch: str) -> SourceModel:
    """Return a network whose every number numpy drew: the same on any machine."""
    spec = ModelSpec(arch=arch, num_classes=10)
    network, random = build_network(spec).eval(), np.random.default_rng(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            values = random.uniform(0.3, 1.5, tensor.shape)
        else:
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 10
            values = random.normal(0, math.sqrt(2 / fan_in), tensor.shape)
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(np.asarray(values)))
    return SourceModel(module=network, input_shape=input_shape(spec), description=arch, info=None)


def digest(model: onnx.ModelProto) -> str:
    """Return the sha256 of the floats that nodes read, in the order of the graph."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants = (node for node in model.graph.node if node.op_type == "Constant")
    arrays |= {c.output[0]: numpy_helper.to_array(c.attribute[0].t) for c in constants}
    found = hashlib.sha256()
    for name in (name for node in model.graph.node for name in node.input):
        if name in arrays and arrays[name].dtype == np.float32:
            found.update(f"{arrays[name].shape}".encode() + arrays[name].tobytes())
    return found.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("arch", DIGESTS)
def test_the_weights_have_the_same_bits(arch, tmp_path):
    export_onnx(seeded(arch), ExportSpec(), tmp_path / "model.onnx")
    assert digest(onnx.load(tmp_path / "model.onnx")) == DIGESTS[arch]


@pytest.mark.slow
def test_those_of_a_real_network_too(shared_data, tmp_path):
    weights = str(shared_data / "resnet20-12fca82f.th")
    source = load_source(SourceSpec(path=weights, arch="cifar_resnet20"))
    export_onnx(source, ExportSpec(), tmp_path / "model.onnx")
    assert digest(onnx.load(tmp_path / "model.onnx")) == (
        "235cb42e0fdc45a380e00793837fb4595885d27a8349e98d05c1b3e982992033"
    )
