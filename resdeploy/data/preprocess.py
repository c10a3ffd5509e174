"""Preprocessing, from a raw sample to the network's input: one implementation for all machines.

Shapes: N samples, C channels, H rows, W columns, F features of a vector.

    x = (raw / divisor - mean) / std        per channel, in float32, one rounding per operation

Where that is embedded in the model, the model takes the raw pixels, as (N, H, W, C).
"""

from __future__ import annotations

import math
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.data.input_kinds import FLOATS, PIXELS, InputKind
from resdeploy.errors import ResdeployError
from resdeploy.schema.recipes import Preprocess

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    *("centre_and_scale", "check_preprocess", "fed_shape", "kind_for", "load_image"),
    "preprocess_batch",
]

_MODES = {"rgb": ("RGB", 3), "gray": ("L", 1)}


def preprocess_batch(raw: NDArray[Any], spec: Preprocess) -> NDArray[Any]:
    """Return a batch of raw samples as the model's inputs, C-contiguous.

    Kinds of `raw`:
        uint8 images, NCHW or NHWC, by agreement with `spec.input_shape`.
        floating-point images, of `spec.layout`: taken to be network inputs already, and only cast.
        vectors (N, F) of any real type: raw values, as uint8 images are.

    Returns:
        float32 (N, C, H, W), or as `spec.layout` has it, or (N, F); or, for an embedded `spec`,
        uint8 (N, H, W, C).

    Raises:
        ResdeployError: the shape or the type of `raw` is another one, the layout is ambiguous
            (C = H = W), or `spec` contradicts itself.
    """
    mean, std = _channel_values(spec)
    if raw.dtype.kind not in "uif":
        raise ResdeployError(f"Samples must be numbers; these have the type {raw.dtype}.")
    if len(spec.input_shape) == 3:
        if raw.dtype.kind == "f" and not spec.embedded:
            _check_shape(raw, spec, (fed_shape(spec),))
            return np.ascontiguousarray(raw, dtype=np.float32)
        if raw.dtype != np.uint8:
            raise ResdeployError(
                f"Raw images must be uint8; these are {raw.dtype}.",
                fix="store 0…255 as uint8"
                + ("" if spec.embedded else ", or network inputs as float32"),
            )
        raw = _as_nchw(raw, spec)
        if spec.embedded:
            return np.ascontiguousarray(raw.transpose(kind_for(spec).order))
    else:
        _check_shape(raw, spec, (spec.input_shape,))
    scaled = raw.astype(np.float32) / np.float32(spec.divisor)
    x = (scaled - mean) / std
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1) if _is_channels_last(spec) else x)


def fed_shape(spec: Preprocess) -> tuple[int, ...]:
    """Return the shape of one sample as the model takes it."""
    if not (_is_channels_last(spec) or spec.embedded):
        return spec.input_shape
    channels, height, width = spec.input_shape
    return (height, width, channels)


def _is_channels_last(spec: Preprocess) -> bool:
    return spec.layout == "NHWC" and len(spec.input_shape) == 3


def kind_for(spec: Preprocess | None) -> InputKind:
    """Return the kind of input of a model so preprocessed, inside it or before it."""
    return PIXELS if spec is not None and spec.embedded else FLOATS


def check_preprocess(spec: Preprocess) -> None:
    """Check that a preprocessing of images does not contradict itself.

    Raises:
        ResdeployError: its shape, its statistics, its colours or its sizes do not go together.
    """
    _channel_values(spec)
    if spec.input_shape[0] in (1, 3):
        _image_geometry(spec)


def centre_and_scale(spec: Preprocess) -> tuple[NDArray[np.longdouble], NDArray[np.longdouble]]:
    """Return (centre_C, scale_C) with x = (raw - centre) * scale, in extended precision.

        centre = divisor * mean        scale = 1 / (divisor * std)

    Raises:
        ResdeployError: `spec` contradicts itself.
    """
    _channel_values(spec)  # for its checks
    shape, divisor = spec.input_shape[:1], np.longdouble(spec.divisor)
    mean_C = np.broadcast_to(np.asarray(spec.mean, np.longdouble), shape)
    std_C = np.broadcast_to(np.asarray(spec.std, np.longdouble), shape)
    return np.asarray(divisor * mean_C), np.asarray(1 / (divisor * std_C))


