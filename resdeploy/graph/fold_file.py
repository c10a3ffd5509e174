"""Fold an ONNX file: model in, folded model out, judged before it is written.

The folded model is run beside the original on a seeded input, and both are compared with what the
original computes in float64: it may err at most `NOISE_RATIO_LIMIT` times as much as the original
does. What runs them is given by the caller, as this layer has no runtime.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.evidence.end_to_end import judge_end_to_end
from resdeploy.files import atomic_write
from resdeploy.golden_file import Golden
from resdeploy.graph.float64 import evaluate_float64, tensors_of
from resdeploy.graph.fold_batchnorm import fold_batchnorm
from resdeploy.schema import Comparison, FoldReport, GoldenInfo

__all__ = ["Run", "fold_file", "load_onnx"]

Array = npt.NDArray[Any]
# Runs a serialised model, its graph as it stands, on inputs by name; returns outputs by name.
Run = Callable[[bytes, Mapping[str, Array]], Mapping[str, Array]]

_SEED = 0
# The size of an image where a model leaves it open: what most networks for images can take.
_OPEN_SIZE = 64


def fold_file(
    path: Path,
    out: Path | None,
    *,
    run: Run,
    input_shape: tuple[int, ...] | None = None,
    force: bool = False,
) -> FoldReport:
    """Fold the ONNX file `path` and write it to `out`; with `out` None, only report.

    Weights in files beside the original are written into the folded file. It has the bytes of the
    original where nothing was folded.

    Args:
        path: the model.
        out: the file to write, only if the folded model passes the comparison in the report.
        run: what computes the outputs, with all graph optimisations off.
        input_shape: of one sample of the first input, where the model leaves it open.
        force: replace an existing file.

    Raises:
        ResdeployError: `path` is missing or no ONNX model, its weights lie outside its folder, or
            are missing; `out` exists or cannot be written; the folded model is not what it should
            be, or cannot be judged.
    """
    original = load_onnx(path)
    if out is None:
        return _fold(original, path, run, input_shape)[1]
    with atomic_write(out, force=force) as temporary:
        folded, report = _fold(original, path, run, input_shape)
        if report.comparison is not None and not report.comparison.passed:
            raise ResdeployError(
                "The folded model does not compute what the model computes; nothing was written: "
                f"{'; '.join(report.comparison.reasons)}.",
                where=str(path),
                fix="report this: it is a bug in resdeploy",
            )
        temporary.write_bytes(folded)
    return report


def load_onnx(path: Path) -> onnx.ModelProto:
    """Return the model in a file, with the weights that lie in files beside it.

    Raises:
        ResdeployError: the file is missing or no ONNX model, or refers to a file that is missing
            or outside its own folder.
    """
    if not path.is_file():
        raise ResdeployError("There is no such model file.", where=str(path))
    try:
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError as error:
        raise _not_onnx(path) from error
    if not model.graph.node or not model.opset_import:  # an empty or foreign file may decode
        raise _not_onnx(path)
    external = [t for t in tensors_of(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in external:
        _check_location(tensor, path)
    try:
        for tensor in external:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ResdeployError(
            f"The weights beside the model cannot be read: {error}.",
            where=str(path),
            fix="copy the model with all the files that lie beside it",
        ) from error
    return model


def _not_onnx(path: Path) -> ResdeployError:
    return ResdeployError(
        "This is not an ONNX model.", where=str(path), fix="give a .onnx file, whole and unchanged"
    )


def _check_location(tensor: onnx.TensorProto, path: Path) -> None:
    """Raise unless a tensor's file is one below the folder of the model: a model is not trusted."""
    location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
    windows = PureWindowsPath(location)  # which also splits at `/`
    folder = path.parent.resolve()
    escapes = (
        not location
        or PurePosixPath(location).is_absolute()
        or bool(windows.anchor)
        or ".." in windows.parts
        # A link may lead anywhere.
        or not (folder / location).resolve().is_relative_to(folder)
    )
    if escapes:
        raise ResdeployError(
            f"The weight {tensor.name!r} lies outside the folder of the model: {location!r}.",
            where=str(path),
            fix="use a model whose files lie beside it",
        )


def _fold(
    original: onnx.ModelProto, path: Path, run: Run, input_shape: tuple[int, ...] | None
) -> tuple[bytes, FoldReport]:
    """Return the bytes of the folded model, and the report with its comparison."""
    before = _serialised(original, path)
    try:
        model = ir.from_proto(original)
        report = fold_batchnorm(model)
    except (ir.serde.SerdeError, TypeError, ValueError) as error:
        raise ResdeployError(
            f"The model is damaged: {str(error).splitlines()[0]}.",
            where=str(path),
            fix="export it again",
        ) from error
    if not report.folded:
        return before, report
    after = _serialised(ir.to_proto(model), path)
    inputs = _seeded_inputs(original, path, input_shape)
    comparison = _judge(original, before, after, inputs, run)
    return after, dataclasses.replace(report, comparison=comparison)


def _serialised(model: onnx.ModelProto, path: Path) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise UnsupportedModelError(
            "The model is larger than the 2 GB that one ONNX file can hold.", where=str(path)
        ) from error


def _judge(
    original: onnx.ModelProto, before: bytes, after: bytes, inputs: Mapping[str, Array], run: Run
) -> Comparison:
    """Return the verdict on the folded model; its yardstick is the error of the original."""
    expected = evaluate_float64(original, inputs)
    names = list(expected)
    reference_NK = _side_by_side([expected[name] for name in names])
    found = run(before, inputs)
    unfolded_NK = _side_by_side([found[name] for name in names])
    found = run(after, inputs)
    folded_NK = _side_by_side([found[name] for name in names])
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
    golden = Golden(
        inputs=np.zeros((1, 0), np.float32),  # the inputs may be several, and of any type
        reference=reference_NK,
        noise_l2=np.linalg.norm(unfolded_NK - reference_NK, axis=1),
        labels=None,
        info=GoldenInfo(
            source="the model before the fold, in float64",
            inputs=f"normal noise, seed {_SEED}: {shapes}",
            num_inputs=1,
        ),
    )
    return judge_end_to_end(folded_NK, golden)


def _side_by_side(outputs: list[Array]) -> npt.NDArray[np.float64]:
    """Return all numbers of all outputs as one row: they are judged together."""
    return np.concatenate([output.astype(np.float64).reshape(1, -1) for output in outputs], axis=1)


def _seeded_inputs(
    model: onnx.ModelProto, path: Path, input_shape: tuple[int, ...] | None
) -> dict[str, Array]:
    """Return one input for each that must be given: noise, or zeros where it is not of floats."""
    random = np.random.default_rng(_SEED)
    initialised = {tensor.name for tensor in model.graph.initializer}
    inputs: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in initialised:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise UnsupportedModelError(
                f"The input {value.name!r} has no known shape, so the fold cannot be judged.",
                where=str(path),
                fix="export the model with the shapes of its inputs",
            )
        stated = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        if input_shape is not None and not inputs and len(input_shape) == len(stated) - 1:
            stated = [stated[0], *input_shape]
        shape = [
            size if size is not None else (_OPEN_SIZE if axis >= 2 else 1)
            for axis, size in enumerate(stated)
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        is_float = dtype.kind == "f" or dtype.name == "bfloat16"
        inputs[value.name] = (random.normal(size=shape) if is_float else np.zeros(shape)).astype(
            dtype
        )
    return inputs
