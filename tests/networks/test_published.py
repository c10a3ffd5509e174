"""Networks of torchvision, timm and insightface: names, shapes, and what they compute.

published.json says what it was made with; the tests need none of it.
"""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from architectures import each
from scrambled import scrambled

from resdeploy.networks import build_network
from resdeploy.schema.recipes import ModelSpec

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))

# The same code with other numbers.
SLOW = ("resnetblur50", "seresnext50_32x4d", "resnet50s", "iresnet18", "r2plus1d_18", "mc3_18")
# Shapes of one sample; of the others (3, 65, 65).
SHAPES = {"iresnet18": (3, 112, 112)} | dict.fromkeys(
    ("r3d_18", "mc3_18", "r2plus1d_18"), (3, 5, 17, 17)
)


# Their shapes are those of the networks without the blur, so that they have no --arch of their own.
VARIANTS = {f"resnetblur{depth}": (f"resnet{depth}", {"blur_pool": True}) for depth in (18, 50)}


def build(name, num_classes):
    arch, options = VARIANTS.get(name, (name, {}))
    return build_network(ModelSpec(arch=arch, num_classes=num_classes, options=options))


@torch.no_grad()
def fill(network):
    """Give each tensor values that depend on its name's place and its shape alone."""
    state = network.state_dict()
    for i, key in enumerate(sorted(state)):
        numbers = scrambled(state[key].shape, phase=101 * i)
        if state[key].ndim >= 2:
            state[key].copy_(math.sqrt(6 / state[key][0].numel()) * numbers)
        elif key.endswith(("running_var", "weight")):
            state[key].copy_(1 + 0.5 * numbers)
        elif state[key].ndim == 1:
            state[key].copy_(0.1 * numbers)


@pytest.mark.parametrize("name", each(PUBLISHED["state_dicts"]))
def test_names_shapes_and_number_of_parameters_are_the_published_ones(name):
    published = PUBLISHED["state_dicts"][name]
    with torch.device("meta"):
        network = build(name, published["num_classes"])
    lines = sorted(f"{key} {tuple(x.shape)}" for key, x in network.state_dict().items())
    assert sum(p.numel() for p in network.parameters()) == published["parameters"]
    assert len(lines) == published["tensors"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == published["sha256"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in PUBLISHED["logits"]
    ],
)
def test_computes_what_the_published_network_computes(name):
    network = build(name, 10).double().eval()
    fill(network)
    with torch.no_grad():
        logits_NK = network(scrambled((2, *SHAPES.get(name, (3, 65, 65))), phase=0))
    expected = torch.tensor(PUBLISHED["logits"][name], dtype=torch.float64)
    torch.testing.assert_close(logits_NK, expected, rtol=1e-9, atol=1e-9)
