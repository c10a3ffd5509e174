"""The names of the architectures, for a command to judge before torch is loaded.

`resdeploy.networks.ARCHITECTURES` is what they stand for; a test holds the two together.
"""

from resdeploy.errors import ResdeployError
from resdeploy.near import did_you_mean

__all__ = ["ARCHITECTURE_NAMES", "unknown_architecture"]

ARCHITECTURE_NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2"),
    *("wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "resnet18d"),
    *("resnet34d", "resnet50d", "resnet101d", "resnet50s", "seresnet18", "seresnet50"),
    *("seresnext50_32x4d", "ecaresnet50d", "regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf"),
    *("regnet_x_3_2gf", "regnet_x_8gf", "regnet_x_16gf", "regnet_x_32gf", "regnet_y_400mf"),
    *("regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf", "regnet_y_8gf", "regnet_y_16gf"),
    *("regnet_y_32gf", "resnet18_layernorm", "iresnet18", "iresnet34", "iresnet50", "iresnet100"),
    *("cifar_resnet18", "cifar_resnet34", "cifar_resnet50", "cifar_resnet20", "cifar_resnet32"),
    *("cifar_resnet44", "cifar_resnet56", "cifar_resnet110", "cifar_plain20", "cifar_plain32"),
    *("cifar_plain44", "cifar_plain56", "cifar_plain110", "cifar_preact_resnet20"),
    *("cifar_preact_resnet32", "cifar_preact_resnet44", "cifar_preact_resnet56"),
    *("cifar_preact_resnet110", "resnet8_tiny", "r3d_18", "mc3_18", "r2plus1d_18", "resnet1d18"),
    *("resnet1d34", "residual_mlp"),
)


def unknown_architecture(name: str) -> ResdeployError:
    """Return the refusal of a name that is none, with those that are near, or all."""
    otherwise = f"use one of {', '.join(ARCHITECTURE_NAMES)}"
    fix = did_you_mean(name, ARCHITECTURE_NAMES, otherwise=otherwise)
    return ResdeployError(f"There is no architecture {name!r}.", where=f"--arch {name}", fix=fix)
