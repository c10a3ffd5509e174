"""Run a model on named providers and judge what it computes. Needs a golden file, never torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resdeploy.compare import accuracy
from resdeploy.errors import ResdeployError
from resdeploy.evidence.end_to_end import judge_end_to_end
from resdeploy.evidence.precision import Facts
from resdeploy.files import file_info
from resdeploy.golden_file import Golden
from resdeploy.schema import (
    PrecisionName,
    ProviderVerdict,
    SessionSpec,
    TensorSpec,
    VerifyReport,
)
from resdeploy.target.session import Session, input_specs, open_session

__all__ = ["open_sessions", "run_session", "verify_model", "verify_sessions"]

_BATCH_SIZE = 8


def verify_model(
    model: Path,
    golden: Golden,
    specs: Sequence[SessionSpec],
    *,
    precision: PrecisionName = "float32",
) -> VerifyReport:
    """Return the verdict on `model` for each session of `specs`, in that order.

    Args:
        model: an ONNX file with one input.
        golden: inputs, float64 reference and the noise of float32.
        specs: where to run it.
        precision: the arithmetic it is said to compute in, whose noise is the yardstick.

    Raises:
        ResdeployError: the model is not the network of the reference (shapes differ), or cannot be
            read.
        ProviderError: a provider did not start.
    """
    return verify_sessions(model, golden, open_sessions(model, specs), precision=precision)


def open_sessions(model: Path, specs: Sequence[SessionSpec]) -> list[Session]:
    """Open every session before any is run: a provider that does not start is known at once.

    Raises:
        ResdeployError: the model cannot be read.
        ProviderError: a provider did not start.
    """
    return [open_session(model, spec) for spec in specs]


def verify_sessions(
    model: Path,
    golden: Golden,
    sessions: Sequence[Session],
    *,
    precision: PrecisionName = "float32",
) -> VerifyReport:
    """Return the verdict on open sessions of `model`, for the precision it is said to have.

    Raises:
        ResdeployError: the model is not the network of the reference (shapes differ).
    """
    verdicts = []
    for session in sessions:
        outputs_NK = run_session(session, golden.inputs)
        verdicts.append(
            ProviderVerdict(
                session=session.info,
                comparison=judge_end_to_end(
                    outputs_NK, golden, precision=precision, facts=_facts(session.info.spec)
                ),
                accuracy=_accuracy(outputs_NK, golden),
            )
        )
    return VerifyReport(
        model=file_info(model, relative_to=model.parent),
        golden=golden.info,
        verdicts=tuple(verdicts),
        reference_accuracy=_accuracy(golden.reference, golden),
    )


def run_session(session: Session, inputs: np.ndarray) -> np.ndarray:
    """Return the session's outputs for (N, ...) inputs as (N, K), whatever its batch size.

    Several outputs are laid side by side in K.

    Raises:
        ResdeployError: the model has several inputs, or one of another shape.
    """
    spec = _only_input(input_specs(session))
    _check_shape(spec, inputs)
    fixed = spec.shape[0]
    size = fixed if isinstance(fixed, int) else _BATCH_SIZE
    rows = []
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        missing = size - len(batch) if isinstance(fixed, int) else 0
        padded = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        if spec.dtype == "float16":  # a model of lower precision through and through
            padded = padded.astype(np.float16)
        outputs = session.run({spec.name: padded}).values()
        row = np.concatenate([output.reshape(len(padded), -1) for output in outputs], axis=1)
        rows.append(row[: len(batch)])
    return np.concatenate(rows)


def _facts(spec: SessionSpec) -> Facts:
    return Facts(provider=spec.provider, use_tf32=spec.use_tf32)


def _only_input(specs: tuple[TensorSpec, ...]) -> TensorSpec:
    if len(specs) != 1:
        raise ResdeployError(
            f"The model has {len(specs)} inputs; verify knows models of one.",
            where=", ".join(spec.name for spec in specs),
        )
    return specs[0]


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


def _accuracy(outputs_NK: np.ndarray, golden: Golden) -> float | None:
    return None if golden.labels is None else accuracy(outputs_NK, golden.labels)
