"""Calibration samples, read again on every pass: as many as there are, few in memory at a time.

A sample of a model with several inputs is a record of numpy with a field for each, so that samples
are one array whatever the model takes. Copies of a sample say nothing new: the first alone counts.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError
from resdeploy.graph.affine_layer import Array

__all__ = ["SampleSplit", "Samples", "batches", "digest", "fields", "memory_limit", "spread"]

# One sample in four is kept to judge by, and more where the budget takes more to be shown and
# enough are left to calibrate with; all are kept in memory, as are those that choices are explored
# with. At 224 x 224 pixels this is about 300 images and 100.
_HELD_OUT_EVERY = 4
_LEAST_CALIBRATED = 64
_HELD_OUT_BYTES = 128 * 2**20
_MOST_HELD_OUT_BYTES = 512 * 2**20
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
            uint8 (H, W, C) for a model that takes pixels, or a record of several inputs.
        digests: returns a digest of each, equal for copies; None if that takes too long.
        labels: the right decisions, (N,) or a map of them for each; None if they are not known.
        label_names: the names of the classes, () if unknown.
        warnings: about the data as it is stored.
    """

    description: str
    num: int
    read: Callable[[Sequence[int]], Iterator[Array]]
    digests: Callable[[], Sequence[Hashable]] | None = None
    labels: NDArray[np.int64] | None = None
    label_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of_array(cls, inputs: Array, *, labels: NDArray[np.int64] | None = None) -> "Samples":
        """Return the samples of an array (N, ...), float numbers or records of them."""
        is_record = inputs.dtype.names is not None
        return cls(
            description="an array",
            num=len(inputs),
            read=lambda indices: (
                inputs[i] if is_record else np.asarray(inputs[i], dtype=np.float32) for i in indices
            ),
            digests=lambda: [digest(sample.tobytes()) for sample in inputs],
            labels=labels,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleSplit:
    """Calibration samples, split into those to calibrate with and those to judge by.

    Attributes:
        samples: all of them.
        calibrate: the indices that ranges come from.
        explored: some of these, in memory, to choose with.
        held_out: others, in memory, to judge by.
        labels: of these, None if they are not known.
        tried: the held-out samples that each step of a search is measured on.
        warnings: oddities of the samples.
    """

    samples: Samples
    calibrate: tuple[int, ...]
    explored: Array
    held_out: Array
    labels: NDArray[np.int64] | None
    tried: slice
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, samples: Samples, *, num_to_show: int = 0) -> "SampleSplit":
        """Split samples, evenly over their order; look at them first.

        `num_to_show` is the number of held-out samples that shows a budget to hold.

        Raises:
            ResdeployError: there are none, or one of those in memory is not finite.
        """
        if samples.num < 1:
            raise ResdeployError("There are no calibration samples.", where=samples.description)
        every = _distinct(samples)
        calibrate, held_out = _split(every, num_to_show)
        first = next(_checked(samples, [0]))
        usual = memory_limit(first, _HELD_OUT_BYTES, _MOST_HELD_OUT)
        most = max(usual, min(num_to_show, memory_limit(first, _MOST_HELD_OUT_BYTES, num_to_show)))
        judged = spread(held_out or calibrate, most)
        explored = spread(calibrate, memory_limit(first, _EXPLORED_BYTES, _MOST_EXPLORED))
        num_held_out = len(judged) if held_out else 0
        seen, unseen = (_gather(samples, some, like=first) for some in (explored, judged))
        num_tried = min(usual, len(every) // _HELD_OUT_EVERY or 1)
        warnings = (
            *samples.warnings,
            *_copies(samples.num, len(every)),
            *_oddities(len(every), (seen, unseen), num_held_out),
        )
        return cls(
            samples=samples,
            calibrate=tuple(calibrate),
            explored=seen,
            held_out=unseen,
            labels=None if samples.labels is None else samples.labels[judged],
            tried=slice(None, None, max(1, len(judged) // num_tried)),
            warnings=warnings,
        )

    def at_most(self, num: int) -> "SampleSplit":
        """Return the split with at most so many samples held out, evenly over their order."""
        if len(self.held_out) <= num:
            return self
        kept = spread(range(len(self.held_out)), num)
        labels = None if self.labels is None else self.labels[kept]
        step = max(1, num // len(self.held_out[self.tried]))
        return replace(
            self, held_out=self.held_out[kept], labels=labels, tried=slice(None, None, step)
        )

    def read_calibration(self) -> Iterator[Array]:
        """Yield the samples that ranges come from.

        Raises:
            ResdeployError: one of them is not finite.
        """
        return _checked(self.samples, self.calibrate)


def batches(samples: Iterator[Array], size: int) -> Iterator[Array]:
    """Yield samples in batches of at most `size`."""
    while group := list(islice(samples, size)):
        yield np.stack(group)


def fields(samples: Array) -> dict[str, Array]:
    """Return the arrays of records by name; an array of plain numbers under an empty one."""
    names = samples.dtype.names
    return {"": samples} if names is None else {name: samples[name] for name in names}


def digest(content: bytes) -> bytes:
    """Return a digest of a sample's bytes."""
    return blake2b(content, digest_size=16).digest()


def spread(indices: Sequence[int], most: int) -> list[int]:
    """Return at most so many of them, evenly over their order: folders are sorted by class."""
    if len(indices) <= most:
        return list(indices)
    return [indices[i * len(indices) // most] for i in range(most)]


def memory_limit(sample: Array, num_bytes: int, most: int) -> int:
    """Return the number of samples of this size that fit, at least one and at most `most`."""
    return max(1, min(most, num_bytes // max(1, sample.nbytes)))


def _distinct(samples: Samples) -> list[int]:
    """Return the indices of the samples without their copies."""
    if samples.digests is None:
        return list(range(samples.num))
    first: dict[Hashable, int] = {}
    for index, found in enumerate(samples.digests()):
        first.setdefault(found, index)
    return list(first.values())


def _split(every: Sequence[int], num_to_show: int) -> tuple[list[int], list[int]]:
    """Return those to calibrate with and those held out, the latter evenly over their order.

    Twice as many as show the budget are held out if half are left, so that some may change.
    """
    num = len(every)
    quarter = num // _HELD_OUT_EVERY
    held = max(quarter, min(num // 2, 2 * num_to_show))
    if held < num_to_show <= num - _LEAST_CALIBRATED:
        held = num_to_show
    if held < num_to_show or num - held < _LEAST_CALIBRATED:  # in vain, or too few are left
        held = quarter
    part, whole = (1, _HELD_OUT_EVERY) if held == quarter else (held, num)
    is_held_out = [(i + 1) * part // whole > i * part // whole for i in range(num)]
    calibrate = [index for index, out in zip(every, is_held_out, strict=True) if not out]
    return calibrate, [index for index, out in zip(every, is_held_out, strict=True) if out]


def _gather(samples: Samples, indices: Sequence[int], *, like: Array) -> Array:
    """Return samples (N, ...), of which there is never a second copy in memory."""
    gathered = np.empty((len(indices), *like.shape), like.dtype)
    for place, sample in enumerate(_checked(samples, indices, like)):
        gathered[place] = sample
    return gathered


def _checked(
    samples: Samples, indices: Sequence[int], like: Array | None = None
) -> Iterator[Array]:
    for index, sample in zip(indices, samples.read(indices), strict=True):
        like = sample if like is None else like
        if sample.shape != like.shape or sample.dtype != like.dtype:
            raise ResdeployError(
                f"Calibration sample {index} has shape {sample.shape}, others {like.shape}.",
                where=samples.description,
            )
        if not all(np.isfinite(values).all() for values in fields(sample).values()):
            raise ResdeployError(
                f"Calibration sample {index} holds NaN or infinity.",
                where=samples.description,
                fix="remove it, or find out how it came to be",
            )
        yield sample


def _copies(num: int, num_distinct: int) -> Iterator[str]:
    if num_distinct < num:
        yield (
            f"{num - num_distinct} of {num} calibration samples are copies of others and left out"
        )


def _oddities(num: int, groups: Sequence[Array], num_held_out: int) -> Iterator[str]:
    if not num_held_out:
        yield (
            f"only {num} calibration {'sample' if num == 1 else 'samples'}: too few to hold any "
            "out, so the result is judged on what it was calibrated with"
        )
        groups = groups[:1]  # the others are the same ones
    num_seen = sum(map(len, groups))
    looked_at = [[fields(group)[name] for group in groups] for name in fields(groups[0])]
    if num_seen > 1 and all((g == some[0][0]).all() for some in looked_at for g in some):
        yield (
            f"the {num_seen} calibration samples looked at are all the same: ranges fit one only"
        )
    if all((g == some[0].flat[0]).all() for some in looked_at for g in some):
        yield "every value of the calibration samples is the same: ranges mean nothing"
