"""Samples for `ship`: to calibrate with, and to judge by, without one in common.

The split goes by content, the SHA-256 of a file or of an array's row, so that it is the same on
every machine and no copy of a sample lands on both sides; a copy is left out, since it shows
nothing new. Where data has parts of its own, they stay: training samples calibrate, held-out ones
judge. Elsewhere a quarter of each class calibrates.
"""

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resdeploy.bundle.folder import read_bundle
from resdeploy.data.datasets import folder_images, load_dataset, load_labelled
from resdeploy.data.samples import read_arrays
from resdeploy.errors import ResdeployError
from resdeploy.files import sha256_file
from resdeploy.schema.recipes import DataSpec, Preprocess

__all__ = [
    *("Sample", "SplitSamples", "read_samples_of", "split_by_content", "split_data"),
    *("write_labelled", "write_split"),
]

# Ranges hardly move with more; accuracies are compared on thousands, not on all of ImageNet.
_MOST_CALIBRATION = 512
_MOST_HELD_OUT = 5000
_CALIBRATION_SHARE = 4
# Samples whose predictions are asked for in one go.
_AT_ONCE = 256

Part = Literal["train", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A sample: the digest of its content, its class, its part if the data has parts, its place.

    `place` is a file, or the part and row of an array.
    """

    digest: str
    label: str | None
    part: Part | None
    place: Path | tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSamples:
    """Both sides of the split, each in the order of its digests; `num_copies` were left out."""

    calibration: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    num_copies: int

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of their names; () without any."""
        return tuple(sorted({one.label for one in self.held_out if one.label is not None}))

    @property
    def has_names(self) -> bool:
        """True where the classes are those of folders, rather than numbers in an array."""
        return isinstance(self.held_out[0].place, Path)

    @property
    def digest(self) -> str:
        """The SHA-256 of all contents, classes and sides."""
        sides = {"calibration": self.calibration, "held out": self.held_out}
        lines = [f"{name} {one.digest} {one.label}" for name, side in sides.items() for one in side]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_samples_of(data: DataSpec) -> list[Sample]:
    """Return the samples of a data set. Decodes no image, and needs no torch.

    Raises:
        ResdeployError: the data is not there, or damaged.
    """
    if data.name == "image-folder":
        return [
            Sample(digest=sha256_file(one.path), label=one.label, part=one.part, place=one.path)
            for one in folder_images(data)
        ]
    found = []
    for part, (x, y) in _arrays_of(data).items():
        for row in range(len(x)):
            content = np.ascontiguousarray(x[row])
            found.append(
                Sample(
                    digest=hashlib.sha256(content.tobytes()).hexdigest(),
                    label=None if y is None else str(y[row]),
                    part="train" if part == "train" else "test" if part == "test" else None,
                    place=(part, row),
                )
            )
    return found


def split_by_content(samples: Iterable[Sample], *, where: str) -> SplitSamples:
    """Return the split of samples, of which each content is taken once.

    Raises:
        ResdeployError: a class has too few samples for both sides.
    """
    groups: dict[str | None, list[Sample]] = defaultdict(list)
    seen: set[str] = set()
    # Held-out parts first: a training sample that is a copy of one of them is left out.
    everything = sorted(samples, key=lambda one: (one.part == "train", one.digest, str(one.place)))
    for one in everything:
        if one.digest not in seen:
            groups[one.label].append(one)
        seen.add(one.digest)
    calibration: list[Sample] = []
    held_out: list[Sample] = []
    most = max(1, _MOST_CALIBRATION // max(1, len(groups)))
    most_held_out = max(1, _MOST_HELD_OUT // max(1, len(groups)))
    for label, group in groups.items():
        # By digest, which is as good as by lot.
        by_digest = sorted(group, key=lambda one: one.digest)
        given = [one for one in by_digest if one.part == "train"]
        others = [one for one in by_digest if one.part != "train"]
        if not any(one.part for one in by_digest):
            num = max(1, len(others) // _CALIBRATION_SHARE)
            given, others = others[:num], others[num:]
        if not given or not others:
            raise ResdeployError(
                f"There are too few samples{'' if label is None else f' of {label}'}: one is "
                "needed to calibrate with, and another one to judge by.",
                where=where,
                fix="give more of them",
            )
        calibration += given[:most]
        held_out += others[:most_held_out]
    return SplitSamples(
        calibration=tuple(sorted(calibration, key=lambda one: one.digest)),
        held_out=tuple(sorted(held_out, key=lambda one: one.digest)),
        num_copies=len(everything) - len(seen),
    )


def write_split(data: DataSpec, split: SplitSamples, folder: Path) -> None:
    """Write a split to `folder`, in forms that the other verbs read.

    Images become `images/train` and `images/test`, with a folder for each class if there are
    classes; arrays become `samples.npz`. Images are linked, not copied, where the system can.
    """
    if data.name != "image-folder":
        _write_arrays(_arrays_of(data), split, folder / "samples.npz")
        return
    for part, side in (("train", split.calibration), ("test", split.held_out)):
        for one in side:
            assert isinstance(one.place, Path)
            home = folder / "images" / part / (one.label or "")
            home.mkdir(parents=True, exist_ok=True)
            _link(one.place, home / f"{one.digest[:16]}-{one.place.name}")


def split_data(folder: Path, *, is_labelled: bool) -> tuple[DataSpec, DataSpec]:
    """Return the data to calibrate with, and that to judge by, which `write_split` wrote."""
    arrays, images = folder / "samples.npz", folder / "images"
    if arrays.is_file():
        return (DataSpec(name="npz", path=str(arrays)),) * 2
    if is_labelled:
        return (DataSpec(name="image-folder", path=str(images)),) * 2
    train, test = (DataSpec(name="image-folder", path=str(images / p)) for p in ("train", "test"))
    return train, test


def write_labelled(
    bundle: Path, data: DataSpec, out: Path, classes_of: Callable[[NDArray[Any]], Sequence[int]]
) -> None:
    """Write samples without labels to an .npz, with the classes that a model gives them.

    `bundle` is the model's, in a folder, whose preprocessing decodes images.

    Raises:
        ResdeployError: the samples cannot be read.
    """
    samples = load_labelled(data, read_bundle(bundle).manifest.preprocess)
    found = [
        classes_of(samples.x[start : start + _AT_ONCE])
        for start in range(0, len(samples.x), _AT_ONCE)
    ]
    np.savez(out, allow_pickle=False, x=samples.x, y=np.concatenate(found).astype(np.int64))


def _arrays_of(data: DataSpec) -> Mapping[str, tuple[NDArray[Any], NDArray[Any] | None]]:
    """Return raw samples and their classes, by part; the part of what has none is "all"."""
    if data.name != "npz":
        # None of these is decoded, so that any preprocessing will do.
        found = load_dataset(data, Preprocess(input_shape=(1,)))
        return {"train": (found.train_x, found.train_y), "test": (found.test_x, found.test_y)}
    path = Path(data.path or "").expanduser()
    arrays = read_arrays(path)
    if not isinstance(arrays, dict):
        raise ResdeployError("This is a single array, not an .npz.", where=str(path))
    if "x" in arrays:
        return {"all": (arrays["x"], arrays.get("y"))}
    if "train_x" in arrays and "test_x" in arrays:
        return {part: (arrays[f"{part}_x"], arrays.get(f"{part}_y")) for part in ("train", "test")}
    raise ResdeployError(
        f"The file has neither 'x' nor 'train_x' and 'test_x'; it has "
        f"{', '.join(sorted(arrays)) or 'none'}.",
        where=str(path),
        fix="save it with numpy.savez(…, x=, y=); y is optional",
    )


def _write_arrays(
    arrays: Mapping[str, tuple[NDArray[Any], NDArray[Any] | None]],
    split: SplitSamples,
    path: Path,
) -> None:
    written: dict[str, NDArray[Any]] = {}
    for part, side in (("train", split.calibration), ("test", split.held_out)):
        places = [one.place for one in side if not isinstance(one.place, Path)]
        written[f"{part}_x"] = np.stack([arrays[name][0][row] for name, row in places])
        classes = [y[row] for name, row in places if (y := arrays[name][1]) is not None]
        if classes:
            written[f"{part}_y"] = np.array(classes, np.int64)
    np.savez(path, allow_pickle=False, **written)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(os.path.abspath(source))
    except OSError:  # Windows, without the right to
        shutil.copyfile(source, target)
