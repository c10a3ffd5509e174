"""What holds for each architecture, or for one of each family where it costs seconds."""

import pytest
import torch
import torch.nn.functional as F
from architectures import each
from torch import nn

from resdeploy.networks import ARCHITECTURES, build_network, input_shape
from resdeploy.networks.attention import SqueezeExcite
from resdeploy.networks.norms import LayerNorm2d
from resdeploy.schema.recipes import ModelSpec

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (*BATCHNORMS, nn.LayerNorm, LayerNorm2d)

NUM_BATCHNORMS = {
    "resnet18": 20,
    "resnet34": 36,
    "resnet50": 53,
    "resnet101": 104,
    "resnet152": 155,
    "wide_resnet50_2": 53,
    "resnext50_32x4d": 53,
    "resnet18_layernorm": 0,
    "wide_resnet101_2": 104,
    "resnext101_32x8d": 104,
    "resnext101_64x4d": 104,
    # two more in a deep stem
    "resnet18d": 22,
    "resnet34d": 38,
    "resnet50d": 55,
    "resnet101d": 106,
    "resnet50s": 55,
    "ecaresnet50d": 55,
    "seresnet18": 20,
    "seresnet50": 53,
    "seresnext50_32x4d": 53,
    "cifar_resnet18": 20,
    "cifar_resnet34": 36,
    "cifar_resnet50": 53,
    # stem, 3 per block, 4 projections
    **{
        f"regnet_{name}": 1 + 3 * depth + 4
        for name, depth in {
            "x_400mf": 22,
            "x_800mf": 16,
            "x_1_6gf": 18,
            "x_3_2gf": 25,
            "x_8gf": 23,
            "x_16gf": 22,
            "x_32gf": 23,
            "y_400mf": 16,
            "y_800mf": 14,
            "y_1_6gf": 27,
            "y_3_2gf": 21,
            "y_8gf": 17,
            "y_16gf": 18,
            "y_32gf": 20,
        }.items()
    },
    # stem, 3 per block, 4 projections, one before and one after the last layer
    **{
        f"iresnet{depth}": 1 + 3 * blocks + 4 + 2
        for depth, blocks in {18: 8, 34: 16, 50: 24, 100: 49}.items()
    },
    "r3d_18": 20,
    "mc3_18": 20,
    "r2plus1d_18": 2 + 2 * 16 + 3,
    "resnet1d18": 20,
    "resnet1d34": 36,
    "resnet8_tiny": 7,
    "residual_mlp": 5,
} | {
    f"{family}{depth}": depth - 1
    for family in ("cifar_resnet", "cifar_plain", "cifar_preact_resnet")
    for depth in (20, 32, 44, 56, 110)
}

# One of each family and form, small, as (architecture, options).
FORMS = [
    pytest.param(arch, options, id=" ".join([arch, *map(str, options.values())]))
    for arch, options in [
        ("resnet18", {}),
        ("resnet18", {"norm": "none"}),
        ("resnet50", {}),
        ("resnext50_32x4d", {}),
        ("resnet18_layernorm", {}),
        ("resnet18d", {}),
        ("resnet18", {"stem": "tiered", "head": "mlp", "dropout": 0.1}),
        ("cifar_resnet18", {}),
        ("seresnet18", {}),
        ("resnet18", {"attention": "eca"}),
        ("resnet18", {"blur_pool": True}),
        ("regnet_y_400mf", {}),
        ("iresnet18", {}),
        ("r3d_18", {}),
        ("r2plus1d_18", {}),
        ("resnet1d18", {}),
        ("cifar_resnet20", {"shortcut": "A"}),
        ("cifar_resnet20", {"shortcut": "B"}),
        ("cifar_resnet20", {"shortcut": "C"}),
        ("cifar_plain20", {}),
        ("cifar_preact_resnet20", {"shortcut": "A"}),
        ("cifar_preact_resnet20", {"shortcut": "B"}),
        ("resnet8_tiny", {}),
        ("residual_mlp", {"block": "post"}),
        ("residual_mlp", {"block": "pre"}),
        ("residual_mlp", {"norm": "layer"}),
        ("residual_mlp", {"widths": "16,32,64", "widen": "projection"}),
        ("residual_mlp", {"widths": "16,32,64", "widen": "pad"}),
    ]
]

# Those with a form without norms.
FOLDABLE = [
    name
    for name, architecture in ARCHITECTURES.items()
    if "norm" in architecture.options and "preact" not in name
]


def build(arch, *, num_classes=10, **options):
    return build_network(ModelSpec(arch=arch, num_classes=num_classes, options=options))


def small_batch(arch, *, size):
    """Return inputs small enough for a slow machine, for which each network still works."""
    match ARCHITECTURES[arch].input_shape:
        case (3, 224, 224):
            return torch.randn(size, 3, 33, 33)
        case (3, 32, 32):
            return torch.randn(size, 3, 8, 8)
        case (3, 16, 112, 112):
            return torch.randn(size, 3, 4, 16, 16)
        case (12, 1000):
            return torch.randn(size, 12, 64)
        case shape:
            return torch.randn(size, *shape)


def test_there_is_an_expected_number_of_batchnorms_for_each():
    assert set(NUM_BATCHNORMS) == set(ARCHITECTURES)


@pytest.mark.parametrize("arch", each())
def test_maps_a_batch_to_logits_and_calls_each_norm_exactly_once(arch):
    with torch.device("meta"):
        network = build(arch, num_classes=7)
        x = torch.empty(2, *ARCHITECTURES[arch].input_shape)
    calls = {}
    for name, module in network.named_modules():
        if isinstance(module, NORMS):
            calls[name] = 0
            module.register_forward_hook(
                lambda _m, _i, _o, name=name: calls.update({name: calls[name] + 1})
            )
    assert network(x).shape == (2, 7)
    assert set(calls.values()) == {1}
    num_batchnorms = sum(isinstance(m, BATCHNORMS) for m in network.modules())
    assert num_batchnorms == NUM_BATCHNORMS[arch]


