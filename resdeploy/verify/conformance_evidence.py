"""Conformance: the same results from a session in every way of calling it, judged.

An implementation is not one function: another batch size, another level of graph optimisation and
another range of values each take other kernels, and a verdict on one says nothing about the next.

The bound is no guess. Let e be the rounding error of float32 in one row of outputs, the noise unit
(`noise_units`), which is R's denominator. The end-to-end verdict passes an implementation within
4 e of the exact outputs, so that two of them, by the triangle inequality, are within

    ||y - y'|| <= ||y - y64|| + ||y' - y64|| <= 4 e + 4 e = 8 e

of each other. This is per row, while that verdict is on all rows together. Of single rows, correct
implementations reached 3.83 times the input's own draw of e (512 inputs of a trained ResNet-20).

One draw may be small by luck. Therefore e is never less than the network's relative noise, measured
over all golden inputs, times the norm of the row; nor less than u ||y||, u = 2^-24, the rounding of
the outputs themselves.

Stress inputs have no float64 reference, and their noise may be another: where an image is constant,
so are the rounding errors over all its positions, and no average makes them smaller. Their e is
measured, on another implementation and on that very input x. Along a short step d a network is
affine but for terms of second order, so that in exact arithmetic y(x + d) - 2 y(x) + y(x - d) is 0
next to rounding; in float32 three independent errors are left, of norm sqrt(1 + 4 + 1) e. The
median over three lengths of step discards one with a kink of a ReLU in it. On ordinary inputs this
gave 0.4 to 1.8 times the golden noise. It too is never less than the relative noise says.

Whether the same run again gives the same bits is reported and not judged: threads that add in
another order are within the noise.

Shapes: N inputs, K outputs, R runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resdeploy.schema.verdicts import Conformance
from resdeploy.verify.compare import level_infinities
from resdeploy.verify.end_to_end import NOISE_RATIO_LIMIT, float32_noise
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.precision import FLOAT32_ROUNDOFF

__all__ = ["CONFORMANCE_LIMIT", "Repetition", "judge_conformance", "noise_units", "stress_units"]

CONFORMANCE_LIMIT = 2 * NOISE_RATIO_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repetition:
    """The same inputs, computed in another way.

    Attributes:
        outputs: (N, K), the way to be judged.
        expected: (N, K), the way to be compared with.
        units: (N,), the noise unit of each row.
        wrong_integers: the reasons against its integer outputs.
    """

    outputs: NDArray[np.floating]
    expected: NDArray[np.floating]
    units: NDArray[np.float64]
    wrong_integers: tuple[str, ...] = ()


def noise_units(golden: Golden) -> NDArray[np.float64]:
    """Return the noise unit of each golden input: (N,)."""
    norms_N = np.linalg.norm(golden.finite, axis=1)
    return np.asarray(np.maximum(float32_noise(golden), _relative_noise(golden) * norms_N))


def stress_units(
    golden: Golden,
    expected_NK: NDArray[np.floating],
    steps: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> NDArray[np.float64]:
    """Return the noise unit of rows without a float64 reference: (N,); 0 for one not finite.

    Args:
        golden: where the network's relative noise is known from.
        expected_NK: y(x), of another implementation than the one to be judged.
        steps: for each step d, y(x + d) and y(x - d) of that implementation.
    """
    y_NK = _finite_rows(expected_NK)
    noise_SN = [
        np.linalg.norm(_finite_rows(ahead) - 2 * y_NK + _finite_rows(back), axis=1) / np.sqrt(6)
        for ahead, back in steps
    ]
    floor_N = _relative_noise(golden) * np.linalg.norm(y_NK, axis=1)
    units_N = np.maximum(np.median(noise_SN, axis=0), floor_N)
    return np.where(np.isfinite(expected_NK).all(axis=1), units_N, 0.0)


def judge_conformance(
    *,
    batches: Mapping[str, Repetition],
    levels: Mapping[str, Repetition],
    stress: Mapping[str, Repetition],
    runs: Sequence[NDArray[np.floating]],
    missing: tuple[str, ...] = (),
) -> Conformance:
    """Return the verdict on a session.

    Args:
        batches: by batch size, beside the results in batches of one.
        levels: by graph-optimisation level, beside the session's own results.
        stress: by kind of input. Where the expected row is not finite, nothing is asked.
        runs: R times the same run, (N, K) each.
        missing: the ways that could not be tried, with the reasons.
    """
    asked = {name: _where_expected_is_finite(one) for name, one in stress.items()}
    found = {
        "batch": {name: _distance(one) for name, one in batches.items()},
        "graph level": {name: _distance(one) for name, one in levels.items()},
        "stress input": {name: _distance(one) for name, one in asked.items() if len(one.units)},
    }
    overflown = tuple(
        f"stress input {name}: not finite on the CPU without optimisation either"
        for name, one in asked.items()
        if not len(one.units)
    )
    reasons = tuple(
        f"{what} {name}: a row is {distance:.3g} noise units off (at most {CONFORMANCE_LIMIT:g})"
        if np.isfinite(distance)
        else f"{what} {name}: a row is not finite, or not of the same shape"
        for what, distances in found.items()
        for name, distance in distances.items()
        if not distance <= CONFORMANCE_LIMIT
    )
    reasons += tuple(
        f"{what} {name}: {reason}"
        for what, repetitions in (("batch", batches), ("graph level", levels))
        for name, one in repetitions.items()
        for reason in one.wrong_integers
    )
    first, *others = runs
    return Conformance(
        batches=found["batch"],
        levels=found["graph level"],
        stress=found["stress input"],
        limit=CONFORMANCE_LIMIT,
        deterministic=all(first.tobytes() == other.tobytes() for other in others),
        max_run_to_run=max((_largest_difference(first, other) for other in others), default=0.0),
        reasons=reasons,
        missing=missing + overflown,
    )


def _finite_rows(values_NK: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rows in float64, those that are not finite as 0."""
    finite_N = np.isfinite(values_NK).all(axis=1)
    return np.where(finite_N[:, None], values_NK, 0.0).astype(np.float64)


