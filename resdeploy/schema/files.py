"""Files, tensors and trained models, as every stage names them."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.codec import Record, record

__all__ = ["FileInfo", "SourceSpec", "TensorSpec", "Verdict", "numpy_name"]

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
    architecture `arch` with its `options` as text; None with a `factory`, "package.module:NAME",
    "path/to/file.py:NAME" or a TorchScript file, that is or makes a trained torch module, whose
    samples are of `input_shape`. The preprocessing and labels of `recipe` apply.
    """

    path: str | None = None
    arch: str | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    factory: str | None = None
    input_shape: tuple[int, ...] | None = None
    recipe: str | None = None
