"""Feed samples to a session, whatever batches it takes."""

import numpy as np

from resdeploy.errors import ResdeployError
from resdeploy.schema.files import TensorSpec
from resdeploy.target.session import Session, input_specs

__all__ = ["fixed_batch", "run_session"]

_BATCH_SIZE = 8


def run_session(
    session: Session, inputs: np.ndarray, *, batch_size: int = _BATCH_SIZE
) -> np.ndarray:
    """Return the session's outputs for (N, ...) inputs as (N, K), whatever its batch size.

    Several outputs are laid side by side in K.

    Args:
        session: an open session of a model with one input.
        inputs: the samples.
        batch_size: how many at a time, where the model leaves that open.

    Raises:
        ResdeployError: the model has several inputs, or one of another shape.
    """
    spec = _only_input(input_specs(session))
    _check_shape(spec, inputs)
    _check_type(spec, inputs)
    fixed = fixed_batch(session)
    size = batch_size if fixed is None else fixed
    rows = []
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        missing = 0 if fixed is None else size - len(batch)
        padded = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        if spec.dtype == "float16":  # a model of lower precision through and through
            padded = padded.astype(np.float16)
        outputs = session.run({spec.name: padded}).values()
        row = np.concatenate([output.reshape(len(padded), -1) for output in outputs], axis=1)
        rows.append(row[: len(batch)])
    return np.concatenate(rows)


def fixed_batch(session: Session) -> int | None:
    """Return the one batch size that the model takes; None if it takes any."""
    size = _only_input(input_specs(session)).shape[0]
    return size if isinstance(size, int) else None


def _only_input(specs: tuple[TensorSpec, ...]) -> TensorSpec:
    if len(specs) != 1:
        raise ResdeployError(
            f"The model has {len(specs)} inputs; verify knows models of one.",
            where=", ".join(spec.name for spec in specs),
        )
    return specs[0]


def _check_type(spec: TensorSpec, inputs: np.ndarray) -> None:
    if (spec.dtype == "uint8") == (inputs.dtype == np.uint8):
        return
    raise ResdeployError(
        f"The model's input {spec.name!r} takes {spec.dtype}, not {inputs.dtype}.",
        fix="feed pixels (uint8) to a model whose preprocessing is embedded, and to no other",
    )


def _check_shape(spec: TensorSpec, inputs: np.ndarray) -> None:
    wanted, found = spec.shape[1:], inputs.shape[1:]
    fits = len(wanted) == len(found) and all(
        not isinstance(w, int) or w == f for w, f in zip(wanted, found, strict=True)
    )
    if not fits:
        raise ResdeployError(
            f"The model's input {spec.name!r} takes samples of shape {wanted}, not {found}.",
            fix="verify against the checkpoint and the input shape the model was exported from",
        )
