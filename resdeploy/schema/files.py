"""Files, tensors and trained models, as every stage names them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from resdeploy.schema.codec import Record, record

__all__ = [
    *("CHECKPOINT_NAME", "CHECKPOINT_SUFFIXES", "MANIFEST"),
    *("IMAGE_SIDES", "FileInfo", "InputShape", "InputSpec", "SourceSpec", "TensorSpec"),
    *("UsualPreprocess", "Verdict", "inputs_of", "numpy_name", "stated_inputs"),
]

# In a run directory, and in a bundle, the file that says what it is.
CHECKPOINT_NAME = "checkpoint.safetensors"
MANIFEST = "manifest.json"
# Of weights, and so of no ONNX file, whatever it holds; a file with another name may be one.
CHECKPOINT_SUFFIXES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".safetensors", ".tar", ".th")

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
class InputSpec(Record):
    """An input of a trained model: its parameter of `forward`, and one sample of it.

    `name` is "" for the next parameter. Seeded integers are drawn below `num_values`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    num_values: int = 2


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
    or makes a trained torch module, whose samples are of `input_shape`, or are of several `inputs`.

    Attributes:
        weights: of several sets in the file, the one that is meant: "raw", "ema", or its prefix;
            None for the averaged ones of timm's and torchvision's training scripts.
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
    inputs: tuple[InputSpec, ...] = ()
    recipe: str | None = None
    weights: str | None = None
    preprocess_as: UsualPreprocess | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None
    crop: tuple[int, ...] = ()
    labels: str | None = None


# The axes of images (N, C, H, W) that an export may leave open.
IMAGE_SIDES = {"height": 2, "width": 3}

# Of one sample; of several inputs by their names in `forward`; or inputs, which have a type.
InputShape = Sequence[int] | Mapping[str, Sequence[int]] | Sequence[InputSpec]


def inputs_of(shape: InputShape | None) -> tuple[InputSpec, ...]:
    """Return the inputs that a shape states, () for None; one without a name is the next."""
    if not shape:
        return ()
    if isinstance(shape, Mapping):
        return tuple(InputSpec(name=name, shape=tuple(sizes)) for name, sizes in shape.items())
    inputs = tuple(one for one in shape if isinstance(one, InputSpec))
    return inputs or (InputSpec(name="", shape=tuple(n for n in shape if isinstance(n, int))),)


def stated_inputs(shape: InputShape | None) -> dict[str, Any]:
    """Return the fields of a `SourceSpec` for its inputs: a plain shape, or inputs by name."""
    inputs = inputs_of(shape)
    if not inputs:
        return {}
    if inputs == (InputSpec(name="", shape=inputs[0].shape),):
        return {"input_shape": inputs[0].shape}
    return {"inputs": inputs}
