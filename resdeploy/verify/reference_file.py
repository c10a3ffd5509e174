"""Another ONNX file as the reference: evaluated in float64, without torch.

The yardstick of float32's noise is then the runtime itself, on that file, with every optimisation
off: it errs as PyTorch does (R between 0.9 and 1.1 over 11 networks). Where the two compute an
operator in two ways, their distance would be no noise, and the reference is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from resdeploy.data.input_kinds import KINDS, InputKind
from resdeploy.data.named_inputs import by_name, joined
from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.float64 import Evaluate, float64_evaluator, to_float64
from resdeploy.graph.onnx_file import fed_inputs, load_onnx
from resdeploy.schema.files import numpy_name
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.session.batches import run_outputs
from resdeploy.verify.certify import JUDGED_METADATA, Reference
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.named_outputs import golden_from_outputs
from resdeploy.verify.reference_agreement import refuse_disagreement

__all__ = ["load_reference"]

_OTHER_FLOATS = ("float16", "float64")


def load_reference(
    path: Path,
    *,
    num_inputs: int,
    open_model: Callable[[bytes], Evaluate],
    given: tuple[Array, str] | None = None,
) -> tuple[Golden, Reference]:
    """Return the outputs of the model in `path`, and its graph.

    Args:
        path: an ONNX file with inputs of known shapes, but for their batch: float32, integers, or
            pixels.
        num_inputs: how many seeded inputs, where none are given.
        open_model: opens a serialised model in the runtime, in float32, without optimisations.
        given: inputs (N, ...) float32 to take instead, and their description.

    Raises:
        ResdeployError: the file is missing, is no ONNX model or has other inputs.
        UnsupportedModelError: it has operators that cannot be computed in float64, or that the
            runtime computes otherwise.
    """
    model = load_onnx(path)
    taken = [_input(value, path) for value in fed_inputs(model)]
    names, fixed_batch = [one.name for one in taken], _fixed_batch(taken, path)
    inputs, description = given or _seeded(taken, num_inputs)
    shapes = [array.shape[1:] for array in by_name(inputs[:1], names).values()]
    if shapes != [one.shape for one in taken]:
        raise ResdeployError(
            f"The inputs have shape {_listed(shapes)}; the reference takes "
            f"{_listed([one.shape for one in taken])}.",
            where=description,
        )
    doubled = to_float64(model)
    evaluate = float64_evaluator(doubled)
    runtime = open_model(model.SerializeToString())

    def outputs(run: Evaluate) -> dict[str, Array]:
        return run_outputs(lambda batch: run(by_name(batch, names)), inputs, fixed=fixed_batch)

    golden = golden_from_outputs(
        inputs,
        outputs(evaluate),
        outputs(runtime),
        info=GoldenInfo(
            source=f"{path.name}, in float64",
            inputs=description,
            num_inputs=len(inputs),
        ),
    )
    worst = np.repeat(inputs[[_furthest(golden)]], fixed_batch or 1, axis=0)
    refuse_disagreement(model, doubled, by_name(worst, names), open_model)
    folded = ir.from_proto(doubled)
    fold_batchnorm(folded)
    stated = {e.key: e.value for e in model.metadata_props if e.key in JUDGED_METADATA}
    return golden, Reference(
        model=ir.to_proto(folded), bias_magnitudes={}, is_exact=False, metadata=stated
    )


def _furthest(golden: Golden) -> int:
    """Return the input for which the two evaluators are furthest apart, of integers first."""
    if golden.near_ties is not None and len(golden.near_ties):
        return int(golden.near_ties[0, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        distances_N = golden.noise_l2 / np.linalg.norm(golden.finite, axis=1)
    return int(np.argmax(np.nan_to_num(distances_N, posinf=np.inf)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """An input of the reference; `batch` is its batch size if fixed, `shape` of one sample."""

    name: str
    batch: int | None
    shape: tuple[int, ...]
    kind: InputKind
    dtype: str


def _input(value: onnx.ValueInfoProto, path: Path) -> _Input:
    tensor = value.type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    shape = tuple(size for size in sizes[1:] if size is not None)
    dtype = numpy_name(onnx.TensorProto.DataType.Name(tensor.elem_type).lower())
    kind = KINDS.get(dtype)
    if not sizes or len(shape) != len(sizes) - 1 or kind is None or dtype in _OTHER_FLOATS:
        raise UnsupportedModelError(
            f"The input {value.name!r} of the reference is not float32, integers or pixels, of a "
            "known shape.",
            where=str(path),
            fix="export it with fixed sizes but for the batch, or verify against the checkpoint",
        )
    return _Input(name=value.name, batch=sizes[0], shape=shape, kind=kind, dtype=dtype)


def _fixed_batch(inputs: Sequence[_Input], path: Path) -> int | None:
    sizes = {one.batch for one in inputs if one.batch is not None}
    if not inputs or len(sizes) > 1:
        raise UnsupportedModelError(
            "The reference has no inputs, or inputs of several batch sizes.",
            where=str(path),
            fix="export it with one batch for all inputs",
        )
    return next(iter(sizes), None)


def _seeded(inputs: Sequence[_Input], num: int) -> tuple[Array, str]:
    if len(inputs) == 1:
        return inputs[0].kind.seeded((num, *inputs[0].shape))
    arrays = {one.name: one.kind.draw((num, *one.shape), seed=k) for k, one in enumerate(inputs)}
    return joined(arrays), f"{num} seeded samples of {', '.join(arrays)}"


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))
