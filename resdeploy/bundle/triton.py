"""A bundle's model as a model repository of Triton Inference Server.

::

    REPOSITORY/NAME/config.pbtxt
    REPOSITORY/NAME/labels.txt      where there are class names
    REPOSITORY/NAME/1/model.onnx

The fields are those of ModelConfig in model_config.proto of triton-inference-server/common.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.files import atomic_directory
from resdeploy.schema.files import TensorSpec, numpy_name

__all__ = ["config_text", "write_triton"]

_CONFIG = "config.pbtxt"
_LABELS = "labels.txt"
# The largest batch that Triton gathers from requests, if the model leaves it open.
_MAX_BATCH_SIZE = 32

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "float64": "TYPE_FP64",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}


def write_triton(
    repository: Path,
    *,
    name: str,
    model: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    labels: Sequence[str],
    force: bool = False,
) -> None:
    """Write the model as version 1 of NAME in a repository, which may hold other models.

    `model` is the ONNX file, with its weights inside; `labels` are in the order of the outputs, or
    none; `force` replaces a model of this name.

    Raises:
        ResdeployError: the name cannot be that of a folder, or the model exists there.
        UnsupportedModelError: a tensor has a type without a name in Triton.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is None:
        raise ResdeployError(
            f"{name!r} cannot be the name of a model in Triton.",
            fix="give --name letters, digits, _ . and - only",
        )
    text = config_text(name, inputs, outputs, has_labels=bool(labels))
    repository.mkdir(parents=True, exist_ok=True)
    with atomic_directory(repository / name, force=force, marker=_CONFIG) as folder:
        _write(folder / _CONFIG, text)
        if labels:
            _write(folder / _LABELS, "".join(f"{label}\n" for label in labels))
        (folder / "1").mkdir()
        shutil.copyfile(model, folder / "1" / "model.onnx")


def config_text(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, has_labels: bool
) -> str:
    """Return the text of config.pbtxt."""
    # With max_batch_size above 0, Triton puts a batch dimension before the dims that are written.
    batched = all(tensor.shape and isinstance(tensor.shape[0], str) for tensor in inputs)
    labels = f'  label_filename: "{_LABELS}"\n' if has_labels else ""
    lines = [
        f'name: "{name}"',
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {_MAX_BATCH_SIZE if batched else 0}",
        *(_tensor_text("input", tensor, batched=batched) for tensor in inputs),
        *(_tensor_text("output", tensor, batched=batched, more=labels) for tensor in outputs),
        *(["dynamic_batching { }"] if batched else []),
    ]
    return "\n".join(lines) + "\n"


def _tensor_text(role: str, tensor: TensorSpec, *, batched: bool, more: str = "") -> str:
    if (dtype := numpy_name(tensor.dtype)) not in _TYPES:
        raise UnsupportedModelError(
            f"Triton has no name for the type {tensor.dtype}.", where=tensor.name
        )
    shape = tensor.shape[1:] if batched else tensor.shape
    # -1 stands for a dimension that is open.
    dims = ", ".join(str(d) if isinstance(d, int) else "-1" for d in shape)
    quoted = tensor.name.replace("\\", "\\\\").replace('"', '\\"')
    return (
        f'{role} {{\n  name: "{quoted}"\n  data_type: {_TYPES[dtype]}\n  dims: [ {dims} ]\n{more}}}'
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
