"""Another ONNX file as the reference: evaluated in float64, without torch.

The yardstick of float32's noise is then the runtime itself, on that file, with every optimisation
off: it errs as PyTorch does (R between 0.9 and 1.1 over 11 networks).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.float64 import float64_evaluator, to_float64
from resdeploy.graph.onnx_file import fed_inputs, load_onnx
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.session import batches
from resdeploy.verify.certify import Reference
from resdeploy.verify.golden_file import Golden

__all__ = ["load_reference"]

# Runs a serialised model on inputs (N, ...), for any batch size; returns outputs (N, K).
RunRows = Callable[[bytes, Array], Array]

_SEED = 0


def load_reference(
    path: Path,
    *,
    num_inputs: int,
    run_rows: RunRows,
    given: tuple[Array, str] | None = None,
) -> tuple[Golden, Reference]:
    """Return the outputs of the model in `path`, and its graph.

    Args:
        path: an ONNX file with one input of known shape, but for its batch: float32, or pixels.
        num_inputs: how many seeded inputs, where none are given.
        run_rows: computes its outputs in float32, without optimisations.
        given: inputs (N, ...) float32 to take instead, and their description.

    Raises:
        ResdeployError: the file is missing, is no ONNX model or has other inputs.
        UnsupportedModelError: it has operators that cannot be computed in float64.
    """
    model = load_onnx(path)
    name, fixed_batch, shape, takes_pixels = _only_input(model, path)
    random = np.random.default_rng(_SEED)
    inputs: Array
    if given is None and takes_pixels:
        inputs = random.integers(0, 256, (num_inputs, *shape), dtype=np.uint8)
        description = f"{num_inputs} seeded images"
    elif given is None:
        inputs = random.standard_normal((num_inputs, *shape), dtype=np.float32)
        description = f"{num_inputs} seeded normal inputs"
    else:
        inputs, description = given
        if list(inputs.shape[1:]) != shape:
            raise ResdeployError(
                f"The inputs have shape {inputs.shape[1:]}; the reference takes {tuple(shape)}.",
                where=description,
            )
    doubled = to_float64(model)
    evaluate = float64_evaluator(doubled)
    reference_NK = batches.run_rows(
        lambda batch: (y.astype(np.float64) for y in evaluate({name: batch}).values()),
        inputs,
        fixed=fixed_batch,
    )
    own_NK = run_rows(bytes(model.SerializeToString()), inputs)
    golden = Golden(
        inputs=inputs,
        reference=reference_NK,
        noise_l2=np.linalg.norm(own_NK - reference_NK, axis=1),
        labels=None,
        info=GoldenInfo(
            source=f"{path.name}, in float64",
            inputs=description,
            num_inputs=len(inputs),
        ),
    )
    folded = ir.from_proto(doubled)
    fold_batchnorm(folded)
    return golden, Reference(model=ir.to_proto(folded), bias_magnitudes={}, is_exact=False)


def _only_input(model: onnx.ModelProto, path: Path) -> tuple[str, int | None, list[int], bool]:
    """Return the input's name, its batch size if fixed, a sample's shape, and whether of pixels."""
    inputs = fed_inputs(model)
    if len(inputs) != 1:
        raise ResdeployError(
            f"The reference has {len(inputs)} inputs; verify knows models of one.", where=str(path)
        )
    kind = inputs[0].type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    shape = [size for size in sizes[1:] if size is not None]
    takes_pixels = kind.elem_type == onnx.TensorProto.UINT8
    is_known = takes_pixels or kind.elem_type == onnx.TensorProto.FLOAT
    if len(shape) != len(sizes) - 1 or not is_known:
        raise UnsupportedModelError(
            f"The input {inputs[0].name!r} of the reference is not float32, or pixels, of a known "
            "shape.",
            where=str(path),
            fix="export it with fixed sizes but for the batch, or verify against the checkpoint",
        )
    return inputs[0].name, sizes[0], shape, takes_pixels
