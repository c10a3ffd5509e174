"""Runs of a session over any number of samples."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.data.input_kinds import require_kind
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
        ResdeployError: the model has several inputs, or one of another shape; or outputs without a
            batch axis, of a shape that depends on the input, or that are no real numbers.
    """
    return run_outputs(*_feed(session, inputs), fixed=fixed_batch(session), size=batch_size)


def _feed(session: Session, inputs: np.ndarray) -> tuple[Run, np.ndarray]:
    spec = _only_input(input_specs(session))
    wanted, found = spec.shape[1:], inputs.shape[1:]
    fits = len(wanted) == len(found) and all(
        not isinstance(w, int) or w == f for w, f in zip(wanted, found, strict=True)
    )
    if not fits:
        raise ResdeployError(
            f"The model's input {spec.name!r} takes samples of shape {wanted}, not {found}.",
            fix="verify against the checkpoint and the input shape the model was exported from",
        )
    require_kind(inputs, spec.dtype, name=spec.name)
    if spec.dtype == "float16":  # a model of lower precision through and through
        inputs = inputs.astype(np.float16)
    return lambda batch: session.run({spec.name: batch}), inputs


def fixed_batch(session: Session) -> int | None:
    """Return the model's fixed batch size; None if it is open."""
    size = _only_input(input_specs(session)).shape[0]
    return size if isinstance(size, int) else None


def _only_input(specs: tuple[TensorSpec, ...]) -> TensorSpec:
    if len(specs) != 1:
        raise ResdeployError(
            f"The model has {len(specs)} inputs; verify knows models of one.",
            where=", ".join(spec.name for spec in specs),
        )
    return specs[0]
