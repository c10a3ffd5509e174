"""Architectures by name, and what is said when a name or an option is wrong."""

import math

import pytest
import torch
from architectures import each

from resdeploy.errors import ResdeployError
from resdeploy.networks import (
    ARCHITECTURES,
    build_network,
    find_architecture,
    input_shape,
    parse_options,
)
from resdeploy.schema.recipes import ModelSpec


def spec(arch, **options):
    return ModelSpec(arch=arch, num_classes=10, options=options)


def test_the_names_are_those_that_the_documentation_lists():
    depths = (20, 32, 44, 56, 110)
    assert set(ARCHITECTURES) == {
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("wide_resnet50_2", "wide_resnet101_2", "resnet18_layernorm"),
        *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
        *("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet50s"),
        *("seresnet18", "seresnet50", "seresnext50_32x4d", "ecaresnet50d"),
        *(f"regnet_{letter}_{size}mf" for letter in "xy" for size in (400, 800)),
        *(f"regnet_{letter}_{size}gf" for letter in "xy" for size in ("1_6", "3_2", 8, 16, 32)),
        *(f"iresnet{depth}" for depth in (18, 34, 50, 100)),
        *("cifar_resnet18", "cifar_resnet34", "cifar_resnet50"),
        *("r3d_18", "mc3_18", "r2plus1d_18", "resnet1d18", "resnet1d34"),
        *(f"cifar_resnet{depth}" for depth in depths),
        *(f"cifar_plain{depth}" for depth in depths),
        *(f"cifar_preact_resnet{depth}" for depth in depths),
        *("resnet8_tiny", "residual_mlp"),
    }


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_has_its_name_and_a_shape(arch):
    architecture = find_architecture(arch)
    assert architecture.name == arch
    assert len(architecture.input_shape) in (1, 2, 3, 4)


@pytest.mark.parametrize("arch", each())
def test_each_default_is_a_value_that_its_option_takes(arch):
    defaults = {name: option.default for name, option in ARCHITECTURES[arch].options.items()}
    with torch.device("meta"):
        explicit, implicit = build_network(spec(arch, **defaults)), build_network(spec(arch))
    assert list(explicit.state_dict()) == list(implicit.state_dict())
    assert input_shape(spec(arch, **defaults)) == ARCHITECTURES[arch].input_shape


@pytest.mark.parametrize(
    ("wrong", "near"), [("resnet5", "resnet50"), ("cifar_resnet21", "cifar_resnet20")]
)
def test_an_unknown_architecture_is_answered_with_near_names(wrong, near):
    with pytest.raises(ResdeployError, match=f"no architecture '{wrong}'") as error:
        build_network(spec(wrong))
    assert near in error.value.fix


def test_an_outlandish_architecture_is_answered_with_every_name():
    with pytest.raises(ResdeployError) as error:
        build_network(spec("xyz"))
    assert all(name in error.value.fix for name in ARCHITECTURES)


@pytest.mark.parametrize("function", [build_network, input_shape])
def test_an_unknown_option_is_answered_with_the_options_there_are(function):
    with pytest.raises(ResdeployError, match="cifar_plain20 has no option 'shortcut'") as error:
        function(spec("cifar_plain20", shortcut="A"))
    assert error.value.fix == (
        "its options are in_channels (a whole number of at least 1; default 3), "
        "width (a whole number of at least 1; default 16), "
        "norm ('batch' or 'layer' or 'none'; default 'batch'), "
        "norm_eps (a number; default 1e-05), norm_momentum (a number; default 0.1)"
    )


@pytest.mark.parametrize(
    ("arch", "option", "value", "expected"),
    [
        ("cifar_resnet20", "width", 16.0, "a whole number of at least 1, not 16.0"),
        ("cifar_resnet20", "width", True, "a whole number of at least 1, not True"),
        ("cifar_resnet20", "width", 0, "a whole number of at least 1, not 0"),
        ("cifar_resnet20", "in_channels", "3", "a whole number of at least 1, not '3'"),
        ("cifar_resnet20", "shortcut", "D", "'A' or 'B' or 'C', not 'D'"),
        ("cifar_resnet20", "shortcut", 1, "'A' or 'B' or 'C', not 1"),
        ("cifar_preact_resnet20", "shortcut", "C", "'A' or 'B', not 'C'"),
        ("resnet18", "norm", "group", "'batch' or 'layer' or 'none', not 'group'"),
        ("resnet18", "norm_eps", True, "a number, not True"),
        ("resnet18", "norm_eps", "1e-5", "a number, not '1e-5'"),
        ("resnet18", "zero_init_last_gamma", 1, "true or false, not 1"),
        ("residual_mlp", "widths", 64, "a text, not 64"),
        ("residual_mlp", "hidden_layers", -6, "a whole number of at least 1, not -6"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(arch, option, value, expected):
    with pytest.raises(ResdeployError) as error:
        build_network(spec(arch, **{option: value}))
    assert error.value.what == f"The option {option} of {arch} must be {expected}."
    assert f"{option} (" in error.value.fix


@pytest.mark.parametrize(("option", "value"), [("norm_eps", 0.0), ("norm_momentum", math.nan)])
def test_a_value_out_of_range_is_refused(option, value):
    with pytest.raises(ResdeployError, match=option):
        build_network(spec("resnet18", **{option: value}))


def test_a_whole_number_will_do_where_a_number_is_expected():
    assert build_network(spec("resnet8_tiny", norm_eps=1)).bn1.eps == 1


@pytest.mark.parametrize("num_classes", [-1, True, 10.0])
def test_refuses_a_number_of_classes_that_is_none(num_classes):
    with pytest.raises(ResdeployError, match="num_classes must be a whole number"):
        build_network(ModelSpec(arch="resnet8_tiny", num_classes=num_classes))


def test_a_network_is_built_in_training_mode():
    assert build_network(spec("resnet8_tiny")).training


def test_options_given_as_text_get_the_types_of_the_architecture():
    texts = {"width": "64", "widths": "64", "norm_eps": "1e-3", "block": "pre", "odd": "x"}
    assert parse_options("residual_mlp", texts) == {
        "width": 64,
        "widths": "64",
        "norm_eps": 1e-3,
        "block": "pre",
        "odd": "x",
    }
    assert parse_options("cifar_resnet20", {"zero_init_last_gamma": "true", "width": "wide"}) == {
        "zero_init_last_gamma": True,
        "width": "wide",
    }
