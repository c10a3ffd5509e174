"""Quantisation of a folded model to int8; each step stays if it lowers the error held out.

In this order, each measured beside the model without it:

1. GPTQ rounds the weights so that errors cancel (`weights`)
2. the input's levels are its pixels (`pixel_grid`)
3. SmoothQuant's migration gives channels like ranges (`smooth_channels`)
4. ranges from all calibration samples, by each method (`ranges`)
5. each tensor's range by its effect on the outputs (`refine_ranges`)
6. the mean error of the weights goes into the biases (`weights`)
7. if the budget does not hold, the costliest layers stay in float32 (`keep_sensitive`)

Steps 2 and 3 change the float model, to one that computes the same. Its weights are rounded anew if
step 1 was any good: channels of like ranges cost the weights precision, and rounding that cancels
wins it back. Last, the runtime's own graph is opened: a layer or a residual addition that it
computes in float32, unasked, is a failure.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.quant.calibration import StreamHistogram, calibrate
from resdeploy.quant.judge import judge, keep_sensitive, why_not
from resdeploy.quant.onnx_graph import Constants, is_layer_or_sum
from resdeploy.quant.pixel_grid import GRID_RANGE, takes_pixel_grid, use_pixel_grid
from resdeploy.quant.prepare import prepare
from resdeploy.quant.qdq import insert_qdq, saturating_layers, scale_name, weight_limit
from resdeploy.quant.ranges import METHODS, Range, find_range, widest_range
from resdeploy.quant.refine_ranges import refine_ranges
from resdeploy.quant.runtime import Runner, prove_integer, runtime_name
from resdeploy.quant.samples import Samples, SampleSplit, memory_limit, spread
from resdeploy.quant.smooth_channels import smooth_channels
from resdeploy.quant.weights import correct_biases, gptq_weights
from resdeploy.schema.quants import (
    CalibrationMethod,
    Choice,
    KeptFloat,
    QuantQuality,
    QuantReport,
    QuantSpec,
    QuantTrial,
)
from resdeploy.schema.recipes import Preprocess

__all__ = ["quantize_int8"]

# While the float model is chosen, before all samples are looked at.
_EXPLORING_METHOD: CalibrationMethod = "percentile"
# Weights are rounded, and biases corrected, by this many of the samples in memory.
_NUM_ROUNDED_WITH = 256
# Ranges are refined with as many of them as fit: the network runs a dozen times for each tensor.
_NUM_REFINED_WITH = 256
_REFINED_BYTES = 16 * 2**20
# To find out which layer costs most, each is left in float once: on fewer held-out samples.
_NUM_RANKED_WITH = 128


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A quantised model, to be made anew with other layers left in float.

    Attributes:
        model: the float model it is made from.
        ranges: of its tensors.
        grid: its tensor on the pixel grid, if it has one.
        weights: integers that replace those rounded to the nearest.
        corrects_biases: whether its biases are corrected.
    """

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    grid: str | None = None
    weights: Mapping[str, NDArray[np.int8]] = dataclasses.field(default_factory=dict)
    corrects_biases: bool = False


def quantize_int8(
    model: onnx.ModelProto,
    samples: Samples,
    spec: QuantSpec,
    *,
    preprocess: Preprocess | None = None,
    warnings: tuple[str, ...] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
) -> tuple[onnx.ModelProto, QuantReport]:
    """Return the quantised model, and the report of trials, kept layers and proof.

    Args:
        model: folded, in float32, with one input; it is not changed.
        samples: those to calibrate and to judge with.
        spec: the request.
        preprocess: how its inputs are made from images, where that is known.
        warnings: to go into the report, before those about the samples.
        on_stage: told the name of each stage.

    Raises:
        ResdeployError: the model or a sample is not usable.
    """
    prepared = prepare(model)
    on_stage("read samples")
    search = _Int8Search(prepared, SampleSplit.of(samples), spec, on_stage)
    candidate = search.choose(preprocess)
    kept = search.keep_sensitive_float(candidate)
    names = tuple(layer.node for layer in kept)
    quantized = search.build(candidate, names)
    on_stage("open the runtime's graph")
    proof = prove_integer(quantized, types=spec.types, kept_float=names)
    quality = search.judge(quantized)
    reasons = why_not(quality, spec)
    if not proof.passed:
        reasons += (f"the runtime computes in float32: {', '.join(proof.left_in_float)}",)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)  # its preprocessing and its labels
    quantized.producer_name, quantized.producer_version = "resdeploy", ""
    return quantized, QuantReport(
        spec=spec,
        output=None,
        calibration=samples.description,
        num_calibration=len(search.split.calibrate),
        quality=quality,
        judged_on=runtime_name(),
        trials=tuple(search.trials),
        kept_float=kept,
        proof=proof,
        saturating=saturating_layers(candidate.model, quantized),
        warnings=(*warnings, *search.split.warnings),
        reasons=reasons,
    )


