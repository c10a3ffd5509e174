"""Quantisation: the request, the trials, the proof."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from resdeploy.schema.codec import Judged, Record, record

QuantizedPrecision = Literal["int8", "float16", "bfloat16"]
CalibrationMethod = Literal["minmax", "percentile", "entropy", "mse"]
Choice = Literal["auto", "on", "off"]
IntegerTypes = Literal["u8s8", "s8s8", "s8s8-symmetric"]
OutputKind = Literal["scores", "logit", "classes", "map", "embedding", "regression"]


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
        max_flips: the fraction of predictions that may change; None for the default of the kind.
        max_drop: the drop in accuracy that is allowed, as a fraction, likewise.
        max_error: the largest relative error of an output, likewise.
        output_kinds: what outputs are, by name; "" stands for those not named.
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
    max_flips: float | None = None
    max_drop: float | None = None
    max_error: float | None = None
    output_kinds: Mapping[str, OutputKind] = dataclasses.field(default_factory=dict)
    keep_io: bool = True


@record
class QuantBudget(Record):
    """The limits that a result is held to: those asked for, and the defaults of its outputs.

    Fractions, as in `QuantSpec`; None for what is not limited.
    """

    max_flips: float | None = None
    max_drop: float | None = None
    max_error: float | None = None


@record
class JudgedOutput(Record):
    """An output, what it is judged as, and the reason: stated, or how it was detected.

    `threshold` is that of a `logit`'s decision.
    """

    name: str
    judged_as: OutputKind
    because: str
    threshold: float = 0.0

    @property
    def decides(self) -> bool:
        """True if its values are decisions, or become some."""
        return self.judged_as in ("scores", "logit", "classes")


@record
class OutputQuality(Record):
    """One output of a lowered model beside that of the model, on the held-out inputs.

    Attributes:
        name: of the output.
        judged_as: its kind.
        num_decisions: those for one input: 1, or the places of a map of classes.
        error: ||candidate - reference|| / ||reference||; None of integers.
        worst_error: that of the input with the largest.
        changed: decisions that changed, summed over inputs as the fraction of each: of one decision
            for an input, their number. None where nothing is decided, as all that follows.
        changed_at_most: the one-sided 95 % bound of that fraction, for inputs like these.
        lost: decisions that were right by their labels and are not any more, likewise.
        lost_at_most: the bound of that fraction, and so of the drop in accuracy.
        accuracy: the fraction that is right by the labels; None without labels.
        accuracy_before: that of the float32 model.
        iou: mean over the classes of intersection over union, of maps of classes with labels.
        iou_before: that of the float32 model.
        least_cosine: of an embedding and the one in float32.
        mean_cosine: likewise.
        same_nearest: the fraction of embeddings whose nearest neighbour is the same one.
        largest_error: the largest absolute error of a number.
    """

    name: str
    judged_as: OutputKind
    num_decisions: int = 1
    error: float | None = None
    worst_error: float | None = None
    changed: float | None = None
    changed_at_most: float | None = None
    lost: float | None = None
    lost_at_most: float | None = None
    accuracy: float | None = None
    accuracy_before: float | None = None
    iou: float | None = None
    iou_before: float | None = None
    least_cosine: float | None = None
    mean_cosine: float | None = None
    same_nearest: float | None = None
    largest_error: float | None = None


@record
class QuantQuality(Record):
    """The outputs of a lowered model beside those of the model, on held-out inputs.

    `error` is ||candidate - reference|| / ||reference|| over all inputs; of several outputs, the
    root of the mean of their squares. A flip is an input of which a decision changed: the largest
    of its scores, the sign of its logit, the class of a pixel. A margin is the lead of the
    reference's first score over its second, or the distance of a logit from its threshold: the
    largest of the flips, 0 without any, and the median of all inputs.
    """

    error: float
    num_inputs: int
    num_flips: int
    largest_flip_margin: float = 0.0
    median_margin: float = 0.0
    outputs: tuple[OutputQuality, ...] = ()

    @property
    def agreement(self) -> float:
        """The fraction of inputs whose decisions stayed."""
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
    """A node that stays in float32, with the reason: a measurement, or the lack of a kernel.

    `time_share` is its part of the lowered model's time here, None where that is not measured.
    """

    node: str
    op: str
    reason: str
    time_share: float | None = None


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

    `spec` is the request, with the choices that this machine decides filled in, and `budget` what
    the result is held to; `output` is the file that was written; `num_calibration` counts the
    samples that the ranges come from; `quality` is of the result, by the runtime `judged_on`, its
    outputs judged as `outputs` says; `proof` has the operators that the runtime runs in int8;
    `saturating` are layers whose 8-bit weights overflow 16-bit sums on a CPU without VNNI.

    `failures` are what is wrong with the result; `not_shown` is what may be right of it, and that
    so few samples do not show. Neither passes; the file is written unless something is wrong.
    """

    stated: ClassVar[tuple[str, ...]] = ("verdict", "passed", "reasons")

    spec: QuantSpec
    output: str | None
    calibration: str
    num_calibration: int
    quality: QuantQuality
    judged_on: str
    budget: QuantBudget = QuantBudget()
    outputs: tuple[JudgedOutput, ...] = ()
    trials: tuple[QuantTrial, ...] = ()
    kept_float: tuple[KeptFloat, ...] = ()
    proof: IntegerProof | None = None
    saturating: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    not_shown: tuple[str, ...] = ()

    @property
    def verdict(self) -> Literal["PASS", "NOT SHOWN", "FAIL"]:
        """The verdict in words."""
        if self.failures:
            return "FAIL"
        return "NOT SHOWN" if self.not_shown else "PASS"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons against a pass: what is wrong, or not shown; empty for a pass."""
        return (*self.failures, *self.not_shown)
