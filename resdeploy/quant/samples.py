"""Calibration samples, read again on every pass: as many as there are, few in memory at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError
from resdeploy.graph.affine_layer import Array

__all__ = ["SampleSplit", "Samples", "batches", "memory_limit", "spread"]


# One sample in four is kept to judge by, as long as it is kept in memory; so are those that choices
# are explored with. At 224 x 224 pixels this is about 200 images and 100.
_HELD_OUT_EVERY = 4
_HELD_OUT_BYTES = 128 * 2**20
_EXPLORED_BYTES = 64 * 2**20
_MOST_HELD_OUT = 1024
_MOST_EXPLORED = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Network inputs that can be read as often as needed.

    Attributes:
        description: for the record.
        num: how many there are.
        read: yields those of the given ascending indices, one by one: float32 (C, H, W) or (F,),
            or uint8 (H, W, C) for a model that takes pixels.
    """

    description: str
    num: int
    read: Callable[[Sequence[int]], Iterator[NDArray[np.float32]]]

    @classmethod
    def of_array(cls, inputs: Array) -> "Samples":
        """Return the samples of an array (N, ...)."""
        return cls(
            description="an array",
            num=len(inputs),
            read=lambda indices: (np.asarray(inputs[i], dtype=np.float32) for i in indices),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleSplit:
    """Calibration samples, split into those to calibrate with and those to judge by.

    Attributes:
        samples: all of them.
        calibrate: the indices that ranges come from.
        explored: some of these, in memory, to choose with.
        held_out: others, in memory, to judge by.
        warnings: oddities of the samples.
    """

    samples: Samples
    calibrate: tuple[int, ...]
    explored: NDArray[np.float32]
    held_out: NDArray[np.float32]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, samples: Samples) -> "SampleSplit":
        """Split samples, evenly over their order; look at them first.

        Raises:
            ResdeployError: there are none, or one of those in memory is not finite.
        """
        if samples.num < 1:
            raise ResdeployError("There are no calibration samples.", where=samples.description)
        every = range(samples.num)
        held_out = [i for i in every if i % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1]
        calibrate = [i for i in every if i % _HELD_OUT_EVERY != _HELD_OUT_EVERY - 1]
        first = next(_checked(samples, [0]))
        judged = spread(held_out or calibrate, memory_limit(first, _HELD_OUT_BYTES, _MOST_HELD_OUT))
        explored = spread(calibrate, memory_limit(first, _EXPLORED_BYTES, _MOST_EXPLORED))
        num_held_out = len(judged) if held_out else 0
        seen, unseen = (np.stack(list(_checked(samples, some))) for some in (explored, judged))
        return cls(
            samples=samples,
            calibrate=tuple(calibrate),
            explored=seen,
            held_out=unseen,
            warnings=tuple(_oddities(samples.num, np.concatenate([seen, unseen]), num_held_out)),
        )

    def read_calibration(self) -> Iterator[NDArray[np.float32]]:
        """Yield the samples that ranges come from.

        Raises:
            ResdeployError: one of them is not finite.
        """
        return _checked(self.samples, self.calibrate)


def batches(samples: Iterator[Array], size: int) -> Iterator[Array]:
    """Yield samples in batches of at most `size`."""
    while group := list(islice(samples, size)):
        yield np.stack(group)


def spread(indices: Sequence[int], most: int) -> list[int]:
    """Return at most so many of them, evenly over their order: folders are sorted by class."""
    if len(indices) <= most:
        return list(indices)
    return [indices[i * len(indices) // most] for i in range(most)]


def memory_limit(sample: Array, num_bytes: int, most: int) -> int:
    """Return the number of samples of this size that fit, at least one and at most `most`."""
    return max(1, min(most, num_bytes // max(1, sample.nbytes)))


def _checked(samples: Samples, indices: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    shape: tuple[int, ...] | None = None
    for index, sample in zip(indices, samples.read(indices), strict=True):
        shape = shape or sample.shape
        if sample.shape != shape:
            raise ResdeployError(
                f"Calibration sample {index} has shape {sample.shape}, others {shape}.",
                where=samples.description,
            )
        if not np.isfinite(sample).all():
            raise ResdeployError(
                f"Calibration sample {index} holds NaN or infinity.",
                where=samples.description,
                fix="remove it, or find out how it came to be",
            )
        yield sample


def _oddities(num: int, seen: Array, num_held_out: int) -> Iterator[str]:
    if not num_held_out:
        yield (
            f"only {num} calibration {'sample' if num == 1 else 'samples'}: too few to hold any "
            "out, so the result is judged on what it was calibrated with"
        )
    elif num_held_out < 100:
        yield f"only {num_held_out} samples to judge by: one flip is {1 / num_held_out:.1%} of them"
    if len(seen) > 1 and (seen == seen[0]).all():
        yield f"the {len(seen)} calibration samples looked at are all the same: ranges fit one only"
    if (seen == seen.reshape(-1)[0]).all():
        yield "every value of the calibration samples is the same: ranges mean nothing"
