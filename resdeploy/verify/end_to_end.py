"""End-to-end verdict on outputs by the noise of the claimed arithmetic: no tolerance to guess.

With y the candidate's outputs, y64 those of the model in float64, y32 those of PyTorch eager in
float32, e = y - y64, N inputs of K outputs:

R     ||e|| / ||y32 - y64||, norms over everything. Correct float32 implementations, in any
      order of summation, reached 1.91 over 11 ImageNet networks and 8 implementations. At most 4.
      ||y32 - y64|| is the noise of one order of summation, PyTorch's, in one draw. So the
      denominator is never below
      - u ||y64||, u = 2^-24, the rounding of the outputs themselves: a network so small that
        PyTorch makes next to no error must not make the last bit a failure;
      - a quarter of the errors drawn for sums in whatever order (`export/variance.py`): R <= 4
        then asks for ||e|| to be within them. PyTorch adds the 4,800 values of a map in pairs, a
        runtime one after the other; and where few outputs make all of the noise, one draw of it may
        be small by luck. For fewer than 27 inputs it is more, see `_few`.
z     e / sigma, with sigma the deviation propagated through the network (`export/variance.py`):
      root mean square at most 1 (more for errors of few degrees of freedom, see `_z_rms_limit`),
      and no |z| above 4. Correct ones reached 0.51 and 2.6 (9 networks,
      11 implementations): there the largest of even 1e9 normal values stays below 4, so the limit
      need not grow with N K.
top-1 a changed prediction is excused where the reference's margin is below 4 deviations of the
      difference of the two outputs: 4 sqrt(sigma_i^2 + sigma_j^2).
T     N max(0, ||mean e|| - a)^2 / mean ||e||^2, for N >= 128: noise gives about 1, an offset N. It
      sees systematic faults below the noise floor. A correctly rounded weight is one, too: a is 3
      times the shift of the mean by rounding every parameter and every sum of equal terms, as in a
      channel that is constant (`export/precision_noise.py`). Correct
      ones stayed at T = 0, on networks whose T without a was up to 31.
      The limit is 5, and more for errors of few degrees of freedom; see `_systematic_limit`.

For another precision than float32 the yardstick is that precision's noise, with the same factor of
4; z and T are those of float32 and are left out. NaN always fails, and so does an infinity that is
not the reference's.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError
from resdeploy.schema.sessions import PrecisionName
from resdeploy.schema.verdicts import Comparison, Precision
from resdeploy.verify.compare import (
    error_norms,
    level_infinities,
    predictions,
    tensor_diff,
    top1_agreement,
)
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.precision import (
    FLOAT32_ROUNDOFF,
    PRECISION_FACTOR,
    RunFacts,
    advice,
    find_precision,
    precision_levels,
    title,
)

__all__ = [
    "FEWEST_FOR_SYSTEMATIC",
    "NOISE_RATIO_LIMIT",
    "SYSTEMATIC_LIMIT",
    "Z_MAX_LIMIT",
    "Z_RMS_LIMIT",
    "chi_square_quantile",
    "float32_noise",
    "judge_end_to_end",
]

NOISE_RATIO_LIMIT = PRECISION_FACTOR
Z_RMS_LIMIT = 1.0
Z_MAX_LIMIT = 4.0
SYSTEMATIC_LIMIT = 5.0
FEWEST_FOR_SYSTEMATIC = 128

_ALLOWED_WEIGHT_NOISE = 3.0
_MARGIN_SIGMAS = 4.0

# Of a standard normal: one in a million is above.
_ONE_IN_A_MILLION = 4.753

# Below it a rounding is absolute, half of the smallest number: u 2^-126.
_SMALLEST_NORMAL = 2.0**-126

# Changed predictions that are listed one by one.
_MOST_LISTED = 3


def float32_noise(golden: Golden) -> NDArray[np.float64]:
    """Return the noise of float32 for each golden input, R's denominator: (N,)."""
    norms_N = np.linalg.norm(golden.finite, axis=1)
    drawn = (golden.info.drawn_noise or 0.0) * _few(len(norms_N)) / NOISE_RATIO_LIMIT
    roundings_N = np.linalg.norm(_rounding(golden.finite), axis=1)
    return np.asarray(np.maximum.reduce([golden.noise_l2, drawn * norms_N, roundings_N]))


