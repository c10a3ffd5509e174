"""Conformance of a session, tried: other batches, other graph levels, odd values."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np

from resdeploy.data.named_inputs import each_input, map_floats
from resdeploy.errors import ReportedError
from resdeploy.schema.sessions import GraphLevel, SessionSpec
from resdeploy.schema.verdicts import Conformance
from resdeploy.session.run import fixed_batch, session_outputs
from resdeploy.session.session import Session, open_session
from resdeploy.verify.conformance_evidence import (
    Repetition,
    judge_conformance,
    noise_units,
    stress_units,
)
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.named_outputs import exact_columns, exact_reasons, float_columns

__all__ = ["check_conformance"]

# An odd one, a prime, and neither a multiple of vector units and tiles; the largest
# stands for the batches of a server, and is kept where a check still takes seconds.
_BATCHES = (2, 3, 7)
_LARGEST_BATCH = 32

_NUM_LEVEL_INPUTS = 3
_NUM_RUNS = 3

# Subnormal numbers of float32 lie below 2^-126.
_SUBNORMAL = 2.0**-130

# Extreme inputs: this far below the largest with finite outputs, for another order of summation may
# reach larger sums on the way: by the number of terms, up to 2^13 in a ResNet, and by the
# transforms of Winograd's convolution, below 2^7.
_MARGIN_LOG2 = 20
_EXTREMES_LOG2 = range(120, 0, -20)

# Steps to measure rounding by, over the size of the input: 64 units in the last place and more, so
# that the errors at either end are independent; short enough that few ReLUs switch on the way.
_STEPS = (2.0**-16, 2.0**-17, 2.0**-18)


def check_conformance(model: Path | bytes, golden: Golden, session: Session) -> Conformance:
    """Return the conformance of `session`: the same results in every way of calling it.

    Args:
        model: the file or bytes of `session`.
        golden: the inputs to use, and the noise of float32 in this network.
        session: the session to be judged.

    Raises:
        ResdeployError: the inputs are not those of the model.
        ProviderError: the provider failed while it ran.
    """
    missing: list[str] = []
    inputs = golden.inputs[:_LARGEST_BATCH]
    single_NK = _floats(session, golden, inputs, batch_size=1)
    units_N = noise_units(golden)
    few = slice(_NUM_LEVEL_INPUTS)
    return judge_conformance(
        batches={
            str(size): _repetition(session, golden, inputs[:size], size, single_NK, units_N)
            for size in _batches(session, len(inputs), missing)
        },
        levels={
            level: _repetition(other, golden, inputs[few], 1, single_NK, units_N)
            for level, other in _other_levels(model, session, missing).items()
        },
        stress=_stress(model, golden, session, missing),
        runs=[
            _floats(session, golden, inputs[: max(_BATCHES)], batch_size=max(_BATCHES))
            for _ in range(_NUM_RUNS)
        ],
        missing=tuple(missing),
    )


def _floats(session: Session, golden: Golden, inputs: np.ndarray, *, batch_size: int) -> np.ndarray:
    """Return the session's floating-point outputs, those of the reference: (N, K)."""
    found = session_outputs(session, inputs, batch_size=batch_size)
    return float_columns([*found.values()], golden.info.outputs)


def _repetition(
    session: Session,
    golden: Golden,
    inputs: np.ndarray,
    batch_size: int,
    expected_NK: np.ndarray,
    units_N: np.ndarray,
) -> Repetition:
    """Return the outputs for the first golden inputs, called another way."""
    num = len(inputs)
    found = [*session_outputs(session, inputs, batch_size=batch_size).values()]
    return Repetition(
        outputs=float_columns(found, golden.info.outputs),
        expected=expected_NK[:num],
        units=units_N[:num],
        wrong_integers=exact_reasons(exact_columns(found, golden.info.outputs), golden),
    )


def _batches(session: Session, num_inputs: int, missing: list[str]) -> tuple[int, ...]:
    """Return the batch sizes to try beside one."""
    if (fixed := fixed_batch(session)) is not None:
        missing.append(f"other batches: the model takes batches of {fixed} only")
        return ()
    possible = tuple(size for size in _BATCHES if size <= num_inputs)
    if len(possible) < len(_BATCHES):
        missing.append(f"batches of more than {num_inputs}: there are no more inputs")
    return tuple(dict.fromkeys((*possible, *((num_inputs,) if num_inputs > 1 else ()))))


def _other_levels(
    model: Path | bytes, session: Session, missing: list[str]
) -> Mapping[str, Session]:
    """Open the model at every graph level but the session's own."""
    sessions = {}
    for level in get_args(GraphLevel):
        if level == session.info.spec.graph_level:
            continue
        try:
            spec = dataclasses.replace(session.info.spec, graph_level=level)
            sessions[level] = open_session(model, spec)
        except ReportedError as error:  # such as nodes that need optimising to run there at all
            missing.append(f"graph level {level}: {error.what}")
    return sessions