@pytest.mark.parametrize("arch", each())
def test_one_step_of_gradient_descent_reaches_every_parameter(arch):
    torch.manual_seed(0)
    network = build(arch)
    x, y = small_batch(arch, size=4), torch.tensor([1, 2, 3, 4])
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 0.001 * parameter.grad
        loss_after = F.cross_entropy(network(x), y)
    assert torch.isfinite(loss_after)
    assert loss_after != loss


@pytest.mark.parametrize(
    ("arch", "options"),
    # The ImageNet networks take too long here, and test_resnet.py holds them against torchvision.
    [form for form in FORMS if ARCHITECTURES[form.values[0]].input_shape in ((3, 32, 32), (40,))],
)
def test_learns_four_samples_by_heart(arch, options):
    torch.manual_seed(0)
    network = build(arch, **options)
    x, y = small_batch(arch, size=4), torch.tensor([1, 2, 3, 4])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(14):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) < 0.7 * losses[0]


@pytest.mark.parametrize("arch", each(FOLDABLE))
def test_the_folded_form_has_a_bias_for_each_norm_of_the_other(arch):
    with torch.device("meta"):
        network, folded = build(arch), build(arch, norm="none")
    assert not any(isinstance(m, NORMS) for m in folded.modules())
    layers = [m for m in folded.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(layer.bias is not None for layer in layers)
    # The other names and shapes stay, so that a fold has where to put its result.
    kept = {
        f"{name}.weight": module.weight.shape
        for name, module in network.named_modules()
        if isinstance(module, (*CONVOLUTIONS, nn.Linear))
    }
    assert {k: x.shape for k, x in folded.state_dict().items() if k.endswith("weight")} == kept


@pytest.mark.parametrize(
    "arch", each(name for name in ARCHITECTURES if not name.endswith(("8_tiny", "mlp")))
)
def test_convolutions_in_front_of_a_norm_have_no_bias(arch):
    with torch.device("meta"):
        network = build(arch)
    unnormed = {
        id(m)
        for block in network.modules()
        if isinstance(block, SqueezeExcite)
        for m in block.modules()
    }
    for name, module in network.named_modules():
        if isinstance(module, CONVOLUTIONS) and id(module) not in unnormed:
            assert module.bias is None, name


@pytest.mark.parametrize(("arch", "options"), FORMS)
def test_exports_a_functional_graph_with_a_dynamic_batch_that_computes_the_same(arch, options):
    network = build(arch, **options).eval()
    program = torch.export.export(
        network, (small_batch(arch, size=2),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    x = small_batch(arch, size=5)
    torch.testing.assert_close(program.module()(x), network(x), rtol=1e-5, atol=1e-5)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert operators & {"aten.relu.default", "aten.prelu.default"}
    # PyTorch marks an operator that writes into its input with a last underscore: aten.relu_.
    assert {name for name in operators if "_." in name} == set()


@pytest.mark.parametrize("arch", each())
def test_norm_options_reach_every_norm(arch):
    options = {"norm_eps": 0.25}
    if "norm_momentum" in ARCHITECTURES[arch].options:
        options["norm_momentum"] = 0.75
    with torch.device("meta"):
        network = build(arch, **options)
    norms = [m for m in network.modules() if isinstance(m, NORMS)]
    assert norms
    assert {norm.eps for norm in norms} == {0.25}
    assert {norm.momentum for norm in norms if isinstance(norm, BATCHNORMS)} <= {0.75}


@pytest.mark.parametrize(
    "arch", each(name for name, a in ARCHITECTURES.items() if "norm" in a.options)
)
def test_layernorm_can_take_the_place_of_batchnorm_everywhere(arch):
    with torch.device("meta"):
        network = build(arch, norm="layer")
    assert sum(isinstance(m, nn.LayerNorm) for m in network.modules()) == NUM_BATCHNORMS[arch]
    assert not any(isinstance(m, BATCHNORMS) for m in network.modules())


@pytest.mark.parametrize("arch", each())
def test_number_of_input_channels_is_an_option(arch):
    option = "in_features" if arch == "residual_mlp" else "in_channels"
    spec = ModelSpec(arch=arch, num_classes=10, options={option: 5})
    assert input_shape(spec) == (5, *ARCHITECTURES[arch].input_shape[1:])
    with torch.device("meta"):
        x = torch.empty(2, *input_shape(spec))
        assert build_network(spec)(x).shape == (2, 10)


@pytest.mark.parametrize("arch", ["cifar_resnet20", "cifar_preact_resnet20", "resnet50"])
def test_the_same_seed_gives_the_same_network(arch):
    def seeded(seed):
        torch.manual_seed(seed)
        return build(arch).state_dict()

    first, again, other = seeded(1), seeded(1), seeded(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize(("arch", "options"), FORMS)
def test_convolutions_start_with_he_initialisation(arch, options):
    torch.manual_seed(0)
    for name, module in build(arch, **options).named_modules():
        if isinstance(module, CONVOLUTIONS) and module.in_channels > 1:  # ECA's kernel is PyTorch's
            fan_out = module.weight[:, 0].numel()
            # The variance of so many normal numbers has a standard error of 2 sqrt(2 / numel).
            tolerance = 14 / module.weight.numel() ** 0.5
            assert module.weight.var().item() * fan_out == pytest.approx(2, abs=tolerance), name
