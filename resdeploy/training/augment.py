"""Random changes to training samples, on whole batches in tensors.

Shapes: N samples, C channels, H rows, W columns, F features of a vector.

Images (N, C, H, W):   shift, flip, rotate, zoom, noise.
Vectors (N, F):        shift along the axis, the end value repeated; noise. The rest is refused.

A shift alone moves whole pixels and copies them exactly. Together with a rotation or a zoom it is
one affine map with bilinear sampling: interpolated once, not three times.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from resdeploy.errors import ResdeployError
from resdeploy.schema.recipes import AugmentSpec

__all__ = ["augment_batch", "check_augment"]


def check_augment(spec: AugmentSpec, *, sample_ndim: int) -> None:
    """Check that `spec` can be applied to samples with `sample_ndim` axes: 3 images, 1 vectors.

    Raises:
        ResdeployError: a value is out of range, or has no meaning for vectors.
    """
    for name in ("shift_px", "rotate_degrees", "scale", "noise_std"):
        value = getattr(spec, name)
        if not (math.isfinite(value) and value >= 0):
            raise ResdeployError(
                f"{name} must be zero or more; it is {value}.", where="data.augment"
            )
    if spec.scale >= 1:
        raise ResdeployError(
            f"scale = {spec.scale} would shrink images to nothing.",
            where="data.augment.scale",
            fix="zoom is drawn from [1 - scale, 1 + scale]; give less than 1",
        )
    if sample_ndim == 1 and (spec.horizontal_flip or spec.rotate_degrees or spec.scale):
        raise ResdeployError(
            "horizontal_flip, rotate_degrees and scale are for images; these samples are vectors.",
            where="data.augment",
            fix="use shift_px and noise_std",
        )


def augment_batch(
    x: Tensor, spec: AugmentSpec, generator: torch.Generator, *, fill: Sequence[float] = (0.0,)
) -> Tensor:
    """Return a changed copy of a batch, or `x` itself for an empty spec.

    `x` is (N, C, H, W) or (N, F), on any device. `generator` is of the CPU and the only source of
    randomness, so that a run does not depend on the device it draws on. `fill` is the value beyond
    the border of an image, per channel or one for all, in units of the input: for example that of
    a black pixel after normalisation.

    Raises:
        ResdeployError: `spec` does not suit the samples.
    """
    check_augment(spec, sample_ndim=x.ndim - 1)
    border = torch.tensor(fill, dtype=x.dtype, device=x.device).reshape(1, -1, 1, 1)
    if x.ndim == 2:
        x = _shift_vectors(x, spec.shift_px, generator) if spec.shift_px else x
    elif spec.rotate_degrees or spec.scale:
        x = _warp(x, spec, generator, border)
    elif spec.shift_px:
        x = _shift_images(x, spec.shift_px, generator, border)
    if spec.horizontal_flip:
        flipped = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(flipped.to(x.device)[:, None, None, None], x.flip(3), x)
    if spec.noise_std:
        x = x + spec.noise_std * torch.randn(x.shape, generator=generator).to(x)
    return x


def _draw_shift(x: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Return one whole shift per sample, (N, 1), from -limit to limit."""
    return torch.randint(-limit, limit + 1, (len(x), 1), generator=generator)


def _shift_vectors(x: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    source_NF = torch.arange(x.shape[1]) + _draw_shift(x, limit, generator)
    return x.gather(1, source_NF.clamp(0, x.shape[1] - 1).to(x.device))


def _shift_images(x: Tensor, limit: int, generator: torch.Generator, fill: Tensor) -> Tensor:
    height, width = x.shape[2:]
    padded = fill.expand(*x.shape[:2], height + 2 * limit, width + 2 * limit).clone()
    padded[:, :, limit : limit + height, limit : limit + width] = x
    rows_NH = torch.arange(height) + limit + _draw_shift(x, limit, generator)
    columns_NW = torch.arange(width) + limit + _draw_shift(x, limit, generator)
    samples = torch.arange(len(x), device=x.device)[:, None, None]
    shifted_NHWC = padded.permute(0, 2, 3, 1)[
        samples, rows_NH.to(x.device)[:, :, None], columns_NW.to(x.device)[:, None, :]
    ]
    return shifted_NHWC.permute(0, 3, 1, 2).contiguous()


def _warp(x: Tensor, spec: AugmentSpec, generator: torch.Generator, fill: Tensor) -> Tensor:
    """Rotate, zoom and shift about the centre: output pixel p shows the input at R p / zoom - t."""
    num_samples, _, height, width = x.shape
    angle = math.radians(spec.rotate_degrees) * _symmetric(num_samples, generator)
    zoom = 1 + spec.scale * _symmetric(num_samples, generator)
    shift_x = _draw_shift(x, spec.shift_px, generator)[:, 0]
    shift_y = _draw_shift(x, spec.shift_px, generator)[:, 0]
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # affine_grid counts from -1 to 1 along either side, so a turn mixes two units of length.
    first = (cos, -sin * height / width, -2 * shift_x / width)
    second = (sin * width / height, cos, -2 * shift_y / height)
    theta_N23 = torch.stack((*first, *second), dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(theta_N23.to(x), list(x.shape), align_corners=False)
    # Beyond the border grid_sample knows only zeros.
    warped = F.grid_sample(x - fill, grid, padding_mode="zeros", align_corners=False)
    return warped + fill


def _symmetric(num_samples: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(num_samples, generator=generator) - 1
