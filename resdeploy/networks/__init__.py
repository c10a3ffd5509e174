"""The architectures by name: `build_network` makes one from a `ModelSpec`.

An option of an architecture is a keyword argument of its class or factory; name, type, choices and
default are read from the signature, so that there is no second list to keep.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from resdeploy.architectures import unknown_architecture
from resdeploy.errors import ResdeployError
from resdeploy.networks.cifar_resnet import CIFAR_DEPTHS, CifarResNet
from resdeploy.networks.iresnet import IRESNET_LAYOUTS, IResNet
from resdeploy.networks.preact_resnet import CifarPreactResNet
from resdeploy.networks.regnet import REGNET_LAYOUTS, RegNet
from resdeploy.networks.residual_mlp import ResidualMlp
from resdeploy.networks.resnet import RESNET_LAYOUTS, ResNet
from resdeploy.networks.resnet1d import RESNET1D_LAYOUTS, ResNet1d
from resdeploy.networks.resnet8_tiny import ResNet8Tiny
from resdeploy.networks.video_resnet import VIDEO_LAYOUTS, VideoResNet
from resdeploy.schema.recipes import ModelSpec, Scalar

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "build_network",
    "find_architecture",
    "input_shape",
    "parse_options",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network with a name.

    Attributes:
        name: as in a recipe and on the command line.
        factory: makes it from `num_classes` and the options, by keyword; keywords that are given
            already are no options.
        input_shape: of one sample with the default options: (C, H, W) of an image, (F,) of
            features, (C, L) of a signal, (C, T, H, W) of a clip. Networks with global pooling take
            other sizes too.
    """

    name: str
    factory: partial[Any]
    input_shape: tuple[int, ...]

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the factory that are options, with type and default, by name."""
        parameters = inspect.signature(self.factory).parameters
        fixed = {"num_classes", *self.factory.keywords}
        return {name: p for name, p in parameters.items() if name not in fixed}


def build_network(spec: ModelSpec) -> nn.Module:
    """Return the network that `spec` describes, newly initialised, in training mode.

    Raises:
        ResdeployError: the architecture or an option is unknown, or an option's value is of
            another type than the option, not among its choices, or out of range.
    """
    architecture = find_architecture(spec.arch)
    if type(spec.num_classes) is not int or spec.num_classes < 0:
        raise ResdeployError(
            f"num_classes must be a whole number, not {spec.num_classes!r}.",
            where=f"architecture {spec.arch}",
            fix="0 is for a network without a head, whose outputs are features",
        )
    _check_options(architecture, spec.options)
    network: nn.Module = architecture.factory(num_classes=spec.num_classes, **spec.options)
    return network


def input_shape(spec: ModelSpec) -> tuple[int, ...]:
    """Return the shape of one sample, as `Architecture.input_shape`, with the options of `spec`.

    Raises:
        ResdeployError: as `build_network`.
    """
    architecture = find_architecture(spec.arch)
    _check_options(architecture, spec.options)
    first, *others = architecture.input_shape
    given = spec.options.get("in_channels", spec.options.get("in_features", first))
    return (int(given), *others)


def find_architecture(name: str) -> Architecture:
    """Return the architecture of that name.

    Raises:
        ResdeployError: there is none; the message has the names that are near, or all.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    raise unknown_architecture(name)


def parse_options(arch: str, texts: Mapping[str, str]) -> dict[str, Scalar]:
    """Return options given as text, as on a command line, in the types that `arch` takes.

    A text without such a value is left as it is, for `build_network` to refuse with its reason.

    Raises:
        ResdeployError: there is no such architecture.
    """
    known = find_architecture(arch).options
    return {
        name: _parse(text, known[name].annotation) if name in known else text
        for name, text in texts.items()
    }


def _parse(text: str, kind: Any) -> Scalar:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind in (int, float):
        try:
            return int(text) if kind is int else float(text)
        except ValueError:
            return text
    return text