def judge_end_to_end(
    outputs_NK: np.ndarray,
    golden: Golden,
    *,
    precision: PrecisionName = "float32",
    facts: RunFacts | None = None,
) -> Comparison:
    """Return the verdict on a candidate's outputs for the golden inputs.

    Args:
        outputs_NK: (N, K), the candidate's.
        golden: the reference, with the yardsticks.
        precision: the arithmetic that the candidate is said to compute in.
        facts: about its session.

    Raises:
        ResdeployError: the candidate's outputs have another shape, or the reference itself is NaN
            and so proves nothing.
    """
    reference_NK = golden.reference
    if outputs_NK.shape != reference_NK.shape:
        raise ResdeployError(
            f"The candidate's outputs have shape {outputs_NK.shape}, "
            f"the reference's {reference_NK.shape}.",
            fix="check that model and reference are the same network",
        )
    if np.isnan(reference_NK).any():
        raise ResdeployError(
            "The reference outputs are NaN, so nothing can be compared with them.",
            fix="check the checkpoint for NaN weights and the inputs for NaN values",
        )
    facts = facts or RunFacts()
    given_NK = outputs_NK
    outputs_NK, reference_NK = level_infinities(outputs_NK, reference_NK)
    errors_N = error_norms(outputs_NK, reference_NK)
    noise_N = float32_noise(golden)
    ratio = _ratio(float(np.linalg.norm(errors_N)), float(np.linalg.norm(noise_N)))
    diff = tensor_diff(outputs_NK, reference_NK)
    reference_norm = float(np.linalg.norm(reference_NK))
    levels = precision_levels(golden.info, _ratio(float(np.linalg.norm(noise_N)), reference_norm))
    yardstick = levels.get(precision)
    arithmetic = Precision(
        claimed=precision,
        found=find_precision(ratio, levels, facts),
        ratio=math.inf if yardstick is None else _ratio(ratio, yardstick),
    )
    by_size = Comparison(
        diff=diff,
        noise_rel_l2=_ratio(float(np.linalg.norm(golden.noise_l2)), reference_norm),
        noise_ratio=ratio,
        worst_input_ratio=max(map(_ratio, errors_N.tolist(), noise_N.tolist())),
        noise_ratio_limit=NOISE_RATIO_LIMIT,
        top1_agreement=top1_agreement(given_NK, golden.reference),
        reasons=_size_reasons(ratio, arithmetic, facts),
        precision=arithmetic,
    )
    if diff.num_nonfinite:
        unlike = ", or finite, unlike the reference" if np.isinf(golden.reference).any() else ""
        comparison = replace(
            by_size,
            reasons=(f"{diff.num_nonfinite} outputs are NaN or infinite{unlike}",),
            missing=("z, T, top-1: the outputs are not finite",),
        )
    else:
        comparison = _with_figures(by_size, given_NK, golden, arithmetic)
    if golden.info.precision_noise is not None:
        return comparison
    typical = "the noise of lower precisions: not in the golden file, taken as a ResNet-18's"
    return replace(comparison, missing=(*comparison.missing, typical))


def _size_reasons(ratio: float, arithmetic: Precision, facts: RunFacts) -> tuple[str, ...]:
    """Return the reasons against an error of this size, and the arithmetic it resembles."""
    claimed, found = arithmetic.claimed, arithmetic.found
    if arithmetic.ratio <= PRECISION_FACTOR:
        return ()
    if math.isinf(arithmetic.ratio) and math.isfinite(ratio) and claimed != "float32":
        return (f"{title(claimed)} arithmetic overflows in this network",)
    noise = f"the noise of {title(claimed)} arithmetic"
    reasons = [f"the error is {arithmetic.ratio:.3g} times {noise} (at most {PRECISION_FACTOR:g})"]
    if found not in ("unknown", claimed):
        like = f"the error is that of {title(found)} arithmetic (R = {ratio:.2g})"
        hint = advice(claimed, found, facts)
        reasons.append(f"{like}, not of {title(claimed)}" + (f"; {hint}" if hint else ""))
    return tuple(reasons)


