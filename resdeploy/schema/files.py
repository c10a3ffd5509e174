"""Files, tensors and trained models, as every stage names them."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.codec import Record, record

__all__ = ["FileInfo", "SourceSpec", "TensorSpec", "UsualPreprocess", "Verdict", "numpy_name"]

UsualPreprocess = Literal["imagenet", "cifar10", "half", "unit"]

# On a model file, in one word.
Verdict = Literal["PROVED", "AGREES", "FAIL"]


def numpy_name(dtype: str) -> str:
    """Return NumPy's name of a type, from ONNX's ("float") or ONNX Runtime's ("tensor(float)")."""
    element = dtype.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(element, element)


@record
class TensorSpec(Record):
    """A model's input or output; a dimension is a number, or the name of a dynamic one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@record
class FileInfo(Record):
    """A file by content; `path` is relative to the record that names it, with `/`."""

    path: str
    sha256: str
    size_bytes: int


@record
class SourceSpec(Record):
    """The trained model that a command is given.

    `path` is a run directory, a resdeploy checkpoint, or weights from elsewhere, of the
    architecture `arch` with its `options` as text, which are found if they are not given; None
    with a `factory`, "package.module:NAME", "path/to/file.py:NAME" or a TorchScript file, that is
    or makes a trained torch module, whose samples are of `input_shape`.

    Attributes:
        weights: of several sets in the file, the one that is meant: "raw", "ema", or its prefix.
        recipe: whose preprocessing and labels apply.
        preprocess_as: a usual preprocessing, by name.
        mean: per channel, of pixels in 0…1, or in 0…255 if one is above 1; so is `std`.
        resize: the shorter side in pixels, before the crop.
        crop: height and width of what is cut out of the centre, or one number for both.
        labels: the class names: a file, a folder of class folders, or "imagenet".
    """

    path: str | None = None
    arch: str | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    factory: str | None = None
    input_shape: tuple[int, ...] | None = None
    recipe: str | None = None
    weights: str | None = None
    preprocess_as: UsualPreprocess | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None
    crop: tuple[int, ...] = ()
    labels: str | None = None
