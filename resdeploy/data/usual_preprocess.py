"""The usual ways from a picture to a network's input, by name, and their parts one by one."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from resdeploy.data.preprocess import check_preprocess
from resdeploy.errors import ResdeployError
from resdeploy.schema.files import SourceSpec, UsualPreprocess
from resdeploy.schema.recipes import Preprocess

__all__ = ["USUAL", "asked_preprocess", "says_preprocess"]

# `imagenet`: torchvision's evaluation of its weights IMAGENET1K_V1. `cifar10`: kuangliu's
# pytorch-cifar, whose deviations are means over images. `half` brings pixels to -1…1, `unit` to
# 0…1.
USUAL: Mapping[UsualPreprocess, Preprocess] = {
    "imagenet": Preprocess(
        input_shape=(3, 224, 224),
        divisor=255,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        resize=256,
    ),
    "cifar10": Preprocess(
        input_shape=(3, 32, 32),
        divisor=255,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    "half": Preprocess(input_shape=(), divisor=255, mean=(0.5,), std=(0.5,)),
    "unit": Preprocess(input_shape=(), divisor=255),
}
_COLORS: Mapping[int, Literal["rgb", "gray"]] = {3: "rgb", 1: "gray"}


def says_preprocess(spec: SourceSpec) -> bool:
    """Test for a request that says something about preprocessing, beside a recipe."""
    return bool(spec.preprocess_as or spec.mean or spec.std or spec.resize is not None or spec.crop)


def asked_preprocess(
    spec: SourceSpec, known: Preprocess | None, input_shape: tuple[int, ...]
) -> Preprocess:
    """Return the preprocessing that `spec` asks for, on top of what is known already.

    Args:
        spec: the request; `says_preprocess` is true of it.
        known: from a recipe, or from what lies beside the weights.
        input_shape: the network's, (C, H, W).

    Raises:
        ResdeployError: the parts contradict each other, or do not say all.
    """
    base = USUAL[spec.preprocess_as] if spec.preprocess_as is not None else known
    if base is None:
        if not spec.mean or not spec.std:
            raise ResdeployError(
                "The scale of the pixels is not known.",
                fix=f"give --mean and --std, or --preprocess-as {'|'.join(USUAL)}",
            )
        base = Preprocess(input_shape=(), divisor=255)
    channels = input_shape[0]
    size = spec.crop * 2 if len(spec.crop) == 1 else spec.crop
    size = size or (spec.input_shape or base.input_shape or input_shape)[1:]
    resize = base.resize if spec.resize is None else spec.resize
    if spec.input_shape and size != spec.input_shape[1:]:
        raise ResdeployError(
            f"--crop {'x'.join(map(str, size))} is not the size that --input says.",
            fix="give one of them",
        )
    if spec.resize is None and resize is not None and size != base.input_shape[1:]:
        raise ResdeployError(
            f"The shorter side before a crop of {'x'.join(map(str, size))} is not known.",
            fix=f"give --resize; for {'x'.join(map(str, base.input_shape[1:]))} it is {resize}",
        )
    asked = dataclasses.replace(
        base,
        input_shape=(channels, *size),
        mean=spec.mean or base.mean,
        std=spec.std or base.std,
        # Statistics of 8-bit pixels are stated in their own units.
        divisor=1.0 if max((*spec.mean, *spec.std, 0.0)) > 1 else base.divisor,
        color=_COLORS.get(channels, base.color),
        resize=resize,
    )
    check_preprocess(asked)
    return asked