def _with_figures(
    by_size: Comparison, outputs_NK: np.ndarray, golden: Golden, arithmetic: Precision
) -> Comparison:
    """Return a comparison with everything beside the size of the error: z, T and top-1."""
    reference_NK, precision = golden.finite, arithmetic.claimed
    errors_NK = level_infinities(outputs_NK, golden.reference)[0].astype(np.float64) - reference_NK
    reasons, missing = list(by_size.reasons), list(by_size.missing)
    z_rms = z_max = systematic = limit = None
    is_float32 = precision == "float32"
    sigma_NK: NDArray[np.float64] | None = None
    if not is_float32:
        missing.append(f"z and T: they are those of float32, and {title(precision)} was claimed")
        sigma_NK = _sigma_of_precision(golden, arithmetic, errors_NK)
    elif golden.sigma is None:
        missing.append(f"z: {golden.info.sigma_missing or 'the golden file has no sigma'}")
    else:
        num_known = len(golden.sigma)
        # An output is rounded once itself in any case.
        rounding_NK = _rounding(reference_NK)
        sigma_MK = np.maximum(golden.sigma, rounding_NK[:num_known])
        z_MK = errors_NK[:num_known] / sigma_MK
        z_rms, z_max = float(np.sqrt(np.mean(z_MK**2))), float(np.abs(z_MK).max())
        reasons += _z_reasons(z_MK, z_rms, z_max, golden)
        # For the other inputs, the most that it was for these.
        others = np.broadcast_to(sigma_MK.max(axis=0), reference_NK[num_known:].shape)
        sigma_NK = np.concatenate([sigma_MK, np.maximum(others, rounding_NK[num_known:])])
        if num_known < len(reference_NK):
            missing.append(f"z beyond the first {num_known} inputs")
    if is_float32:
        systematic, limit, why_not = _systematic(errors_NK, golden)
        if why_not:
            missing.append(f"T: {why_not}")
        elif systematic is not None and limit is not None and not systematic <= limit:
            reasons.append(
                f"part of the error is the same for every input: T = {systematic:.3g} (at most "
                f"{limit:.3g}), which neither noise nor rounded weights explain"
            )
    changed = np.flatnonzero(predictions(outputs_NK) != predictions(golden.reference))
    if len(changed) and sigma_NK is None:
        missing.append("whether the changed predictions are excused: that takes sigma")
    elif sigma_NK is not None:
        reasons += _top1_reasons(changed, outputs_NK, golden.reference, sigma_NK)
    return replace(
        by_size,
        z_rms=z_rms,
        z_max=z_max,
        systematic=systematic,
        systematic_limit=limit,
        num_changed_top1=len(changed),
        reasons=tuple(reasons),
        missing=tuple(missing),
    )


