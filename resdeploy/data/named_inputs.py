"""Samples of several inputs: one array of records, (N,), with a field for each input by its name.

A model of one input without a name takes plain samples (N, ...). Either is cut, repeated and stored
along N alike, so that only what looks into a sample asks which it is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError

__all__ = [
    *("by_name", "each_input", "joined", "map_floats", "sample_dtype", "sample_shape"),
    "values_per_sample",
]


def sample_dtype(inputs: Mapping[str, tuple[str, Sequence[int]]]) -> np.dtype[Any]:
    """Return the type of records that hold inputs of these types and shapes, by name."""
    return np.dtype([(name, dtype, tuple(shape)) for name, (dtype, shape) in inputs.items()])


def joined(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return arrays (N, ...) as records (N,).

    Raises:
        ResdeployError: the arrays are not of one length, or one has no samples.
    """
    lengths = {name: y.shape[0] if y.ndim else 0 for name, y in inputs.items()}
    if len({*lengths.values()}) != 1 or 0 in lengths.values():
        raise ResdeployError(
            "The inputs are not of one length: "
            + ", ".join(f"{name} has {count} samples" for name, count in lengths.items())
            + ".",
            fix="give as many samples of each input",
        )
    kinds = {name: (y.dtype.name, y.shape[1:]) for name, y in inputs.items()}
    records = np.empty(next(iter(lengths.values())), sample_dtype(kinds))
    for name, array in inputs.items():
        records[name] = array
    return records


def each_input(samples: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the arrays (N, ...) of samples, one for each input, in their order."""
    names = samples.dtype.names
    return [samples] if names is None else [np.array(samples[n], order="C") for n in names]


def by_name(samples: NDArray[Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays of samples by the names of a model's inputs.

    By the samples' own names if the model has all of them, and by their order otherwise, as where
    another exporter chose its own.

    Raises:
        ResdeployError: there are not as many.
    """
    arrays, own = each_input(samples), samples.dtype.names or ()
    if len(arrays) != len(names):
        these = f" ({', '.join(own)})" if own else ""
        raise ResdeployError(
            f"The model has {len(names)} inputs ({', '.join(names)}); the samples have "
            f"{len(arrays)}{these}.",
            fix="give an array for each input, by name",
        )
    if {*own} == {*names}:
        found = dict(zip(own, arrays, strict=True))
        return {name: found[name] for name in names}
    return dict(zip(names, arrays, strict=True))


def map_floats(
    function: Callable[..., NDArray[Any]], samples: NDArray[Any], *others: NDArray[Any]
) -> NDArray[Any]:
    """Return samples with `function` applied to each input of floating-point numbers.

    It gets that input of `samples` and of each of `others`. It may return more or fewer samples;
    the other inputs repeat or drop theirs.
    """
    names = samples.dtype.names
    if names is None:
        return function(samples, *others)
    changed = {
        n: function(samples[n], *(one[n] for one in others))
        for n in names
        if samples[n].dtype.kind == "f"
    }
    num = len(next(iter(changed.values()), samples))
    kept = {n: np.resize(samples[n], (num, *samples[n].shape[1:])) for n in names}
    return joined({**kept, **changed})


def sample_shape(samples: NDArray[Any]) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """Return the shape of one sample, or those of its inputs by name."""
    names = samples.dtype.names
    return samples.shape[1:] if names is None else {n: samples[n].shape[1:] for n in names}


def values_per_sample(samples: NDArray[Any]) -> int:
    """Return how many numbers a sample has."""
    return sum(math.prod(array.shape[1:]) for array in each_input(samples[:1]))
