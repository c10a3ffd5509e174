"""Another ONNX file as the reference: evaluated in float64, without torch.

The yardstick of float32's noise is then the runtime itself, on that file, with every optimisation
off: it errs as PyTorch does (R between 0.9 and 1.1 over 11 networks). Where the two compute an
operator in two ways, their distance would be no noise, and the reference is refused.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from resdeploy.data.input_kinds import KINDS, InputKind
from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.float64 import Evaluate, float64_evaluator, to_float64
from resdeploy.graph.onnx_file import OnnxFile, fed_inputs, read_onnx
from resdeploy.schema.files import numpy_name
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.session.batches import run_outputs
from resdeploy.verify.certify import JUDGED_METADATA, Reference
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.named_outputs import golden_from_outputs
from resdeploy.verify.reference_agreement import refuse_disagreement

__all__ = ["load_reference"]


def load_reference(
    path: Path,
    *,
    num_inputs: int,
    open_model: Callable[[bytes], Evaluate],
    given: tuple[Array, str] | None = None,
) -> tuple[Golden, Reference]:
    """Return the outputs of the model in `path`, and its graph.

    Args:
        path: an ONNX file with one input of known shape, but for its batch: float32, or pixels.
        num_inputs: how many seeded inputs, where none are given.
        open_model: opens a serialised model in the runtime, in float32, without optimisations.
        given: inputs (N, ...) float32 to take instead, and their description.

    Raises:
        ResdeployError: the file is missing, is no ONNX model or has other inputs.
        UnsupportedModelError: it has operators that cannot be computed in float64, or that the
            runtime computes otherwise.
    """
    file = read_onnx(path)
    model = file.model
    name, fixed_batch, shape, kind = _only_input(model, path)
    inputs, description = given or kind.seeded((num_inputs, *shape))
    if list(inputs.shape[1:]) != shape:
        raise ResdeployError(
            f"The inputs have shape {inputs.shape[1:]}; the reference takes {tuple(shape)}.",
            where=description,
        )
    doubled = to_float64(model)
    evaluate = float64_evaluator(doubled)
    runtime = open_model(model.SerializeToString())

    def outputs(run: Evaluate) -> dict[str, Array]:
        return run_outputs(lambda batch: run({name: batch}), inputs, fixed=fixed_batch)

    golden = golden_from_outputs(
        inputs,
        outputs(evaluate),
        outputs(runtime),
        info=GoldenInfo(
            source=f"{path.name}, in float64{_frozen(file)}",
            inputs=description,
            num_inputs=len(inputs),
        ),
    )
    worst = np.repeat(inputs[[_furthest(golden)]], fixed_batch or 1, axis=0)
    refuse_disagreement(model, doubled, {name: worst}, open_model)
    folded = ir.from_proto(doubled)
    fold_batchnorm(folded, split_input=True)
    stated = {e.key: e.value for e in model.metadata_props if e.key in JUDGED_METADATA}
    return golden, Reference(
        model=ir.to_proto(folded), bias_magnitudes={}, is_exact=False, metadata=stated
    )


def _frozen(file: OnnxFile) -> str:
    """Return what was taken for granted about the weights, in words."""
    count = len(file.frozen)
    return f" ({count} weights among its inputs taken as constants)" if count else ""


def _furthest(golden: Golden) -> int:
    """Return the input for which the two evaluators are furthest apart, of integers first."""
    if golden.near_ties is not None and len(golden.near_ties):
        return int(golden.near_ties[0, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        distances_N = golden.noise_l2 / np.linalg.norm(golden.finite, axis=1)
    return int(np.argmax(np.nan_to_num(distances_N, posinf=np.inf)))


def _only_input(model: onnx.ModelProto, path: Path) -> tuple[str, int | None, list[int], InputKind]:
    """Return the input's name, its batch size if fixed, a sample's shape, and its kind."""
    inputs = fed_inputs(model)
    if len(inputs) != 1:
        raise ResdeployError(
            f"The reference has {len(inputs)} inputs; verify knows models of one.", where=str(path)
        )
    tensor = inputs[0].type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    shape = [size for size in sizes[1:] if size is not None]
    dtype = numpy_name(onnx.TensorProto.DataType.Name(tensor.elem_type).lower())
    kind = KINDS.get(dtype)
    if len(shape) != len(sizes) - 1 or kind is None or dtype != kind.dtypes[0]:
        raise UnsupportedModelError(
            f"The input {inputs[0].name!r} of the reference is not float32, or pixels, of a known "
            "shape.",
            where=str(path),
            fix="export it with fixed sizes but for the batch, or verify against the checkpoint",
        )
    return inputs[0].name, sizes[0], shape, kind
