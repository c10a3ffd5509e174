"""Judge outputs end to end by the noise ratio: no tolerance to guess.

The yardstick is the noise that float32 arithmetic itself makes in this network on these inputs:

    R = ||y - y64|| / ||y32 - y64||

with y the candidate's outputs, y64 those of the model in float64, y32 those of PyTorch eager in
float32, norms over all N inputs. Correct float32 implementations, whatever their order of
summation, reached R <= 1.91 over 11 networks and 8 implementations; TF32 is near 1.4e3, bfloat16
near 1.1e4. A candidate passes if R <= 4.

The denominator is never taken below u ||y64||, u = 2^-24, the rounding of the outputs themselves:
a network so small that PyTorch makes next to no error must not turn the last bit into a failure.
"""

import numpy as np

from resdeploy.compare import error_norms, tensor_diff, top1_agreement
from resdeploy.errors import ResdeployError
from resdeploy.golden_file import Golden
from resdeploy.schema import Comparison

__all__ = ["NOISE_RATIO_LIMIT", "judge_end_to_end"]

NOISE_RATIO_LIMIT = 4.0
_UNIT_ROUNDOFF = 2.0**-24


def judge_end_to_end(outputs_NK: np.ndarray, golden: Golden) -> Comparison:
    """Return the verdict on a candidate's outputs for the golden inputs.

    Args:
        outputs_NK: (N, K), what the candidate computed.
        golden: the reference, with the yardstick's error per input.

    Raises:
        ResdeployError: the candidate's outputs have another shape, or the reference itself is not
            finite and so proves nothing.
    """
    reference_NK = golden.reference
    if outputs_NK.shape != reference_NK.shape:
        raise ResdeployError(
            f"The candidate's outputs have shape {outputs_NK.shape}, "
            f"the reference's {reference_NK.shape}.",
            fix="check that model and reference are the same network",
        )
    if not np.isfinite(reference_NK).all():
        raise ResdeployError(
            "The reference outputs are not finite, so nothing can be compared with them.",
            fix="check the checkpoint for NaN weights and the inputs for NaN values",
        )
    errors_N = error_norms(outputs_NK, reference_NK)
    floor_N = _UNIT_ROUNDOFF * np.linalg.norm(reference_NK, axis=1)
    noise_N = np.maximum(golden.noise_l2, floor_N)
    ratio = _ratio(float(np.linalg.norm(errors_N)), float(np.linalg.norm(noise_N)))
    diff = tensor_diff(outputs_NK, reference_NK)
    reference_norm = float(np.linalg.norm(reference_NK))
    return Comparison(
        diff=diff,
        noise_rel_l2=_ratio(float(np.linalg.norm(golden.noise_l2)), reference_norm),
        noise_ratio=ratio,
        worst_input_ratio=max(map(_ratio, errors_N.tolist(), noise_N.tolist())),
        noise_ratio_limit=NOISE_RATIO_LIMIT,
        top1_agreement=top1_agreement(outputs_NK, reference_NK),
        reasons=_reasons(ratio, diff.num_nonfinite),
    )


def _reasons(ratio: float, num_nonfinite: int) -> tuple[str, ...]:
    if num_nonfinite:
        return (f"{num_nonfinite} outputs are NaN or infinite",)
    if not ratio <= NOISE_RATIO_LIMIT:
        reason = f"the error is {ratio:.3g} times the noise of float32 arithmetic"
        return (f"{reason} (at most {NOISE_RATIO_LIMIT:g})",)
    return ()


def _ratio(numerator: float, denominator: float) -> float:
    """Return numerator / denominator, with 0 / 0 = 0: no error where there is no noise."""
    if denominator == 0:
        return 0.0 if numerator == 0 else float("inf")
    return numerator / denominator