def _rounding(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the most that float32 rounds each value off by."""
    return np.asarray(FLOAT32_ROUNDOFF * np.maximum(np.abs(values), _SMALLEST_NORMAL))


def _z_reasons(z_NK: NDArray[np.float64], z_rms: float, z_max: float, golden: Golden) -> list[str]:
    reasons = []
    if not z_rms <= (limit := _z_rms_limit(z_NK)):
        reasons.append(
            f"the error is {z_rms:.3g} times the propagated deviation of float32 arithmetic "
            f"(at most {limit:.3g})"
        )
    if not z_max <= Z_MAX_LIMIT:
        n, k = np.unravel_index(int(np.abs(z_NK).argmax()), z_NK.shape)
        reasons.append(
            f"{golden.info.place(int(k))} of input {n} is {z_max:.3g} propagated deviations off "
            f"(at most {Z_MAX_LIMIT:g})"
        )
    return reasons


def _z_rms_limit(z_NK: NDArray[np.float64]) -> float:
    """Return the root mean square of z that float32's own errors may have.

    The error of one output for one input has one degree of freedom: its square is no mean. Errors
    of covariance C over the K outputs have (tr C)^2 / tr C^2 for each input (Satterthwaite), tr C^2
    being the mean of (z_n . z_m)^2 over pairs of inputs. Errors that are the same for all, as
    where outputs are constant, count once: their N ||mean z||^2 is N tr C, not tr C.
    """
    num_inputs, num_outputs = z_NK.shape
    gram_NN = z_NK @ z_NK.T
    trace, total = float(np.trace(gram_NN)), float(gram_NN.sum())
    square = float(np.sum(gram_NN**2)) - float(np.sum(np.diag(gram_NN) ** 2))
    if trace == 0:
        return Z_RMS_LIMIT
    per_input = float(num_outputs)
    if num_inputs > 1 and square > 0:
        pairs = num_inputs * (num_inputs - 1)
        per_input = min(max((trace / num_inputs) ** 2 / (square / pairs), 1.0), num_outputs)
    return Z_RMS_LIMIT * _few(max(1.0, num_inputs * per_input / max(1.0, total / trace)))


def _few(nu: float) -> float:
    """Return by how much the root mean square of nu errors may exceed the one that is modelled.

    A rounding is taken for its bound u, which is sqrt(3) of its deviation: so far, the quantile of
    chi-square / nu that is exceeded once in a million may be above 1.
    """
    return math.sqrt(max(1.0, chi_square_quantile(nu) / 3))


def chi_square_quantile(nu: float) -> float:
    """Return the chi-square / nu exceeded once in a million (Wilson & Hilferty's formula)."""
    spread = 2 / (9 * nu)
    return float((1 - spread + _ONE_IN_A_MILLION * math.sqrt(spread)) ** 3)


def _top1_reasons(
    changed_M: NDArray[np.intp],
    outputs_NK: np.ndarray,
    reference_NK: NDArray[np.float64],
    sigma_NK: NDArray[np.float64],
) -> list[str]:
    """Return a reason for each changed prediction that the reference's margin does not excuse."""
    right_M, wrong_M = predictions(reference_NK[changed_M]), predictions(outputs_NK[changed_M])
    if reference_NK.shape[1] == 1:  # the other class is 0
        margin_M, spread_M = np.abs(reference_NK[changed_M, 0]), sigma_NK[changed_M, 0]
    else:
        margin_M = reference_NK[changed_M, right_M] - reference_NK[changed_M, wrong_M]
        spread_M = np.hypot(sigma_NK[changed_M, right_M], sigma_NK[changed_M, wrong_M])
    unexcused = np.flatnonzero(~(margin_M <= _MARGIN_SIGMAS * spread_M))
    reasons = [
        f"the prediction for input {changed_M[m]} is {wrong_M[m]}, not {right_M[m]}, whose margin "
        f"of {margin_M[m]:.3g} no rounding explains (at most {_MARGIN_SIGMAS * spread_M[m]:.3g})"
        for m in unexcused[:_MOST_LISTED]
    ]
    if len(unexcused) > _MOST_LISTED:
        reasons.append(f"so are the predictions for {len(unexcused) - _MOST_LISTED} more inputs")
    return reasons


def _sigma_of_precision(
    golden: Golden, arithmetic: Precision, errors_NK: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Return the deviation of outputs in the claimed precision: its noise, spread over each row.

    The noise is the candidate's own, or less: arithmetic.ratio is how many times the claimed
    precision's noise the candidate's error is.
    """
    if not 0 < arithmetic.ratio < math.inf:
        return None
    num_outputs = golden.reference.shape[1]
    relative = float(np.linalg.norm(errors_NK) / np.linalg.norm(golden.finite))
    rows_N = np.linalg.norm(golden.finite, axis=1) * relative / arithmetic.ratio
    sigma_N: NDArray[np.float64] = rows_N / math.sqrt(num_outputs)
    return np.repeat(sigma_N[:, None], num_outputs, axis=1)


def _systematic(
    errors_NK: NDArray[np.float64], golden: Golden
) -> tuple[float | None, float | None, str]:
    """Return T and its limit, or why there are none."""
    num_inputs = len(errors_NK)
    if num_inputs < FEWEST_FOR_SYSTEMATIC:
        return None, None, f"takes {FEWEST_FOR_SYSTEMATIC} inputs, and there are {num_inputs}"
    weight_noise = golden.info.weight_noise_l2
    if weight_noise is None:
        return None, None, "the golden file does not say what rounded weights do to the mean"
    mean_K = errors_NK.mean(axis=0)
    # The last bit of the outputs may be the same for all inputs, where they are nearly the same.
    floor = FLOAT32_ROUNDOFF * float(np.linalg.norm(golden.finite.mean(axis=0)))
    allowed = _ALLOWED_WEIGHT_NOISE * max(weight_noise, floor)
    excess = max(0.0, float(np.linalg.norm(mean_K)) - allowed)
    mean_square = float(np.mean(np.sum(errors_NK**2, axis=1)))
    return (
        _ratio(num_inputs * excess**2, mean_square),
        _systematic_limit(errors_NK - mean_K),
        "",
    )


def _systematic_limit(centred_NK: NDArray[np.float64]) -> float:
    """Return the T that pure noise exceeds once in a million, but at least 5.

    For independent errors of covariance C, N ||mean e||^2 is a sum of chi-squares weighted by C's
    eigenvalues: of mean tr C and (Satterthwaite) nu = (tr C)^2 / tr C^2 degrees of freedom. Ten
    outputs whose errors go together have few, and T is then not close to 1 (one has nu = 1: limit
    27).
    """
    num_inputs, num_outputs = centred_NK.shape
    # The smaller of the two Gram matrices: both have C's eigenvalues.
    tall = num_inputs > num_outputs
    gram = centred_NK.T @ centred_NK if tall else centred_NK @ centred_NK.T
    square = float(np.sum(gram**2))
    if square == 0:
        return SYSTEMATIC_LIMIT
    return max(SYSTEMATIC_LIMIT, chi_square_quantile(float(np.trace(gram)) ** 2 / square))


def _ratio(numerator: float, denominator: float) -> float:
    """Return numerator / denominator, with 0 / 0 = 0: no error where there is no noise."""
    if denominator == 0:
        return 0.0 if numerator == 0 else float("inf")
    return numerator / denominator