class _Int8Search:
    """The search for the best int8 model: its samples, its reference, and the trials so far."""

    def __init__(
        self,
        model: onnx.ModelProto,
        split: SampleSplit,
        spec: QuantSpec,
        on_stage: Callable[[str], None],
    ) -> None:
        self.split = split
        self.trials: list[QuantTrial] = []
        self._model = model
        self._spec = spec
        self._on_stage = on_stage
        self._rounds = False
        self._reference = Runner(model, optimize=True).run_rows(split.held_out)

    def choose(self, preprocess: Preprocess | None) -> _Candidate:
        """Return the candidate with everything that helps."""
        spec = self._spec
        best = self._explore(self._model, None)
        self._quality = self.judge(self.build(best))
        self._record("float model", "as it is", self._quality, kept=True)
        best = self._improve(best, "weights", "GPTQ", spec.rounding, self._rounded)
        self._rounds = bool(best.weights)
        if preprocess is not None and takes_pixel_grid(self._model, preprocess):
            best = self._improve(
                best,
                "float model",
                "pixel grid",
                spec.pixel_grid,
                lambda c: self._explore(*use_pixel_grid(c.model, preprocess)),
            )
        best = self._improve(best, "float model", "SmoothQuant", spec.equalize, self._smoothed)
        best, histograms = self._calibrated(best)
        best = self._improve(
            best, "ranges", "tensor by tensor", spec.refine, lambda c: self._refined(c, histograms)
        )
        return self._improve(
            best,
            "weights",
            "bias correction",
            spec.bias_correction,
            lambda c: dataclasses.replace(c, corrects_biases=True),
        )

    def keep_sensitive_float(self, candidate: _Candidate) -> tuple[KeptFloat, ...]:
        """Return the layers to leave in float32 for the budget to hold."""
        constants = Constants(candidate.model)
        return keep_sensitive(
            [n for n in candidate.model.graph.node if is_layer_or_sum(n, constants)],
            lambda names, which: self.judge(self.build(candidate, names), which),
            self._spec,
            ranked_with=_NUM_RANKED_WITH,
            on_stage=self._on_stage,
        )

    def build(self, candidate: _Candidate, exclude: tuple[str, ...] = ()) -> onnx.ModelProto:
        """Return a candidate as a quantised model, with the layers named left in float32."""
        quantized = insert_qdq(
            candidate.model,
            candidate.ranges,
            types=self._spec.types,
            reduce_range=self._spec.reduce_range,
            exclude=exclude,
        )
        integers = Constants(quantized)
        for name, weight in candidate.weights.items():
            if name in integers:  # not of a layer that stays in float
                integers[name] = weight
        if candidate.corrects_biases:
            few = self.split.explored[:_NUM_ROUNDED_WITH]
            quantized = correct_biases(candidate.model, quantized, few)
        return quantized

    def judge(self, quantized: onnx.ModelProto, which: slice = slice(None)) -> QuantQuality:
        """Return the quality of a quantised model on the held-out samples."""
        runner = Runner(quantized, optimize=True, signed=self._spec.types != "u8s8")
        found = runner.run_rows(self.split.held_out[which])
        return judge(self._reference[which], found)

    def _improve(
        self,
        best: _Candidate,
        stage: str,
        name: str,
        choice: Choice,
        change: Callable[[_Candidate], _Candidate],
    ) -> _Candidate:
        """Return the candidate with a change or without: as asked, or of the smaller error."""
        if choice == "off":
            return best
        self._on_stage(name)
        changed = change(best)
        found = self.judge(self.build(changed))
        kept = choice == "on" or found.error < self._quality.error
        self._record(stage, name, found, kept=kept)
        if not kept:
            return best
        self._quality = found
        return changed

    def _record(self, stage: str, name: str, quality: QuantQuality, *, kept: bool) -> None:
        self.trials.append(QuantTrial(stage=stage, name=name, quality=quality, kept=kept))

    def _explore(self, model: onnx.ModelProto, grid: str | None) -> _Candidate:
        """Return a float model with ranges from the samples in memory."""
        method = _EXPLORING_METHOD if self._spec.method == "auto" else self._spec.method
        histograms = calibrate(model, iter(self.split.explored))
        candidate = _Candidate(model, _ranges(histograms, method, grid), grid)
        return self._rounded(candidate) if self._rounds else candidate

    def _smoothed(self, candidate: _Candidate) -> _Candidate:
        model = smooth_channels(candidate.model, self.split.explored)
        return self._explore(model, candidate.grid)

    def _calibrated(
        self, candidate: _Candidate
    ) -> tuple[_Candidate, Mapping[str, StreamHistogram]]:
        """Return the candidate with ranges from all samples, by the method that errs least."""
        histograms = calibrate(
            candidate.model,
            self.split.read_calibration(),
            num=len(self.split.calibrate),
            on_stage=self._on_stage,
        )
        asked = self._spec.method
        tried = []
        for method in METHODS if asked == "auto" else (asked,):
            self._on_stage(f"ranges by {method}")
            ranges = _ranges(histograms, method, candidate.grid)
            ranged = dataclasses.replace(candidate, ranges=ranges)
            tried.append((self.judge(self.build(ranged)), method, ranged))
        self._quality, best, ranged = min(tried, key=lambda t: t[0].error)
        for found, method, _ in tried:
            self._record("ranges", method, found, kept=method == best)
        return ranged, histograms

    def _refined(
        self, candidate: _Candidate, histograms: Mapping[str, StreamHistogram]
    ) -> _Candidate:
        """Return the candidate with the range of each tensor that the outputs are best with.

        The samples in memory decide, so that the held-out ones can judge.
        """
        explored = self.split.explored
        num = memory_limit(explored[0], _REFINED_BYTES, _NUM_REFINED_WITH)
        integers = Constants(self.build(candidate))
        names = [n for n in candidate.ranges if scale_name(n) in integers and n != candidate.grid]
        ranges = refine_ranges(
            candidate.model,
            candidate.ranges,
            names,
            {name: widest_range(histograms[name]) for name in names},
            explored[spread(range(len(explored)), num)],
            types=self._spec.types,
            on_tensor=lambda name: self._on_stage(f"the range of {name}"),
        )
        return dataclasses.replace(candidate, ranges=ranges)

    def _rounded(self, candidate: _Candidate) -> _Candidate:
        weights = gptq_weights(
            candidate.model,
            self.build(candidate),
            self.split.explored[:_NUM_ROUNDED_WITH],
            limit=weight_limit(reduce_range=self._spec.reduce_range),
        )
        return dataclasses.replace(candidate, weights=weights)


def _ranges(
    histograms: Mapping[str, StreamHistogram], method: CalibrationMethod, grid: str | None
) -> dict[str, Range]:
    ranges = {name: find_range(method, histogram) for name, histogram in histograms.items()}
    if grid is not None:
        names = list(ranges)
        # The tensors from the input to the grid stay in float.
        ranges = {name: ranges[name] for name in names[names.index(grid) :]}
        ranges[grid] = GRID_RANGE
    return ranges
