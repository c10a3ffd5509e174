"""Batches of samples in the size of a model, and its outputs by name or side by side.

N samples, K outputs of one sample.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError

__all__ = ["BATCH_SIZE", "Run", "padded_batches", "run_outputs", "run_rows", "side_by_side"]

# Takes a batch, and returns the outputs for it by name.
Run = Callable[[NDArray[Any]], Mapping[str, Any]]

# Enough to keep the cores busy; every intermediate tensor of a batch is in memory at once.
BATCH_SIZE = 8


def padded_batches(
    inputs: NDArray[Any], *, fixed: int | None = None, size: int = BATCH_SIZE
) -> Iterator[tuple[NDArray[Any], int]]:
    """Yield `inputs` (N, ...) in batches, each with its number of samples.

    Args:
        inputs: the samples.
        fixed: the one batch size that the model takes; the last batch is padded to it with its last
            sample. None, or the 0 of an open dimension, if the model takes any.
        size: the batch size where it is open.
    """
    for start in range(0, len(inputs), fixed or size):
        batch = inputs[start : start + (fixed or size)]
        count = len(batch)
        if fixed and count < fixed:
            batch = np.concatenate([batch, np.repeat(batch[-1:], fixed - count, axis=0)])
        yield batch, count


def run_outputs(
    run: Run,
    inputs: NDArray[Any],
    *,
    fixed: int | None = None,
    size: int = BATCH_SIZE,
) -> dict[str, NDArray[Any]]:
    """Return the outputs of `run` for `inputs` (N, ...), each (N, ...), by name and in its order.

    For `fixed` and `size` see `padded_batches`.

    Raises:
        ResdeployError: an output is no array of real numbers or has no batch axis, or outputs
            change their number, shape or type from batch to batch.
    """
    found: dict[str, list[NDArray[Any]]] = {}
    for batch, count in padded_batches(inputs, fixed=fixed, size=size):
        outputs = {name: _checked(name, y, len(batch)) for name, y in run(batch).items()}
        found = found or {name: [] for name in outputs}
        if outputs.keys() != found.keys():
            raise ResdeployError("The number of the model's outputs depends on its input.")
        for name, output in outputs.items():
            rows, first = found[name], (found[name] or [output])[0]
            if (output.shape[1:], output.dtype) != (first.shape[1:], first.dtype):
                raise ResdeployError(
                    f"The output {name!r} has shape {first.shape[1:]} and type {first.dtype} for "
                    f"one sample, and {output.shape[1:]} and {output.dtype} for another.",
                    fix="make the shape of the outputs independent of the values of the input",
                )
            rows.append(output[:count])
    return {name: np.concatenate(rows) for name, rows in found.items()}


def run_rows(
    run: Run,
    inputs: NDArray[Any],
    *,
    fixed: int | None = None,
    size: int = BATCH_SIZE,
) -> NDArray[Any]:
    """Return the floating-point outputs of `run` for `inputs` (N, ...) side by side: (N, K).

    For `fixed` and `size` see `padded_batches`.

    Raises:
        ResdeployError: as `run_outputs`; or there is no such output.
    """
    outputs = run_outputs(run, inputs, fixed=fixed, size=size)
    rows_NK = side_by_side((y for y in outputs.values() if y.dtype.kind == "f"), len(inputs))
    if not rows_NK.shape[1]:
        raise ResdeployError(
            "The model has no output of floating-point numbers.",
            where=", ".join(f"{name} ({y.dtype})" for name, y in outputs.items()),
            fix="let the model return its scores too, not only decisions or class indices",
        )
    return rows_NK


def side_by_side(outputs: Iterable[NDArray[Any]], num: int) -> NDArray[Any]:
    """Return arrays (N, ...) as one of N rows."""
    rows = [y.reshape(num, math.prod(y.shape[1:])) for y in outputs]
    return np.concatenate(rows, axis=1) if rows else np.zeros((num, 0))


def _checked(name: str, output: Any, num: int) -> NDArray[Any]:
    """Return an output that has a row of real numbers for each of `num` samples."""
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiub":
        kind = output.dtype if isinstance(output, np.ndarray) else type(output).__name__
        raise ResdeployError(
            f"The output {name!r} is of type {kind}; only tensors of real numbers are judged.",
            fix="return real tensors, such as the real and the imaginary part of complex ones",
        )
    if output.shape[:1] != (num,):
        raise ResdeployError(
            f"The output {name!r} has shape {output.shape} for a batch of {num}: its first axis is "
            "not the batch.",
            fix="return one row for each sample",
        )
    return output
