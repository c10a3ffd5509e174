"""Other layouts of a bundle's model, each a folder that is whole or absent.

::

    REPOSITORY/NAME/config.pbtxt      model repository of Triton Inference Server
    REPOSITORY/NAME/labels.txt        where there are class names
    REPOSITORY/NAME/1/model.onnx

    FOLDER/model.onnx                 test data of ONNX, for its backend tests and onnx_test_runner
    FOLDER/test_data_set_0/input_0.pb, output_0.pb, …

    FOLDER/model.ort                  ONNX Runtime's own format, for builds that read nothing else
    FOLDER/model.required_operators.config    for a build with these operators only
"""

import importlib
import math
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from resdeploy.bundle.folder import write_text
from resdeploy.data.named_inputs import by_name
from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.files import atomic_directory
from resdeploy.schema.files import TensorSpec, numpy_name
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.runtime import captured_output
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.outputs import judge_outputs

__all__ = ["config_text", "write_onnx_test_data", "write_ort_format", "write_triton"]

_CONFIG = "config.pbtxt"
_LABELS = "labels.txt"
# The largest batch that Triton gathers from requests, if the model leaves it open.
_MAX_BATCH_SIZE = 32

_TYPES = {f"float{bits}": f"TYPE_FP{bits}" for bits in (16, 32, 64)}
_TYPES |= {name: f"TYPE_{name.upper()}" for name in ("int8", "uint8", "int32", "int64")}


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
        write_text(folder / _CONFIG, text)
        if labels:
            write_text(folder / _LABELS, "".join(f"{label}\n" for label in labels))
        (folder / "1").mkdir()
        shutil.copyfile(model, folder / "1" / "model.onnx")


def config_text(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, has_labels: bool
) -> str:
    """Return the text of config.pbtxt, a ModelConfig of triton-inference-server/common."""
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


def write_onnx_test_data(
    out: Path,
    *,
    model: Path,
    golden: Golden,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    force: bool = False,
) -> None:
    """Write the model and its golden inputs: one data set, or one for each whole fixed batch.

    The outputs are the float64 reference, rounded to the type of the model's outputs.

    Raises:
        UnsupportedModelError: the shape of an output is open beyond its batch; or there are fewer
            golden inputs than the model's batch takes.
        ResdeployError: `out` exists or cannot be written.
    """
    (batch,) = {tensor.shape[0] for tensor in inputs[:1]}
    num = len(golden.inputs)
    size = batch if isinstance(batch, int) else num
    if size > num:
        raise UnsupportedModelError(
            f"The model takes batches of {size}; there are {num} golden inputs.",
            fix=f"ask for --num-inputs {size} or more",
        )
    with atomic_directory(out, force=force, marker="model.onnx") as folder:
        shutil.copyfile(model, folder / "model.onnx")
        for index in range(num // size):
            rows = slice(index * size, (index + 1) * size)
            data_set = folder / f"test_data_set_{index}"
            data_set.mkdir()
            fed = by_name(golden.inputs[rows], [tensor.name for tensor in inputs])
            for k, (name, array) in enumerate(fed.items()):
                _save(data_set / f"input_{k}.pb", array, name)
            start = {True: 0, False: 0}
            for k, tensor in enumerate(outputs):
                shape, dtype = _shape_of_one(tensor), numpy_name(tensor.dtype)
                is_exact = golden.exact is not None and not dtype.startswith("float")
                columns = slice(start[is_exact], start[is_exact] + math.prod(shape))
                start[is_exact] = columns.stop
                part = golden.exact if golden.exact is not None and is_exact else golden.reference
                values = part[rows, columns].reshape(size, *shape).astype(dtype)
                _save(data_set / f"output_{k}.pb", values, tensor.name)


def _shape_of_one(tensor: TensorSpec) -> tuple[int, ...]:
    shape = tuple(d for d in tensor.shape[1:] if isinstance(d, int))
    if len(shape) != len(tensor.shape) - 1:
        raise UnsupportedModelError(
            f"The shape of the output is open: {tensor.shape}.", where=tensor.name
        )
    return shape


def _save(path: Path, array: np.ndarray, name: str) -> None:
    proto = onnx.numpy_helper.from_array(np.ascontiguousarray(array), name=name)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def write_ort_format(out: Path, *, model: Path, golden: Golden, force: bool = False) -> None:
    """Write `model` in ORT format by onnxruntime's own converter, with the operators it needs.

    Raises:
        UnsupportedModelError: it cannot be converted.
        ResdeployError: the converted model fails against `golden`; or `out` exists or cannot be
            written.
    """
    tools = importlib.import_module("onnxruntime.tools.convert_onnx_models_to_ort")
    with atomic_directory(out, force=force, marker="model.ort") as folder:
        source = folder / "model.onnx"
        shutil.copyfile(model, source)
        try:
            with captured_output(), warnings.catch_warnings():
                # The converter leaves a file to the garbage collector.
                warnings.simplefilter("ignore", ResourceWarning)
                # Not "Runtime", which leaves optimisations to a target that may lack them.
                tools.convert_onnx_models_to_ort(
                    source, output_dir=folder, optimization_styles=[tools.OptimizationStyle.Fixed]
                )
        except Exception as error:  # the converter's errors have no common base
            raise UnsupportedModelError(
                f"onnxruntime cannot convert the model: {error}",
                fix="ship the ONNX file, or use another version of onnxruntime",
            ) from error
        source.unlink()
        config = folder / "model.required_operators.config"
        # Its comment names the folders of this machine.
        lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
        text = "".join(line for line in lines if not line.startswith("#"))
        write_text(config, text)
        report = judge_outputs(folder / "model.ort", golden, [SessionSpec(provider="cpu")])
        if not report.passed:
            raise ResdeployError(
                "The model in ORT format does not compute what the golden file says.",
                where=str(out),
                fix="ship the ONNX file, or use another version of onnxruntime",
            )
