"""Fold an ONNX file: model in, folded model out, judged before it is written.

The folded model is run beside the original on a seeded input, and both are compared with what the
original computes in float64: its error may be at most `NOISE_RATIO_LIMIT` times the original's.
ONNX Runtime runs both as they stand, since by itself it would fold too.

One file holds at most 2 GB. A model that is larger, or whose weights lie in other files already, is
written with its weights in `<name>.data` beside it, and is run from the file rather than from
memory where it is too large for that.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.files import atomic_write
from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.graph.drop_unused import drop_unused
from resdeploy.graph.float64 import UnknownOperatorError, evaluate_float64, tensors_of
from resdeploy.graph.onnx_file import OnnxFile, fed_inputs, read_onnx
from resdeploy.schema.folds import FoldReport
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.verdicts import Comparison, GoldenInfo
from resdeploy.session.session import open_session
from resdeploy.verify.end_to_end import judge_end_to_end
from resdeploy.verify.golden_file import Golden

__all__ = ["fold_file"]

Array = npt.NDArray[Any]

_SEED = 0
# The image size for models that leave it open, which most networks can take.
_OPEN_SIZE = 64
# The most bytes of weights in one file: protobuf stops at 2^31 - 1, and the graph needs some too.
_SINGLE_FILE_BYTES = 2_000_000_000
# Smaller tensors, such as shapes and axes, stay in the model when the others lie beside it.
_EXTERNAL_TENSOR_BYTES = 1024


def fold_file(
    path: Path,
    out: Path | None,
    *,
    input_shape: tuple[int, ...] | None = None,
    layernorm: bool = False,
    force: bool = False,
) -> FoldReport:
    """Fold the ONNX file `path` and write it to `out`; with `out` None, only report.

    It has the bytes of the original where nothing was folded and it is a single file, and is
    written only if the folded model passes the comparison in the report. `input_shape` is that of
    one sample of the first input, where the model leaves it open.

    Raises:
        ResdeployError: `path` is missing or no ONNX model, its weights lie outside its folder, or
            are missing; `out` exists or cannot be written; the folded model is wrong, or would be
            written without a verdict.
    """
    source = _Source(read_onnx(path), path, input_shape, layernorm)
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return _fold(source, Path(folder) / path.name, must_be_judged=False)
    with atomic_write(out, force=force, companion=_data_name(out)) as temporary:
        report = _fold(source, temporary, must_be_judged=True)
        if report.comparison is not None and not report.comparison.passed:
            raise ResdeployError(
                "The folded model does not compute what the model computes; nothing was written: "
                f"{'; '.join(report.comparison.reasons)}.",
                where=str(path),
                fix="report this: it is a bug in resdeploy",
            )
    return report


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """A model file as read, and the request."""

    file: OnnxFile
    path: Path
    input_shape: tuple[int, ...] | None
    layernorm: bool

    @property
    def model(self) -> onnx.ModelProto:
        """The model, with all its weights."""
        return self.file.model


def _fold(source: _Source, target: Path, *, must_be_judged: bool) -> FoldReport:
    """Write the folded model to `target`, and return the report with its comparison."""
    too_large = _num_bytes(source.model) > _SINGLE_FILE_BYTES
    beside = too_large or source.file.is_external
    try:
        model = ir.from_proto(source.model)
        report = fold_batchnorm(model, layernorm=source.layernorm, split_input=True)
    except (ir.serde.SerdeError, TypeError, ValueError) as error:
        raise ResdeployError(
            f"The model is damaged: {str(error).splitlines()[0]}.",
            where=str(source.path),
            fix="export it again",
        ) from error
    report = dataclasses.replace(report, num_frozen=len(source.file.frozen))
    if beside:
        data = _data_name(target)
        ir.save(model, target, external_data=data, size_threshold_bytes=_EXTERNAL_TENSOR_BYTES)
    elif report.folded:
        written = ir.to_proto(model)
        drop_unused(written)
        target.write_bytes(_serialised(written))
    else:
        shutil.copyfile(source.path, target)
    if not report.folded:
        return report
    inputs, is_made_up = _seeded_inputs(source)
    try:
        expected = evaluate_float64(source.model, inputs)
    except UnknownOperatorError as error:
        if must_be_judged:
            error.fix = "see with --dry-run what would be folded; no file is written unjudged"
            raise
        return dataclasses.replace(report, not_judged=error.what)
    except UnsupportedModelError as error:
        if is_made_up:
            error.fix = "give the shape of one sample, as in --input 3,224,224"
        raise
    before = source.path if too_large else _serialised(source.model)
    after = target if beside else target.read_bytes()
    comparison = _judge(expected, before, after, inputs)
    return dataclasses.replace(report, comparison=comparison)


def _data_name(path: Path) -> str:
    """Return the name of the file of weights beside a model."""
    return f"{path.name}.data"


def _num_bytes(model: onnx.ModelProto) -> int:
    """Return the size of the weights; the model itself may be too large for `ByteSize`."""
    return sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in tensors_of(model))


def _serialised(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def _judge(
    expected: Mapping[str, Array],
    before: bytes | Path,
    after: bytes | Path,
    inputs: Mapping[str, Array],
) -> Comparison:
    """Return the verdict on the folded model; its yardstick is the error of the original."""
    as_it_stands = SessionSpec(graph_level="disabled")
    reference_NK = _side_by_side(expected, expected)
    unfolded_NK, folded_NK = (
        _side_by_side(open_session(model, as_it_stands).run(inputs), expected)
        for model in (before, after)
    )
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


def _side_by_side(outputs: Mapping[str, Array], names: Iterable[str]) -> npt.NDArray[np.float64]:
    """Return all numbers of all outputs as one row: they are judged together."""
    rows = [outputs[name].astype(np.float64).reshape(1, -1) for name in names]
    return np.concatenate(rows, axis=1)


def _seeded_inputs(source: _Source) -> tuple[dict[str, Array], bool]:
    """Return an array for each input without a value: noise, or zeros for integers.

    The flag is True if a size other than the batch was made up.
    """
    random = np.random.default_rng(_SEED)
    inputs: dict[str, Array] = {}
    is_made_up = False
    for value in fed_inputs(source.model):
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise UnsupportedModelError(
                f"The input {value.name!r} has no known shape, so the fold cannot be judged.",
                where=str(source.path),
                fix="export the model with the shapes of its inputs",
            )
        stated = _stated_sizes(value, source.input_shape if not inputs else None)
        is_made_up |= None in stated[1:]
        shape = [
            size if size is not None else (_OPEN_SIZE if axis >= 2 else 1)
            for axis, size in enumerate(stated)
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        is_float = dtype.kind == "f" or dtype.name == "bfloat16"
        made = random.normal(size=shape) if is_float else np.zeros(shape)
        inputs[value.name] = made.astype(dtype)
    return inputs, is_made_up


def _stated_sizes(value: onnx.ValueInfoProto, sample: tuple[int, ...] | None) -> list[int | None]:
    """Return the sizes of an input, None where open; `sample` is the user's shape."""
    dims = value.type.tensor_type.shape.dim
    stated = [d.dim_value if d.HasField("dim_value") else None for d in dims]
    return [stated[0], *sample] if sample is not None and len(sample) == len(dims) - 1 else stated
