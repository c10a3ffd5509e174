"""A network that takes the pixels themselves: its preprocessing made part of it, exactly.

Resizing and cutting stay outside: what is embedded begins at an image of the network's size.

    x = (pixels - centre) * scale       centre = divisor * mean        scale = 1 / (divisor * std)

In the exported graph the scale is in the weights of the first layer, composed with whatever else
was folded there and rounded once. The centre is taken off before that layer, not folded into its
bias: a convolution pads x with zeros, which stand for pixels of the value `centre`, so that folded
into the bias it would be wrong along the border.
"""

import dataclasses

import numpy as np
import torch
from torch import nn

from resdeploy.data.preprocess import centre_and_scale, preprocess_batch
from resdeploy.errors import ResdeployError
from resdeploy.export.source import SourceModel
from resdeploy.schema.recipes import Preprocess

__all__ = ["EmbeddedNetwork", "embed_preprocess", "input_roundings"]


class EmbeddedNetwork(nn.Module):
    """`network` behind the normalisation of `preprocess`, in whatever type its input has."""

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        self.preprocess = preprocess

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the outputs for pixels (N, H, W, C), as whole numbers in a floating type."""
        x = pixels.permute(0, 3, 1, 2).contiguous()
        spec = self.preprocess
        divisor, mean, std = (
            # From float64: in a float64 network they are as exact as they were written. Tensors,
            # as torch would multiply by the reciprocal of a number.
            torch.tensor(values, dtype=torch.float64).to(x.dtype).view(-1, 1, 1)
            for values in ((spec.divisor,), spec.mean, spec.std)
        )
        outputs: torch.Tensor = self.network((x / divisor - mean) / std)
        return outputs


def embed_preprocess(source: SourceModel) -> SourceModel:
    """Return `source` as a model of pixels, uint8 (N, H, W, C).

    Raises:
        ResdeployError: its preprocessing is not known, or is not one of images.
    """
    preprocess = source.info.preprocess if source.info is not None else None
    if source.info is None or preprocess is None:
        raise ResdeployError(
            "How samples become inputs of this model is not known: there is nothing to embed.",
            where=source.description,
            fix="name a recipe whose preprocessing applies, with --recipe",
        )
    if preprocess.color == "none" or preprocess.input_shape != source.input_shape:
        raise ResdeployError(
            f"The preprocessing makes samples of shape {preprocess.input_shape}, the model takes "
            f"{source.input_shape}: only that of images can be embedded.",
            where=source.description,
        )
    channels, height, width = preprocess.input_shape
    embedded = dataclasses.replace(preprocess, embedded=True)
    return SourceModel(
        module=EmbeddedNetwork(source.module, preprocess).eval(),
        input_shape=(height, width, channels),
        description=source.description,
        info=dataclasses.replace(source.info, preprocess=embedded),
    )


def input_roundings(network: EmbeddedNetwork, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the network inside reads, float32, and the variance of its rounding in u^2.

    The centre and the difference are each rounded once: u^2/3 (centre^2 + (pixels - centre)^2), in
    units of the scaled value.
    """
    inputs = preprocess_batch(pixels, network.preprocess)
    centre_C, scale_C = centre_and_scale(network.preprocess)
    shift_C11 = (centre_C * scale_C).astype(np.float32).reshape(-1, 1, 1)
    return inputs, (np.square(inputs) + np.square(shift_C11)) / 3