def _relative_noise(golden: Golden) -> float:
    norm = float(np.linalg.norm(golden.finite))
    noise = float(np.linalg.norm(float32_noise(golden)))
    return max(noise / norm if norm else 0.0, FLOAT32_ROUNDOFF)


def _distance(one: Repetition) -> float:
    """Return the largest distance of a row from the expected one, in its noise units."""
    outputs_NK, expected_NK = (v.astype(np.float64) for v in (one.outputs, one.expected))
    if outputs_NK.shape != expected_NK.shape:
        return float("inf")
    outputs_NK, expected_NK = level_infinities(outputs_NK, expected_NK)
    if not (np.isfinite(outputs_NK).all() and np.isfinite(expected_NK).all()):
        return float("inf")
    distances_N = np.linalg.norm(outputs_NK - expected_NK, axis=1)
    ratios = [
        0.0 if distance == 0 else distance / unit if unit else float("inf")
        for distance, unit in zip(distances_N.tolist(), one.units.tolist(), strict=True)
    ]
    return max(ratios, default=0.0)


def _where_expected_is_finite(one: Repetition) -> Repetition:
    finite_N = np.isfinite(one.expected).all(axis=1)
    return Repetition(
        outputs=one.outputs[finite_N], expected=one.expected[finite_N], units=one.units[finite_N]
    )


def _largest_difference(first_NK: NDArray[np.floating], other_NK: NDArray[np.floating]) -> float:
    """Return the largest difference of an element; inf where one is not finite in only one."""
    same = (first_NK == other_NK) | (np.isnan(first_NK) & np.isnan(other_NK))
    finite = np.isfinite(first_NK) & np.isfinite(other_NK)
    if not (same | finite).all():
        return float("inf")
    pair = (np.where(same, 0, v).astype(np.float64) for v in (first_NK, other_NK))
    return float(np.max(np.abs(np.subtract(*pair)), initial=0.0))
