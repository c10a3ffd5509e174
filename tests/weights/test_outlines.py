"""The outlines by which a search chooses what to build: true, and few networks are left."""

import pytest
import torch

from resdeploy.architectures import ARCHITECTURE_NAMES
from resdeploy.networks import build_network
from resdeploy.schema.recipes import ModelSpec
from resdeploy.weights import network_search
from resdeploy.weights.network_search import find_fits, outline_of_architecture
from resdeploy.weights.outlines import known_outlines


def weights_of(arch, num_classes=10, **options):
    with torch.device("meta"):
        model = ModelSpec(arch=arch, num_classes=num_classes, options=options)
        return build_network(model).state_dict()


@pytest.fixture
def built(monkeypatch):
    """The networks that are built from now on."""
    models = []

    def build(model):
        models.append(model)
        return build_network(model)

    network_search._cached_shapes.cache_clear()
    monkeypatch.setattr(network_search, "build_network", build)
    yield models
    network_search._cached_shapes.cache_clear()


def test_every_architecture_has_an_outline():
    assert set(known_outlines()) == set(ARCHITECTURE_NAMES)


@pytest.mark.parametrize("arch", ARCHITECTURE_NAMES)
def test_an_outline_is_that_of_its_network(arch):
    assert outline_of_architecture(arch) == known_outlines()[arch], (
        "python tests/support/write_outlines.py"
    )


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "seresnet18", "regnet_x_400mf"])
@pytest.mark.parametrize("prefix", ["", "state_dict.model."])
def test_few_networks_are_built_to_find_one(arch, prefix, built):
    tensors = {f"{prefix}{name}": t for name, t in weights_of(arch, num_classes=7).items()}
    tensors[f"{prefix}criterion.weight"] = torch.ones(7)
    assert [fit.model for fit in find_fits(tensors)] == [ModelSpec(arch=arch, num_classes=7)]
    assert len(built) <= 3
    assert {model.arch for model in built} == {arch}


def test_few_networks_are_built_to_find_one_of_another_size(built):
    fits = find_fits(weights_of("resnet34", in_channels=4))
    model = ModelSpec(arch="resnet34", num_classes=10, options={"in_channels": 4})
    assert [fit.model for fit in fits] == [model]
    assert len({model.arch for model in built}) <= 4


def test_nothing_is_built_for_weights_of_something_else(built):
    assert find_fits({"features.0.weight": torch.ones(2, 2)}) == []
    assert built == []