def load_image(source: str | Path | Image.Image, spec: Preprocess) -> NDArray[np.uint8]:
    """Return an image, or its file, as a raw sample, uint8 (C, H, W), for `preprocess_batch`.

    The EXIF orientation is applied and the colours converted to `spec.color`. Then either the
    shorter side becomes `spec.resize` pixels and the centre (H, W) is cut out, or, with `resize`
    None, the image is scaled straight to (H, W). Pillow's filters, which are antialiased: the same
    pixels as torchvision's transforms on Pillow images.

    Raises:
        ResdeployError: the file is missing, damaged, not an image, or has more than 8 bits per
            channel; or `spec` is not one of images.
    """
    from PIL import Image  # noqa: PLC0415 - raw arrays need no Pillow

    where = str(source) if isinstance(source, str | Path) else "an image"
    try:
        mode, height, width = _image_geometry(spec)
        given = Image.open(source) if isinstance(source, str | Path) else nullcontext(source)
        with given as image:
            pixels = np.asarray(_resized(_converted(image, mode), spec, height, width))
    except ResdeployError as error:
        raise ResdeployError(error.what, where=error.where or where, fix=error.fix) from error
    except (
        # Errors of Pillow's decoders on damaged files.
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        OverflowError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise ResdeployError(f"The image cannot be read: {error}.", where=where) from error
    pixels_HWC = pixels.reshape(height, width, -1)
    return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))


def _channel_values(spec: Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and std as arrays that broadcast over a batch; check `spec` on the way."""
    if len(spec.input_shape) not in (1, 3) or min(spec.input_shape) < 1:
        raise ResdeployError(
            f"An input shape is (C, H, W) or (F,), not {spec.input_shape}.",
            where="preprocess.input_shape",
        )
    num_channels = spec.input_shape[0]
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) not in (1, num_channels) or not np.isfinite(values).all():
            raise ResdeployError(
                f"{name} must hold 1 or {num_channels} finite values; it is {values}.",
                where=f"preprocess.{name}",
            )
    if not (np.isfinite(spec.divisor) and spec.divisor > 0 and min(spec.std) > 0):
        raise ResdeployError("divisor and std must be finite and positive.", where="preprocess")
    shape = (-1,) + (1,) * (len(spec.input_shape) - 1)
    mean = np.asarray(spec.mean, dtype=np.float32).reshape(shape)
    return mean, np.asarray(spec.std, dtype=np.float32).reshape(shape)


def _as_nchw(raw: NDArray[Any], spec: Preprocess) -> NDArray[Any]:
    channels, height, width = spec.input_shape
    last = (height, width, channels)
    _check_shape(raw, spec, (spec.input_shape, last))
    if channels == height == width and channels > 1:
        raise ResdeployError(
            f"Images of shape {raw.shape[1:]} may be CHW or HWC: it cannot be told.",
            fix="give them as float32 network inputs",
        )
    return raw if raw.shape[1:] == spec.input_shape else raw.transpose(0, 3, 1, 2)


def _check_shape(
    raw: NDArray[Any], spec: Preprocess, accepted: tuple[tuple[int, ...], ...]
) -> None:
    if raw.shape[1:] in accepted and raw.ndim == len(spec.input_shape) + 1:
        return
    wanted = " or ".join(str(("N", *shape)).replace("'", "") for shape in accepted)
    raise ResdeployError(f"Samples of shape {raw.shape} do not fit: expected {wanted}.")


def _image_geometry(spec: Preprocess) -> tuple[str, int, int]:
    if spec.color not in _MODES or len(spec.input_shape) != 3:
        raise ResdeployError(
            f"This model takes vectors of shape {spec.input_shape}, not image files.",
            fix="give .npy or .npz, one vector a row",
        )
    mode, num_channels = _MODES[spec.color]
    channels, height, width = spec.input_shape
    if channels != num_channels:
        raise ResdeployError(
            f'color = "{spec.color}" has {num_channels} channels; input_shape says {channels}.',
            where="preprocess",
        )
    if spec.resize is not None and spec.resize < max(height, width):
        raise ResdeployError(
            f"A shorter side of {spec.resize} pixels is too small to cut {height}x{width} from.",
            where="preprocess.resize",
        )
    return mode, height, width


def _converted(image: Image.Image, mode: str) -> Image.Image:
    from PIL import ImageOps  # noqa: PLC0415 - raw arrays need no Pillow

    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        # Pillow would clip or rescale these, depending on its version.
        raise ResdeployError(
            f"The image has more than 8 bits per channel (Pillow mode {image.mode}).",
            fix="save it with 8 bits per channel",
        )
    image = ImageOps.exif_transpose(image)
    if image.mode == "P" and "transparency" in image.info:
        # Straight to RGB, Pillow warns; by way of RGBA the colours are the same.
        image = image.convert("RGBA")
    return image.convert(mode)


def _resized(image: Image.Image, spec: Preprocess, height: int, width: int) -> Image.Image:
    from PIL import Image  # noqa: PLC0415 - raw arrays need no Pillow

    resample = Image.Resampling[spec.interpolation.upper()]
    if spec.resize is None:
        return image.resize((width, height), resample)
    shorter = min(image.size)
    # As torchvision and transformers: the longer side is cut to whole pixels.
    size = int(spec.resize * image.width / shorter), int(spec.resize * image.height / shorter)
    image = image.resize(size, resample)
    corner = round if spec.crop_corner == "round" else math.floor
    left, top = corner((size[0] - width) / 2), corner((size[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))
