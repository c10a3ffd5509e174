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

from resdeploy.data.preprocess import centre_and_scale, kind_for, preprocess_batch
from resdeploy.errors import ResdeployError
from resdeploy.export.source import SourceModel
from resdeploy.schema.recipes import Preprocess

__all__ = ["EmbeddedNetwork", "embed_preprocess", "input_roundings", "split_preprocess"]


class EmbeddedNetwork(nn.Module):
    """`network` behind the normalisation of `preprocess`, in whatever type its input has."""

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        self.preprocess = preprocess

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the outputs for pixels as they are fed, as whole numbers in a floating type."""
        spec = self.preprocess
        x = pixels.permute(*np.argsort(kind_for(spec).order)).contiguous()
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
        ResdeployError: its preprocessing is not known, or is not one of images; or it has several
            inputs.
    """
    if len(source.inputs) > 1:
        raise ResdeployError(
            f"The model takes several inputs: {', '.join(source.input_names)}.",
            where=source.description,
            fix="leave --preprocess embed away: preprocessing is that of one image",
        )
    preprocess = source.preprocess
    if preprocess is None:
        raise ResdeployError(
            "How samples become inputs of this model is not known: there is nothing to embed.",
            where=source.description,
            fix="say it, with --preprocess-as, with --mean and --std, or with --recipe",
        )
    if preprocess.color == "none" or preprocess.input_shape != source.input_shape:
        raise ResdeployError(
            f"The preprocessing makes samples of shape {preprocess.input_shape}, the model takes "
            f"{source.input_shape}: only that of images can be embedded.",
            where=source.description,
        )
    embedded = dataclasses.replace(preprocess, embedded=True)
    return dataclasses.replace(
        source,
        module=EmbeddedNetwork(source.module, embedded).eval(),
        input_shape=tuple(embedded.input_shape[axis - 1] for axis in kind_for(embedded).order[1:]),
        info=source.info and dataclasses.replace(source.info, preprocess=embedded),
        stated=source.stated and dataclasses.replace(source.stated, preprocess=embedded),
    )


def split_preprocess(module: nn.Module) -> tuple[nn.Module, Preprocess | None]:
    """Return the network inside an `EmbeddedNetwork`, and what is before it; or the module."""
    if isinstance(module, EmbeddedNetwork):
        return module.network, module.preprocess
    return module, None


def input_roundings(pixels: np.ndarray, spec: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs of the network inside, float32, and the variance of their rounding in u^2.

    The centre and the difference are each rounded once: u^2/3 (centre^2 + (pixels - centre)^2), in
    units of the scaled value.
    """
    inputs = preprocess_batch(pixels, dataclasses.replace(spec, embedded=False))
    centre_C, scale_C = centre_and_scale(spec)
    shift_C11 = (centre_C * scale_C).astype(np.float32).reshape(-1, 1, 1)
    return inputs, (np.square(inputs) + np.square(shift_C11)) / 3
