"""A model with its golden inputs in the layout of ONNX's own test data.

::

    FOLDER/model.onnx
    FOLDER/test_data_set_0/input_0.pb, output_0.pb, …

ONNX's backend tests and onnx_test_runner read this layout. The outputs are the float64 reference,
rounded to the type of the model's outputs.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from resdeploy.errors import UnsupportedModelError
from resdeploy.files import atomic_directory
from resdeploy.schema.files import TensorSpec, numpy_name
from resdeploy.verify.golden_file import Golden

__all__ = ["write_onnx_test_data"]


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
            _save(data_set / "input_0.pb", golden.inputs[rows], inputs[0].name)
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
