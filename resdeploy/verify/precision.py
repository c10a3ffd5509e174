"""The arithmetic named by the size of an error.

Float32 is where R <= 4 (see `end_to_end`). Beyond, the error is compared with the noise of each
precision in this very network, as simulated for the golden file, and named after the nearest on a
log scale, if within a factor of 4: real bfloat16 on a CPU was 1.0 to 1.2 times its simulation, and
the nearest two levels that arithmetic can tell apart (int8 and bfloat16) are a factor of 3 to 8
apart. TF32 and float16 round to the same 11 bits: their levels differ by less than implementations
do, so between these two the facts about the session decide.

Golden files without such levels are read by those of a ResNet-18, in units of R: TF32 1.4e3,
float16 1.0e3, bfloat16 1.1e4, int8 3.5e4.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from resdeploy.schema.sessions import PrecisionName
from resdeploy.schema.verdicts import GoldenInfo

__all__ = [
    "FLOAT32_ROUNDOFF",
    "PRECISION_FACTOR",
    "UNIT_ROUNDOFF",
    "RunFacts",
    "advice",
    "find_precision",
    "precision_levels",
    "title",
]

# A precision's own noise may be missed by this factor either way, as float32's by R <= 4.
PRECISION_FACTOR = 4.0

# Of the operands of a product: with 10 bits of mantissa in TF32 and float16, 7 in bfloat16.
UNIT_ROUNDOFF: Mapping[PrecisionName, float] = {
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}
FLOAT32_ROUNDOFF = UNIT_ROUNDOFF["float32"]

_TYPICAL_RATIOS: Mapping[PrecisionName, float] = {
    "float32": 1.0,
    "tf32": 1.4e3,
    "float16": 1.0e3,
    "bfloat16": 1.1e4,
    "int8": 3.5e4,
}

_TITLES: Mapping[PrecisionName, str] = {"tf32": "TF32", "unknown": "no known"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Facts about a session that its numbers do not show.

    Attributes:
        fast: the arithmetic that its options let stand in for float32; None where there is none.
        advice: the way to switch that one off.
        widens_float16: whether its provider computes float16 models in float32.
    """

    fast: PrecisionName | None = None
    advice: str = ""
    widens_float16: bool = False


def title(precision: PrecisionName) -> str:
    """Return a precision's name as it is written."""
    return _TITLES.get(precision, precision)


def precision_levels(info: GoldenInfo, float32_rel_l2: float) -> Mapping[PrecisionName, float]:
    """Return the noise of each precision in units of R, that is, over float32's on all inputs.

    A precision that makes this network overflow has none.
    """
    noise = info.precision_noise
    if noise is None or not 0 < float32_rel_l2 < math.inf:
        return _TYPICAL_RATIOS
    simulated = {name: getattr(noise, name) for name in _TYPICAL_RATIOS if name != "float32"}
    levels: dict[PrecisionName, float] = {"float32": 1.0}
    return levels | {name: level / float32_rel_l2 for name, level in simulated.items() if level}


def find_precision(
    noise_ratio: float, levels: Mapping[PrecisionName, float], facts: RunFacts
) -> PrecisionName:
    """Return the precision whose noise is nearest to an error; "unknown" if none is near.

    Args:
        noise_ratio: the R of the error; up to float32's limit it is float32.
        levels: the R of each precision.
        facts: about the session, to decide between two that round alike.
    """
    if noise_ratio <= PRECISION_FACTOR:
        return "float32"
    if not math.isfinite(noise_ratio):
        return "unknown"
    distances = {
        name: abs(math.log(noise_ratio / level))
        for name, level in levels.items()
        if name != "float32"
    }
    nearest = min(distances, key=distances.__getitem__, default=None)
    if nearest is None or distances[nearest] > math.log(PRECISION_FACTOR):
        return "unknown"
    if nearest in ("tf32", "float16"):
        return "tf32" if facts.fast == "tf32" else "float16"
    return nearest


def advice(claimed: PrecisionName, found: PrecisionName, facts: RunFacts) -> str:
    """Return the advice on an error of another precision than was claimed, "" if none."""
    if found == facts.fast:
        return facts.advice
    if found == "float16" and facts.widens_float16 and claimed == "float32":
        return "this provider computes in float32: with float16 weights"
    return ""