def _check_options(architecture: Architecture, options: Mapping[str, Scalar]) -> None:
    known = architecture.options
    fix = "its options are " + ", ".join(_describe(option) for option in known.values())
    for name, value in options.items():
        if name not in known:
            raise ResdeployError(f"{architecture.name} has no option {name!r}.", fix=fix)
        if not _fits(value, known[name].annotation):
            expected = _expected(known[name].annotation)
            raise ResdeployError(
                f"The option {name} of {architecture.name} must be {expected}, not {value!r}.",
                fix=fix,
            )


def _fits(value: Scalar, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    # A bool is an int to Python, and no number to a reader.
    if kind is float:
        return type(value) in (int, float)
    # Every whole number among the options is a count: of channels, features or layers.
    return type(value) is kind and (type(value) is not int or value >= 1)


def _expected(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    names = {bool: "true or false", float: "a number", str: "a text"}
    return names.get(kind, "a whole number of at least 1")


def _describe(option: inspect.Parameter) -> str:
    return f"{option.name} ({_expected(option.annotation)}; default {option.default!r})"


def _variant(base: str, **options: Any) -> partial[Any]:
    return partial(ResNet, RESNET_LAYOUTS[base], **options)


def _by_depth(prefix: str, network: Callable[..., nn.Module]) -> dict[str, partial[Any]]:
    return {f"{prefix}{depth}": partial(network, depth) for depth in CIFAR_DEPTHS}


# ResNet-D and -S, named as in timm.
_D = {"stem": "deep", "avg_down": True}
_S = {"stem": "deep", "stem_width": 64}

# By the shape of a sample.
_FACTORIES: Mapping[tuple[int, ...], Mapping[str, partial[Any]]] = {
    (3, 224, 224): {
        **{name: partial(ResNet, layout) for name, layout in RESNET_LAYOUTS.items()},
        **{f"{name}d": _variant(name, **_D) for name in ("resnet18", "resnet34", "resnet50")},
        "resnet101d": _variant("resnet101", **_D),
        "resnet50s": _variant("resnet50", **_S),
        **{f"se{name}": _variant(name, attention="se") for name in ("resnet18", "resnet50")},
        "seresnext50_32x4d": _variant("resnext50_32x4d", attention="se"),
        "ecaresnet50d": _variant("resnet50", **_D, attention="eca"),
        **{name: partial(RegNet, layout) for name, layout in REGNET_LAYOUTS.items()},
        # LayerNorm computes its statistics from every sample, so that nothing in it folds: the
        # honest control for a fold that claims to find only what can be folded.
        "resnet18_layernorm": _variant("resnet18", norm="layer", norm_momentum=0.1),
    },
    (3, 112, 112): {name: partial(IResNet, layout) for name, layout in IRESNET_LAYOUTS.items()},
    (3, 32, 32): {
        **{
            f"cifar_resnet{depth}": _variant(f"resnet{depth}", stem="cifar")
            for depth in (18, 34, 50)
        },
        **_by_depth("cifar_resnet", partial(CifarResNet, plain=False)),
        **_by_depth(
            "cifar_plain",
            partial(CifarResNet, plain=True, shortcut="A", zero_init_last_gamma=False),
        ),
        **_by_depth("cifar_preact_resnet", CifarPreactResNet),
        "resnet8_tiny": partial(ResNet8Tiny),
    },
    (3, 16, 112, 112): {
        name: partial(VideoResNet, layout) for name, layout in VIDEO_LAYOUTS.items()
    },
    (12, 1000): {name: partial(ResNet1d, layout) for name, layout in RESNET1D_LAYOUTS.items()},
    (40,): {"residual_mlp": partial(ResidualMlp)},
}
ARCHITECTURES: Mapping[str, Architecture] = {
    name: Architecture(name=name, factory=factory, input_shape=shape)
    for shape, factories in _FACTORIES.items()
    for name, factory in factories.items()
}
