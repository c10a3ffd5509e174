"""What a quantisation asks for, tried, kept, and proved."""

from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.codec import Record, record

__all__ = [
    "CalibrationMethod",
    "Choice",
    "IntegerProof",
    "IntegerTypes",
    "KeptFloat",
    "QuantQuality",
    "QuantReport",
    "QuantSpec",
    "QuantTrial",
    "QuantizedPrecision",
]

QuantizedPrecision = Literal["int8", "float16", "bfloat16"]
CalibrationMethod = Literal["minmax", "percentile", "entropy", "mse"]
Choice = Literal["auto", "on", "off"]
IntegerTypes = Literal["u8s8", "s8s8", "s8s8-symmetric"]


@record
class QuantSpec(Record):
    """A request to lower a model's precision.

    Attributes:
        precision: what to lower it to.
        method: how ranges are found from what calibration saw; "auto" measures all.
        types: of activations and weights, in int8; "u8s8" on x86, "s8s8" on ARM, and
            "s8s8-symmetric" (zero points of 0) for TensorRT.
        reduce_range: weights of 7 bits, for CPUs that add products in 16 bits.
        equalize: give the channels between two layers like ranges (SmoothQuant).
        pixel_grid: let the input's integers be the 256 values of its pixels.
        refine: give each tensor the range that the outputs are best with.
        rounding: round weights so that their errors cancel on calibration data (GPTQ).
        bias_correction: take the mean error of the weights out of the biases.
        max_flips: which fraction of held-out predictions may change.
        max_error: which relative error the outputs may have, None for any.
        keep_io: leave the model's inputs and outputs in float32 (float16 and bfloat16).
    """

    precision: QuantizedPrecision = "int8"
    method: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    types: IntegerTypes = "u8s8"
    reduce_range: bool = False
    equalize: Choice = "auto"
    pixel_grid: Choice = "auto"
    refine: Choice = "auto"
    rounding: Choice = "auto"
    bias_correction: Choice = "auto"
    max_flips: float = 0.01
    max_error: float | None = None
    keep_io: bool = True


@record
class QuantQuality(Record):
    """The outputs of a lowered model beside those of the model, on held-out inputs.

    Attributes:
        error: ||candidate - reference|| / ||reference|| over all outputs of all inputs.
        num_inputs: how many.
        num_flips: predictions (largest output) that changed.
        largest_flip_margin: of those, by how much the reference's first output led its second, at
            most; 0 without flips.
        median_margin: the same lead, in the middle of all inputs.
    """

    error: float
    num_inputs: int
    num_flips: int
    largest_flip_margin: float = 0.0
    median_margin: float = 0.0

    @property
    def agreement(self) -> float:
        """The fraction of predictions that stayed."""
        return 1 - self.num_flips / self.num_inputs


@record
class QuantTrial(Record):
    """One thing that was tried, what it measured, and whether it was kept."""

    stage: str
    name: str
    quality: QuantQuality
    kept: bool


@record
class KeptFloat(Record):
    """A layer that stays in float32, and the measurement that says why."""

    node: str
    op: str
    reason: str


@record
class IntegerProof(Record):
    """What the runtime really runs: the operators of its optimised graph.

    Attributes:
        runtime: the runtime that optimised it.
        operators: how many of each.
        left_in_float: layers and residual additions that compute in float32, unasked.
    """

    runtime: str
    operators: Mapping[str, int]
    left_in_float: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing stayed in float that was not to."""
        return not self.left_in_float


@record
class QuantReport(Record):
    """What quantisation did.

    Attributes:
        spec: what was asked for, with nothing left to choose where this machine decides it.
        output: the file that was written, None if none was.
        calibration: what was calibrated on.
        num_calibration: samples that the ranges come from.
        quality: of the result, on samples that the ranges do not come from.
        judged_on: what computed the result's outputs.
        trials: everything tried, in order.
        kept_float: layers that stay in float32.
        proof: for int8, what the runtime runs.
        saturating: layers whose 8-bit weights overflow 16-bit sums on a CPU without VNNI.
        warnings: what to know about the calibration data and the machine.
        reasons: why the result is not good enough; empty if it is.
    """

    spec: QuantSpec
    output: str | None
    calibration: str
    num_calibration: int
    quality: QuantQuality
    judged_on: str
    trials: tuple[QuantTrial, ...] = ()
    kept_float: tuple[KeptFloat, ...] = ()
    proof: IntegerProof | None = None
    saturating: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the budget holds and the runtime runs what it should."""
        return not self.reasons
