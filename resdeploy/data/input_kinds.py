"""The kinds of input that a model may take: one table, by the type of the model's input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError

__all__ = ["BOOLS", "FLOATS", "INTEGERS", "KINDS", "PIXELS", "InputKind", "require_kind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputKind:
    """A kind of input.

    `dtypes` are that of samples, and the others that a model's input of this kind may have;
    `sample` makes seeded samples of a generator and a shape (N, ...), `drawn` in words. A kind
    `is_raw` if the preprocessing is part of the model; `order` are the axes of images (N, C, H, W)
    as they are fed.
    """

    dtypes: tuple[str, ...]
    sample: Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]
    drawn: str
    is_raw: bool = False
    order: tuple[int, int, int, int] = (0, 1, 2, 3)

    @property
    def layout(self) -> str:
        """The type of an image's numbers, and its axes in their order, in words."""
        names = ("images", "channels", "rows", "columns")
        return ", ".join((self.dtypes[0], *(names[axis] for axis in self.order[1:])))

    def draw(self, shape: tuple[int, ...], *, seed: int = 0) -> NDArray[Any]:
        """Return seeded samples of a shape (N, ...)."""
        return self.sample(np.random.default_rng(seed), shape)

    def seeded(self, shape: tuple[int, ...]) -> tuple[NDArray[Any], str]:
        """Return the description of drawn samples, for the record."""
        return self.draw(shape), f"{shape[0]} seeded {self.drawn}"


FLOATS = InputKind(
    dtypes=("float32", "float16", "float64"),
    # Normalised data resembles them.
    sample=lambda rng, shape: rng.standard_normal(shape, dtype=np.float32),
    drawn="normal inputs",
)
PIXELS = InputKind(
    dtypes=("uint8",),
    sample=lambda rng, shape: rng.integers(0, 256, shape, dtype=np.uint8),
    drawn="images",
    is_raw=True,
    order=(0, 2, 3, 1),
)
# Such as the indices of an embedding's rows, of which the smallest has two.
INTEGERS = InputKind(
    dtypes=("int64", "int32"),
    sample=lambda rng, shape: rng.integers(0, 2, shape),
    drawn="integers, 0 and 1",
)
BOOLS = InputKind(
    dtypes=("bool",),
    sample=lambda rng, shape: rng.integers(0, 2, shape).astype(np.bool_),
    drawn="bools",
)
KINDS = {dtype: kind for kind in (FLOATS, PIXELS, INTEGERS, BOOLS) for dtype in kind.dtypes}


def require_kind(samples: NDArray[Any], dtype: str, *, name: str) -> None:
    """Raise ResdeployError unless `samples` are of the kind that the model's input `name` takes."""
    wanted, found = KINDS.get(dtype), KINDS.get(samples.dtype.name)
    if wanted is found:
        return
    pixels = " or ".join(dtype for dtype, kind in KINDS.items() if kind.is_raw)
    is_of_pixels = any(kind is not None and kind.is_raw for kind in (wanted, found))
    raise ResdeployError(
        f"The model's input {name!r} takes {dtype}, not {samples.dtype}.",
        fix=f"feed pixels ({pixels}) to a model whose preprocessing is embedded, and to no other"
        if is_of_pixels
        else f"give an array of {dtype}",
    )
