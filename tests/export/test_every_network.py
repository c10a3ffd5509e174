"""Every architecture, all the way: one training step, fold, export, verify.

The counts are derived by hand from the papers, not read off the code.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from resdeploy.export.export import export_onnx
from resdeploy.export.fold_module import fold_batchnorm
from resdeploy.export.source import SourceModel, fit_for_folded
from resdeploy.networks import ARCHITECTURES, build_network, input_shape
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.recipes import ModelSpec

REGNET_X_DEPTHS = {
    "400mf": 22,
    "800mf": 16,
    "1_6gf": 18,
    "3_2gf": 25,
    "8gf": 23,
    "16gf": 22,
    "32gf": 23,
}
REGNET_Y_DEPTHS = {
    "400mf": 16,
    "800mf": 14,
    "1_6gf": 27,
    "3_2gf": 21,
    "8gf": 17,
    "16gf": 18,
    "32gf": 20,
}

# arch, options, BatchNorms folded, BatchNorms refused
CASES = [
    # stem + 2 per basic block + 3 projections
    ("resnet18", {}, 1 + 2 * 8 + 3, 0),
    ("resnet34", {}, 1 + 2 * 16 + 3, 0),
    # stem + 3 per bottleneck + 4 projections
    ("resnet50", {}, 1 + 3 * 16 + 4, 0),
    ("resnet101", {}, 1 + 3 * 33 + 4, 0),
    ("resnet152", {}, 1 + 3 * 50 + 4, 0),
    ("wide_resnet50_2", {}, 1 + 3 * 16 + 4, 0),
    ("resnext50_32x4d", {}, 1 + 3 * 16 + 4, 0),
    ("wide_resnet101_2", {}, 1 + 3 * 33 + 4, 0),
    ("resnext101_32x8d", {}, 1 + 3 * 33 + 4, 0),
    ("resnext101_64x4d", {}, 1 + 3 * 33 + 4, 0),
    ("resnet18_layernorm", {}, 0, 0),
    # two more in a deep stem; attention has none
    ("resnet18d", {}, 3 + 2 * 8 + 3, 0),
    ("resnet34d", {}, 3 + 2 * 16 + 3, 0),
    ("resnet50d", {}, 3 + 3 * 16 + 4, 0),
    ("resnet101d", {}, 3 + 3 * 33 + 4, 0),
    ("resnet50s", {}, 3 + 3 * 16 + 4, 0),
    ("seresnet18", {}, 1 + 2 * 8 + 3, 0),
    ("seresnet50", {}, 1 + 3 * 16 + 4, 0),
    ("seresnext50_32x4d", {}, 1 + 3 * 16 + 4, 0),
    ("ecaresnet50d", {}, 3 + 3 * 16 + 4, 0),
    ("resnet18", {"blur_pool": True}, 1 + 2 * 8 + 3, 0),
    ("resnet18", {"head": "mlp", "dropout": 0.5}, 1 + 2 * 8 + 3, 0),
    ("cifar_resnet18", {}, 1 + 2 * 8 + 3, 0),
    ("cifar_resnet34", {}, 1 + 2 * 16 + 3, 0),
    ("cifar_resnet50", {}, 1 + 3 * 16 + 4, 0),
    # stem + 3 per bottleneck + 4 projections
    *((f"regnet_x_{size}", {}, 5 + 3 * depth, 0) for size, depth in REGNET_X_DEPTHS.items()),
    *((f"regnet_y_{size}", {}, 5 + 3 * depth, 0) for size, depth in REGNET_Y_DEPTHS.items()),
    # stem + 2 per block + 4 projections + the last; the norm that begins a block reads the stream,
    # and the one after the last block too
    ("iresnet18", {}, 1 + 2 * 8 + 4 + 1, 8 + 1),
    ("iresnet34", {}, 1 + 2 * 16 + 4 + 1, 16 + 1),
    ("iresnet50", {}, 1 + 2 * 24 + 4 + 1, 24 + 1),
    ("iresnet100", {}, 1 + 2 * 49 + 4 + 1, 49 + 1),
    ("r3d_18", {}, 1 + 2 * 8 + 3, 0),
    ("mc3_18", {}, 1 + 2 * 8 + 3, 0),
    ("r2plus1d_18", {}, 2 + 4 * 8 + 3, 0),
    ("resnet1d18", {}, 1 + 2 * 8 + 3, 0),
    ("resnet1d34", {}, 1 + 2 * 16 + 3, 0),
    # 6n + 2 layers: stem + 2 per block, 3n blocks
    ("cifar_resnet20", {"shortcut": "A"}, 1 + 2 * 9, 0),
    ("cifar_resnet20", {"shortcut": "B"}, 1 + 2 * 9 + 2, 0),
    ("cifar_resnet20", {"shortcut": "C"}, 1 + 2 * 9 + 9, 0),
    ("cifar_resnet20", {"norm": "layer"}, 0, 0),
    ("cifar_resnet32", {}, 1 + 2 * 15, 0),
    ("cifar_resnet44", {}, 1 + 2 * 21, 0),
    ("cifar_resnet56", {}, 1 + 2 * 27, 0),
    ("cifar_resnet110", {}, 1 + 2 * 54, 0),
    ("cifar_plain20", {}, 1 + 2 * 9, 0),
    ("cifar_plain32", {}, 1 + 2 * 15, 0),
    ("cifar_plain44", {}, 1 + 2 * 21, 0),
    ("cifar_plain56", {}, 1 + 2 * 27, 0),
    ("cifar_plain110", {}, 1 + 2 * 54, 0),
    # Each block's second BatchNorm folds into its first convolution, and the very first BatchNorm
    # into the stem, as it comes before the paths part (He et al. 2016, appendix); every other reads
    # the residual stream, the one before the pooling too.
    ("cifar_preact_resnet20", {}, 9 + 1, 9),
    ("cifar_preact_resnet32", {}, 15 + 1, 15),
    ("cifar_preact_resnet44", {}, 21 + 1, 21),
    ("cifar_preact_resnet56", {}, 27 + 1, 27),
    ("cifar_preact_resnet110", {}, 54 + 1, 54),
    # stem + 2 per block; its shortcuts have none
    ("resnet8_tiny", {}, 1 + 2 * 3, 0),
    # one BatchNorm fewer than hidden layers
    ("residual_mlp", {"block": "post"}, 5, 0),
    ("residual_mlp", {"block": "post", "hidden_layers": 9, "width": 30}, 8, 0),
    ("residual_mlp", {"block": "pre"}, 0, 5),
    ("residual_mlp", {"block": "post", "norm": "layer"}, 0, 0),
    ("residual_mlp", {"block": "pre", "norm": "layer"}, 0, 0),
]

# The same blocks again, only more of them, or wider; or what takes seconds.
SLOW = (
    *("resnet34", "32x4d", "32x8d", "64x4d", "resnet101", "resnet152", "_2", "32", "44", "56"),
    *("110", "18d", "34d", "50d", "101d", "50s", "seresnet50", "cifar_resnet18"),
    *("cifar_resnet50", "mf", "gf", "iresnet18", "iresnet50", "iresnet100", "_18", "1d34"),
)
NUM_CLASSES = 10


def parameters(arch, options, num_folded, num_refused):
    marks = [pytest.mark.slow] if arch.endswith(SLOW) or "blur_pool" in options else []
    name = "-".join([arch, *(f"{key}={value}" for key, value in options.items())])
    return pytest.param(arch, options, num_folded, num_refused, id=name, marks=marks)


def trained_one_step(spec: ModelSpec) -> tuple[torch.nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    network = build_network(spec)
    shape = input_shape(spec)
    # The same layers, a fraction of the time.
    shape = {
        (3, 224, 224): (3, 64, 64),
        (3, 16, 112, 112): (3, 4, 16, 16),
        (12, 1000): (12, 64),
    }.get(shape, shape)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    loss = F.cross_entropy(network(torch.randn(4, *shape)), torch.arange(4) % NUM_CLASSES)
    assert torch.isfinite(loss)
    before = [p.detach().clone() for p in network.parameters()]
    loss.backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    calibrate(network, shape)
    return network.eval(), shape


def calibrate(network: torch.nn.Module, shape: tuple[int, ...]) -> None:
    """Give the BatchNorms the statistics of one batch.

    Their averages are 9/10 initial values after one step; through the 109 layers of a plain network
    without shortcuts, the mismatch grows past the range of float32.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(16, *shape))


