"""Golden inputs with their reference outputs, as one `.npz` file.

Shapes: N inputs, K outputs.
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
_FIX = "use a file that resdeploy wrote, or build the bundle again"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """Reference outputs for fixed inputs, with the yardstick they are to be compared by.

    Attributes:
        inputs: (N, ...): float32, preprocessed; or uint8, the pixels
            themselves, where the preprocessing is part of the model.
        reference: (N, K) float64, the outputs of the model computed in float64.
        noise_l2: (N,) float64, for each input the Euclidean norm over K of the error of PyTorch
            in float32, that is, of its output minus `reference`.
        labels: (N,) int64, the true class of each input, or None where there is none.
        info: where all this came from.
        sigma: (M, K) float64, for the first M of the inputs the standard deviation of each output's
            rounding error in float32, propagated through the network; None where it is not known,
            which `info` explains.
    """

    inputs: NDArray[Any]
    reference: NDArray[np.float64]
    noise_l2: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    info: GoldenInfo
    sigma: NDArray[np.float64] | None = None

    @property
    def yardstick(self) -> NDArray[np.float64]:
        """The noise of each input (N,), not below the rounding of the outputs themselves."""
        rounding = FLOAT32_ROUNDOFF * np.linalg.norm(self.reference, axis=1)
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
    if golden.labels is not None:
        arrays["labels"] = golden.labels
    if golden.sigma is not None:
        arrays["sigma"] = golden.sigma
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
            labels=arrays.pop("labels", None),
            info=info,
            # Files of before sigma have none, and are as good as they were.
            sigma=arrays.pop("sigma", None),
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
    kind = KINDS.get(golden.inputs.dtype.name, FLOATS)
    wanted: list[tuple[str, NDArray[Any] | None, str, int]] = [
        ("inputs", golden.inputs, kind.dtypes[0], max(2, golden.inputs.ndim)),
        ("reference", reference, "float64", 2),
        ("noise_l2", golden.noise_l2, "float64", 1),
        ("labels", golden.labels, "int64", 1),
    ]
    for name, array, dtype, rank in wanted:
        if array is not None and array.dtype != dtype:
            yield f"{name!r} is {array.dtype}, not {dtype}"
        if array is not None and (array.ndim != rank or not 0 < num_inputs == len(array)):
            yield f"{name!r} has shape {array.shape}, which does not fit {num_inputs} inputs"
    # A NaN fails these comparisons too.
    if not np.all(golden.noise_l2 >= 0):
        yield "'noise_l2' holds a number that is no norm"
    if sigma is None:
        return
    if sigma.dtype != "float64":
        yield f"'sigma' is {sigma.dtype}, not float64"
    if not sigma.shape or not len(sigma) or sigma.shape != reference[: len(sigma)].shape:
        outputs = f"outputs of shape {reference.shape}"
        yield f"'sigma' has shape {sigma.shape}, which does not fit {outputs}"
    if not np.all(sigma >= 0):
        yield "'sigma' holds a number that is no deviation"


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
