"""Quantisation: the request, the trials, the proof."""

from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.codec import Judged, Record, record

QuantizedPrecision = Literal["int8", "float16", "bfloat16"]
CalibrationMethod = Literal["minmax", "percentile", "entropy", "mse"]
Choice = Literal["auto", "on", "off"]
IntegerTypes = Literal["u8s8", "s8s8", "s8s8-symmetric"]


@record
class QuantSpec(Record):
    """A request to lower a model's precision.

    Attributes:
        method: calibration of ranges; "auto" measures all methods.
        types: of activations and weights, in int8; "u8s8" on x86, "s8s8" on ARM, and
            "s8s8-symmetric" (zero points of 0) for TensorRT.
        reduce_range: weights of 7 bits, for CPUs that add products in 16 bits.
        equalize: give the channels between two layers like ranges (SmoothQuant).
        pixel_grid: let the input's integers be the 256 values of its pixels.
        refine: give each tensor the range that the outputs are best with.
        rounding: round weights so that their errors cancel on calibration data (GPTQ).
        bias_correction: take the mean error of the weights out of the biases.
        max_flips: the fraction of held-out predictions that may change.
        max_error: the largest relative error of the outputs, None for any.
        keep_io: leave the model's inputs and outputs in float32 (float16 and bfloat16).
    """

    precision: QuantizedPrecision = "int8"
    method: Literal["auto"] | CalibrationMethod = "auto"
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

    `error` is ||candidate - reference|| / ||reference|| over all outputs of all inputs. A flip is a
    prediction (largest output) that changed, and a margin the lead of the reference's first output
    over its second: the largest of the flips, 0 without any, and the median of all inputs.
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
    """One trial, its measured quality, and the decision to keep it."""

    stage: str
    name: str
    quality: QuantQuality
    kept: bool


@record
class KeptFloat(Record):
    """A layer that stays in float32, with the measurement as the reason."""

    node: str
    op: str
    reason: str


@record
class IntegerProof(Record):
    """The operators of the runtime's optimised graph, by count.

    `left_in_float` has layers and residual additions that compute in float32, unasked.
    """

    runtime: str
    operators: Mapping[str, int]
    left_in_float: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if nothing stayed in float unasked."""
        return not self.left_in_float


@record
class QuantReport(Judged):
    """The outcome of a quantisation.

    `spec` is the request, with the choices that this machine decides filled in; `output` the file
    that was written; `num_calibration` counts the samples that the ranges come from; `quality` is
    of the result, by the runtime `judged_on`; `proof` has the operators that the runtime runs in
    int8; `saturating` are layers whose 8-bit weights overflow 16-bit sums on a CPU without VNNI.
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
