"""Golden inputs with their reference outputs, as one `.npz` file.

Shapes: N inputs, K outputs of floating-point numbers, J of integers, O named outputs of floats.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.data.input_kinds import FLOATS, KINDS
from resdeploy.errors import BundleError, ResdeployError
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.verify.precision import FLOAT32_ROUNDOFF

__all__ = ["Golden", "load_golden", "save_golden"]

# Raised by zipfile and numpy for a damaged file.
_DAMAGED = (
    *(EOFError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)
_OPTIONAL = ("labels", "sigma", "exact", "near_ties", "output_noise")
_FIX = "use a file that resdeploy wrote, or build the bundle again"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """Reference outputs for fixed inputs, with the yardstick they are to be compared by.

    Attributes:
        inputs: (N, ...): float32, preprocessed; or uint8, the pixels
            themselves, where the preprocessing is part of the model; or records (N,) of several
            inputs by name (`data.named_inputs`).
        reference: (N, K) float64, the outputs of the model computed in float64.
        noise_l2: (N,) float64, for each input the Euclidean norm over K of the error of PyTorch
            in float32, that is, of its output minus `reference`.
        labels: (N,) int64, the true class of each input, or None where there is none.
        info: where all this came from.
        sigma: (M, K) float64, for the first M of the inputs the standard deviation of each output's
            rounding error in float32, propagated through the network; None where it is not known,
            which `info` explains.
        exact: (N, J) int64, the integer and bool outputs; None where there are none.
        near_ties: (E, 3) int64: an input, a column of `exact`, and another value there that the
            noise of float32 explains as well.
        output_noise: (N, O) float64, as `noise_l2`, for each named output of floats by itself;
            None for a single one.
    """

    inputs: NDArray[Any]
    reference: NDArray[np.float64]
    noise_l2: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    info: GoldenInfo
    sigma: NDArray[np.float64] | None = None
    exact: NDArray[np.int64] | None = None
    near_ties: NDArray[np.int64] | None = None
    output_noise: NDArray[np.float64] | None = None

    @property
    def finite(self) -> NDArray[np.float64]:
        """The reference with 0 for infinities, which are to be met exactly."""
        return np.where(np.isinf(self.reference), 0.0, self.reference)

    @property
    def yardstick(self) -> NDArray[np.float64]:
        """The noise of each input (N,), not below the rounding of the outputs themselves."""
        rounding = FLOAT32_ROUNDOFF * np.linalg.norm(self.finite, axis=1)
        return np.asarray(np.maximum(self.noise_l2, rounding))


def save_golden(path: Path, golden: Golden) -> None:
    """Write `golden` to `path`; the same values give the same bytes, on any machine, any day.

    Raises:
        BundleError: the arrays have other types or shapes than `Golden` says.
    """
    _check(golden, where=str(path))
    arrays: dict[str, NDArray[np.generic]] = {
        "info": np.frombuffer(dump_json(golden.info).encode(), dtype=np.uint8),
        "inputs": golden.inputs,
        "reference": golden.reference,
        "noise_l2": golden.noise_l2,
    }
    for name in _OPTIONAL:
        if (array := getattr(golden, name)) is not None:
            arrays[name] = array
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(_member(f"{name}.npy"), _npy_from_array(array))


def load_golden(path: Path) -> Golden:
    """Return the content of a golden file.

    Raises:
        BundleError: the file is missing, is not such a file, or an array in it has another type or
            shape than `Golden` says.
    """
    where = str(path)
    try:
        # Not numpy.load: it leaves a damaged file open.
        with zipfile.ZipFile(path) as archive:
            arrays = {
                name.removesuffix(".npy"): _array_from_npy(archive.read(name))
                for name in archive.namelist()
            }
        info = load_json(GoldenInfo, arrays.pop("info").tobytes(), where=where)
        golden = Golden(
            inputs=arrays.pop("inputs"),
            reference=arrays.pop("reference"),
            noise_l2=arrays.pop("noise_l2"),
            info=info,
            # Files of before sigma and integers have none, and are as good as they were.
            **{name: arrays.pop(name, None) for name in _OPTIONAL},
        )
    except FileNotFoundError as error:
        raise BundleError("The golden file is missing.", where=where) from error
    except KeyError as error:
        raise _damaged(f"file has no array {error}", where) from error
    except ResdeployError as error:
        raise BundleError(error.what, where=error.where, fix=error.fix or _FIX) from error
    except _DAMAGED as error:
        raise _damaged(f"file cannot be read: {error}", where) from error
    if arrays:
        raise _damaged(f"file has an array {min(arrays)!r} that does not belong there", where)
    _check(golden, where=where)
    return golden


def _check(golden: Golden, *, where: str) -> None:
    """Raise BundleError unless the arrays are what `Golden` says."""
    for problem in _problems(golden):
        raise _damaged(f"array {problem}", where)


def _damaged(what: str, where: str) -> BundleError:
    return BundleError(f"The golden {what}.", where=where, fix=_FIX)


def _problems(golden: Golden) -> Iterator[str]:
    """Yield what is wrong with the arrays; what follows a problem may not make sense."""
    num_inputs, reference, sigma = golden.info.num_inputs, golden.reference, golden.sigma
    fields = golden.inputs.dtype.names or ()
    arrays = {f"inputs.{name}": golden.inputs[name] for name in fields} or {"inputs": golden.inputs}
    wanted: list[tuple[str, NDArray[Any] | None, str, int]] = [
        *(
            (name, array, KINDS.get(array.dtype.name, FLOATS).dtypes[0], max(2, array.ndim))
            for name, array in arrays.items()
        ),
        ("reference", reference, "float64", 2),
        ("noise_l2", golden.noise_l2, "float64", 1),
        ("labels", golden.labels, "int64", 1),
        ("exact", golden.exact, "int64", 2),
        ("output_noise", golden.output_noise, "float64", 2),
    ]
    for name, array, dtype, rank in wanted:
        if array is not None and array.dtype != dtype:
            yield f"{name!r} is {array.dtype}, not {dtype}"
        if array is not None and (array.ndim != rank or not 0 < num_inputs == len(array)):
            yield f"{name!r} has shape {array.shape}, which does not fit {num_inputs} inputs"
    # A NaN fails these comparisons too.
    if not np.all(golden.noise_l2 >= 0):
        yield "'noise_l2' holds a number that is no norm"
    yield from _problems_of_kinds(golden)
    if sigma is None:
        return
    if sigma.dtype != "float64":
        yield f"'sigma' is {sigma.dtype}, not float64"
    if not sigma.shape or not len(sigma) or sigma.shape != reference[: len(sigma)].shape:
        outputs = f"outputs of shape {reference.shape}"
        yield f"'sigma' has shape {sigma.shape}, which does not fit {outputs}"
    if not np.all(sigma >= 0):
        yield "'sigma' holds a number that is no deviation"


def _problems_of_kinds(golden: Golden) -> Iterator[str]:
    """Yield what is wrong with the arrays of the outputs that have names."""
    outputs, exact, ties = golden.info.outputs, golden.exact, golden.near_ties
    num_exact = 0 if exact is None else exact.shape[-1]
    for name, width, is_exact in (
        ("reference", golden.reference.shape[-1], False),
        ("exact", num_exact, True),
    ):
        wanted = sum(o.width for o in outputs if o.is_exact is is_exact)
        if outputs and width != wanted:
            yield f"{name!r} has {width} columns for outputs of {wanted}"
    num_floats = sum(not o.is_exact for o in outputs)
    if golden.output_noise is not None and golden.output_noise.shape[-1] != num_floats:
        yield f"'output_noise' has {golden.output_noise.shape[-1]} columns for {num_floats} outputs"
    if golden.output_noise is not None and not np.all(golden.output_noise >= 0):
        yield "'output_noise' holds a number that is no norm"
    if ties is not None and (ties.dtype != "int64" or ties.ndim != 2 or ties.shape[1] != 3):
        yield f"'near_ties' is {ties.dtype} of shape {ties.shape}, not int64 of shape (E, 3)"


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member that holds no trace of when or where it was written.

    Stored, not deflated: zlib builds differ in the bytes they make of the same data.
    """
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3  # Unix, on every machine
    member.external_attr = 0o644 << 16
    return member


def _npy_from_array(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    # C order and little-endian, so that how the array lay in memory does not show.
    portable = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, portable, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _array_from_npy(data: bytes) -> NDArray[Any]:
    # Never pickles: loading one can run any program.
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return array