def test_every_architecture_has_a_case():
    assert {arch for arch, *_ in CASES} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("arch", "options", "num_folded", "num_refused"), [parameters(*case) for case in CASES]
)
def test_trains_folds_exports_and_verifies(arch, options, num_folded, num_refused, tmp_path):
    spec = ModelSpec(arch=arch, num_classes=NUM_CLASSES, options=options)
    network, shape = trained_one_step(spec)
    source = SourceModel(module=network, input_shape=shape, description=arch, info=None)
    report = export_onnx(source, ExportSpec(), tmp_path / "model.onnx")
    assert (len(report.fold.folded), len(report.fold.refused)) == (num_folded, num_refused)
    assert all(site.max_ulp <= 0.5 for site in report.fold.folded)
    assert report.verification.passed, report.verification.verdicts[0].comparison.reasons
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.parametrize("options", [{"block": "pre"}])
def test_the_pre_activation_mlp_says_why_nothing_folds(options):
    network, shape = trained_one_step(
        ModelSpec(arch="residual_mlp", num_classes=NUM_CLASSES, options=options)
    )
    report = fold_batchnorm(network, torch.randn(2, *shape)).report
    assert report.folded == ()
    assert all("it is the residual stream" in refusal.reason for refusal in report.refused)


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet18", {}),
        ("cifar_resnet20", {"shortcut": "A"}),
        ("cifar_resnet20", {"shortcut": "C"}),
        ("cifar_plain20", {}),
        ("resnet8_tiny", {}),
        ("residual_mlp", {"block": "post"}),
    ],
)
def test_folded_weights_load_into_the_network_built_without_norms(arch, options):
    spec = ModelSpec(arch=arch, num_classes=NUM_CLASSES, options=options)
    network, shape = trained_one_step(spec)
    x = torch.randn(3, *shape)
    folded = fold_batchnorm(network, x)
    without = build_network(dataclasses.replace(spec, options={**options, "norm": "none"})).eval()
    without.load_state_dict(folded.module.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(without(x), folded.module(x))


def test_partly_folded_weights_load_into_the_network_fitted_for_them():
    spec = ModelSpec(arch="cifar_preact_resnet20", num_classes=NUM_CLASSES)
    network, shape = trained_one_step(spec)
    x = torch.randn(3, *shape)
    folded = fold_batchnorm(network, x)
    fitted = build_network(spec).eval()
    fit_for_folded(fitted, folded.report.folded)
    missing, unexpected = fitted.load_state_dict(folded.module.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.endswith("num_batches_tracked") for name in missing)
    with torch.no_grad():
        assert torch.equal(fitted(x), folded.module(x))
