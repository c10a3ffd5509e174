"""The names of the architectures, for a command to judge before torch is loaded.

`resdeploy.networks.ARCHITECTURES` is what they stand for; a test holds the two together.
"""

from resdeploy.errors import ResdeployError
from resdeploy.near import did_you_mean

__all__ = ["ARCHITECTURE_NAMES", "unknown_architecture"]

ARCHITECTURE_NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("wide_resnet50_2", "resnext50_32x4d", "resnet18_layernorm"),
    *("cifar_resnet20", "cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet110"),
    *("cifar_plain20", "cifar_plain32", "cifar_plain44", "cifar_plain56", "cifar_plain110"),
    *("cifar_preact_resnet20", "cifar_preact_resnet32", "cifar_preact_resnet44"),
    *("cifar_preact_resnet56", "cifar_preact_resnet110"),
    *("resnet8_tiny", "residual_mlp"),
)


def unknown_architecture(name: str) -> ResdeployError:
    """Return the refusal of a name that is none, with those that are near, or all."""
    otherwise = f"use one of {', '.join(ARCHITECTURE_NAMES)}"
    fix = did_you_mean(name, ARCHITECTURE_NAMES, otherwise=otherwise)
    return ResdeployError(f"There is no architecture {name!r}.", where=f"--arch {name}", fix=fix)
