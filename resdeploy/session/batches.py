"""Batches of samples in the size of a model, and its outputs side by side.

N samples, K outputs of one sample.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BATCH_SIZE", "padded_batches", "run_rows"]

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


def run_rows(
    run: Callable[[NDArray[Any]], Iterable[NDArray[Any]]],
    inputs: NDArray[Any],
    *,
    fixed: int | None = None,
    size: int = BATCH_SIZE,
) -> NDArray[Any]:
    """Return the outputs of `run`, which takes a batch, for `inputs` (N, ...) as (N, K).

    Several outputs lie side by side in K. For `fixed` and `size` see `padded_batches`.
    """
    rows = []
    for batch, count in padded_batches(inputs, fixed=fixed, size=size):
        columns = [output.reshape(len(batch), -1) for output in run(batch)]
        rows.append(np.concatenate(columns, axis=1)[:count])
    return np.concatenate(rows)
