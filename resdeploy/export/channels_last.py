"""A trained model that takes its images with their channels last, (N, H, W, C).

The axes are turned before the forward pass, by a hook, so that every module keeps its name. In the
file that is one Transpose.
"""

import collections
import copy
import dataclasses
from typing import Any

import torch
from torch import nn

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.source import SourceModel

__all__ = ["channels_last"]


def channels_last(source: SourceModel) -> SourceModel:
    """Return a trained model of images (C, H, W) as one of (H, W, C); the weights are shared.

    Raises:
        UnsupportedModelError: its input is no image, it has several, or leaves a side open.
    """
    if source.open_sides:
        raise UnsupportedModelError(
            f"Its {' and '.join(source.open_sides)} are to stay open, which is for images "
            "(C, H, W) only.",
            where=source.description,
            fix="leave --layout or --dynamic away",
        )
    if len(source.inputs) > 1:
        raise UnsupportedModelError(
            f"The model takes several inputs: {', '.join(source.input_names)}.",
            where=source.description,
            fix="leave --layout away, and turn the axes of those that are images in `forward`",
        )
    if len(source.input_shape) != 3:
        raise UnsupportedModelError(
            f"The model takes {source.input_shape}, which is no image: it has no channels.",
            where=source.description,
            fix="leave --layout away",
        )
    channels, height, width = source.input_shape
    module = copy.copy(source.module)
    module._forward_pre_hooks = collections.OrderedDict(module._forward_pre_hooks)
    module.register_forward_pre_hook(_turned)
    shape = (height, width, channels)
    preprocess = source.preprocess and dataclasses.replace(source.preprocess, layout="NHWC")
    return dataclasses.replace(
        source,
        module=module,
        input_shape=shape,
        info=source.info and dataclasses.replace(source.info, preprocess=preprocess),
        stated=source.stated and dataclasses.replace(source.stated, preprocess=preprocess),
        inputs=tuple(dataclasses.replace(one, shape=shape) for one in source.inputs),
    )


def _turned(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    (images,) = inputs
    return (images.permute(0, 3, 1, 2),)
