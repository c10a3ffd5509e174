"""Runs of a session over any number of samples."""

import numpy as np

from resdeploy.data.input_kinds import require_kind
from resdeploy.errors import ResdeployError
from resdeploy.schema.files import TensorSpec
from resdeploy.session.batches import BATCH_SIZE, run_rows
from resdeploy.session.session import Session, input_specs

__all__ = ["fixed_batch", "run_session"]


def run_session(
    session: Session, inputs: np.ndarray, *, batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """Return the session's outputs for (N, ...) inputs as (N, K), for a fixed or open batch size.

    Several outputs are laid side by side in K. `batch_size` counts where the model leaves it open.

    Raises:
        ResdeployError: the model has several inputs, or one of another shape.
    """
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
    return run_rows(
        lambda batch: session.run({spec.name: batch}).values(),
        inputs,
        fixed=fixed_batch(session),
        size=batch_size,
    )


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