def _stress(
    model: Path | bytes, golden: Golden, session: Session, missing: list[str]
) -> dict[str, Repetition]:
    """Run odd inputs, one by one and all in one batch, here and on another implementation.

    The other one is the CPU without optimisation, and with all of it for that session itself.
    """
    if not any(array.dtype.kind == "f" for array in each_input(golden.inputs[:1])):
        missing.append("stress inputs: integers have no steps small enough to measure rounding by")
        return {}
    if golden.exact is not None:
        missing.append("stress inputs: integer outputs have no reference there")
    if not golden.reference.shape[1]:
        return {}
    plain = SessionSpec(num_threads=session.info.spec.num_threads, graph_level="disabled")
    if session.info.spec == plain:
        plain = dataclasses.replace(plain, graph_level="all")
    try:
        other = open_session(model, plain)
    except ReportedError as error:
        missing.append(f"stress inputs: there is nothing to compare with. {error.what}")
        return {}
    odd = _odd_inputs(golden.inputs)
    if (extreme := _extreme_inputs(golden, other)) is None:
        missing.append("stress input extreme: none is both large and finite")
    else:
        odd["extreme"] = extreme
    together = _floats(
        session, golden, np.concatenate(list(odd.values())), batch_size=_LARGEST_BATCH
    )
    found, start = {}, 0
    for name, inputs in odd.items():
        expected_NK = _floats(other, golden, inputs, batch_size=1)
        alone_NK = _floats(session, golden, inputs, batch_size=1)
        rows_NK = together[start : start + len(inputs)]
        start += len(inputs)
        units_N = stress_units(golden, expected_NK, _steps(other, inputs, golden))
        found[name] = Repetition(
            outputs=np.concatenate([alone_NK, rows_NK]),
            expected=np.tile(expected_NK, (2, 1)),
            units=np.tile(units_N, 2),
        )
    return found


def _steps(
    session: Session, inputs: np.ndarray, golden: Golden
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the outputs a step ahead of each input and a step back, for each length of step.

    A step is constant over the sample, so that a constant sample stays one.
    """

    def moved(x: np.ndarray, ordinary: np.ndarray, *, step: float) -> np.ndarray:
        per_sample = tuple(range(1, x.ndim))
        sizes = np.abs(x.astype(np.float64)).max(axis=per_sample, keepdims=True)
        sizes = np.maximum(sizes, np.abs(ordinary).max())
        return np.asarray((x + step * sizes).astype(x.dtype))

    def outputs(step: float) -> np.ndarray:
        there = map_floats(functools.partial(moved, step=step), inputs, golden.inputs)
        return _floats(session, golden, there, batch_size=1)

    return [(outputs(step), outputs(-step)) for step in _STEPS]


def _odd_inputs(inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return inputs no larger than ordinary ones that take unusual ways through the arithmetic."""

    def constant(x: np.ndarray) -> np.ndarray:
        values = np.array([0.0, x.min(), x.max()], x.dtype)
        per_sample = (-1, *(1 for _ in x.shape[1:]))
        return np.broadcast_to(values.reshape(per_sample), (len(values), *x.shape[1:])).copy()

    return {
        "constant": map_floats(constant, inputs),
        "subnormal": _scaled(inputs[:1], _SUBNORMAL),
    }


def _extreme_inputs(golden: Golden, session: Session) -> np.ndarray | None:
    """Return one input, enlarged as far as the outputs stay finite by a margin; None if nowhere."""
    inputs = golden.inputs
    for log2 in _EXTREMES_LOG2:
        large = _scaled(inputs[:1], 2.0**log2)
        if np.isfinite(_floats(session, golden, large, batch_size=1)).all():
            extreme = _scaled(inputs[:1], 2.0 ** (log2 - _MARGIN_LOG2))
            return extreme if _largest(extreme) > _largest(inputs) else None
    return None


def _largest(inputs: np.ndarray) -> float:
    floats = [array for array in each_input(inputs) if array.dtype.kind == "f"]
    return max(float(np.abs(array).max()) for array in floats)


def _scaled(inputs: np.ndarray, largest: float) -> np.ndarray:
    """Return `inputs` times a number that makes `largest` the largest magnitude of each."""

    def scaled(x: np.ndarray) -> np.ndarray:
        exact = x.astype(np.float64)
        magnitude = np.abs(exact).max()
        return np.asarray((exact * (largest / magnitude if magnitude else 0.0)).astype(x.dtype))

    return map_floats(scaled, inputs)
