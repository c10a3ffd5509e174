"""The networks that people deploy: each is PROVED, of any batch, with every right fold made."""

import pytest
from deployed_networks import NETWORKS, build

import resdeploy

# A gate of HardSigmoid behind a layer, whose factor must not fold into that layer.
FAST = ("MobileNetV3",)

# BatchNorms that stay: of DenseNet those that read the concatenation, of iresnet and the
# pre-activation network those that read the stream, of RepVGG the branch that is nothing else.
KEPT = {
    "cifar_preact_resnet20": 9,
    "iresnet18": 9,
    "DenseNet": 5,
    "RepVGG, as trained": 2,
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in NETWORKS]
)
def test_is_exported_folded_and_proved(tmp_path, name):
    module, shape = build(name), NETWORKS[name][1]
    exported = resdeploy.export(module, tmp_path / "m.onnx", input_shape=shape)
    assert len(exported.fold.refused) == KEPT.get(name, 0), exported.fold.refused
    report = resdeploy.verify(tmp_path / "m.onnx", module, input_shape=shape, num_inputs=4)
    assert report.verdict == "PROVED", (report.reasons, report.unproved)
