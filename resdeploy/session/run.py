"""Runs of a session over any number of samples."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.data.input_kinds import require_kind
from resdeploy.data.named_inputs import by_name
from resdeploy.errors import ResdeployError
from resdeploy.schema.files import TensorSpec
from resdeploy.session.batches import BATCH_SIZE, Run, run_outputs, run_rows
from resdeploy.session.session import Session, input_specs

__all__ = ["fixed_batch", "run_session", "session_outputs"]


def run_session(
    session: Session, inputs: np.ndarray, *, batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """Return the session's floating-point outputs for (N, ...) inputs side by side, as (N, K).

    For arguments and errors see `session_outputs`; it is one, too, if there is no such output.
    """
    return run_rows(*_feed(session, inputs), fixed=fixed_batch(session), size=batch_size)


def session_outputs(
    session: Session, inputs: np.ndarray, *, batch_size: int = BATCH_SIZE
) -> dict[str, NDArray[Any]]:
    """Return the session's outputs for (N, ...) inputs, for a fixed or open batch size, by name.

    `batch_size` counts where the model leaves it open.

    Raises:
        ResdeployError: the model has other inputs, or of other shapes; or outputs without a
            batch axis, of a shape that depends on the input, or that are no real numbers.
    """
    return run_outputs(*_feed(session, inputs), fixed=fixed_batch(session), size=batch_size)


def _feed(session: Session, inputs: np.ndarray) -> tuple[Run, np.ndarray]:
    specs = {spec.name: spec for spec in input_specs(session)}
    for name, array in by_name(inputs[:1], [*specs]).items():
        _check(specs[name], array)

    def run(batch: np.ndarray) -> dict[str, NDArray[Any]]:
        # Such as float16, of a model of lower precision through and through.
        arrays = by_name(batch, [*specs])
        return session.run({n: y.astype(specs[n].dtype, copy=False) for n, y in arrays.items()})

    return run, inputs


def _check(spec: TensorSpec, array: NDArray[Any]) -> None:
    """Raise unless an input takes these samples (N, ...)."""
    wanted, found = spec.shape[1:], array.shape[1:]
    fits = len(wanted) == len(found) and all(
        not isinstance(w, int) or w == f for w, f in zip(wanted, found, strict=True)
    )
    if not fits:
        raise ResdeployError(
            f"The model's input {spec.name!r} takes samples of shape {wanted}, not {found}.",
            fix="verify against the checkpoint and the input shape the model was exported from",
        )
    require_kind(array, spec.dtype, name=spec.name)


def fixed_batch(session: Session) -> int | None:
    """Return the model's fixed batch size; None if it is open.

    Raises:
        ResdeployError: it has no inputs, one without a batch, or of several sizes.
    """
    specs = input_specs(session)
    if not specs or not all(spec.shape for spec in specs):
        raise ResdeployError(
            "The model has no inputs, or one without a batch.",
            where=", ".join(spec.name for spec in specs),
        )
    sizes = {spec.shape[0] for spec in specs if isinstance(spec.shape[0], int)}
    if len(sizes) > 1:
        raise ResdeployError(
            f"The inputs take batches of {' and of '.join(map(str, sorted(sizes)))}: there is no "
            "one batch size.",
            where=", ".join(spec.name for spec in specs),
        )
    return next(iter(sizes), None)
