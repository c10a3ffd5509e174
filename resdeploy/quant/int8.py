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
wins it back.

Operators without an integer kernel stay in float32, with the reason and their share of the time.
Last, the runtime's own graph is opened: a layer or a residual addition for which it finds no kernel
after all stays in float32 in the file too, and one that it computes so nevertheless is a failure.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.errors import ProviderError
from resdeploy.graph.affine_layer import Array
from resdeploy.quant.calibration import StreamHistogram, calibrate
from resdeploy.quant.held_out import HeldOut
from resdeploy.quant.keep_float import keep_sensitive
from resdeploy.quant.onnx_graph import (
    Constants,
    channels_first_shapes,
    drop_unread,
    is_layer_or_sum,
    layers,
)
from resdeploy.quant.pixel_grid import GRID_RANGE, takes_pixel_grid, use_pixel_grid
from resdeploy.quant.prepare import prepare
from resdeploy.quant.qdq import (
    float_nodes,
    insert_qdq,
    saturating_layers,
    scale_name,
    weight_limit,
    why_float,
)
from resdeploy.quant.ranges import METHODS, Range, find_range, widest_range
from resdeploy.quant.refine_ranges import refine_ranges
from resdeploy.quant.runtime import Runner, prove_integer, runtime_name, time_shares
from resdeploy.quant.samples import Samples, memory_limit, spread
from resdeploy.quant.smooth_channels import smooth_channels
from resdeploy.quant.weights import correct_biases, gptq_weights
from resdeploy.schema.quants import (
    CalibrationMethod,
    Choice,
    IntegerProof,
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
# Likewise of the outputs, in float64.
_REFINED_OUTPUT_BYTES = 128 * 2**20
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
    class_names: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
    on_warning: Callable[[str], None] = lambda warning: None,
) -> tuple[onnx.ModelProto, QuantReport]:
    """Return the quantised model, and the report of trials, kept layers and proof.

    Args:
        model: folded, in float32; it is not changed.
        samples: those to calibrate and to judge with.
        spec: the request.
        preprocess: how its inputs are made from images, where that is known.
        class_names: the names of its classes, if they are known.
        warnings: to go into the report, before those about the samples.
        on_stage: told the name of each stage.
        on_warning: told each warning about the samples, before anything is searched.

    Raises:
        ResdeployError: the model or a sample is not usable, or the request does not fit its
            outputs.
    """
    prepared = prepare(model)
    hidden = _reveal_numbers(prepared)
    on_stage("read samples")
    held_out = HeldOut.of(
        prepared,
        samples,
        spec,
        preprocess=preprocess,
        class_names=class_names,
        hidden=hidden,
        on_warning=on_warning,
    )
    search = _Int8Search(prepared, held_out, spec, on_stage)
    candidate = search.choose(preprocess)
    kept = search.keep_sensitive_float(candidate)
    quantized, kept, proof = search.proven(candidate, kept)
    quality = search.judge(quantized)
    failures = held_out.gate.failures(quality)
    if not proof.passed:
        failures += (f"the runtime computes in float32: {', '.join(proof.left_in_float)}",)
    constants = Constants(candidate.model)
    num_layers = sum(1 for _ in layers(candidate.model, constants))
    in_float = {node.node for node in kept}
    if all(node.name in in_float for node in layers(candidate.model, constants)):
        failures += (f"all of its {num_layers} layers stay in float32: it would be int8 by name",)
    saturating = saturating_layers(candidate.model, quantized)
    del quantized.graph.output[len(model.graph.output) :]
    drop_unread(quantized)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)  # its preprocessing and its labels
    quantized.producer_name, quantized.producer_version = "resdeploy", ""
    return quantized, QuantReport(
        spec=spec,
        output=None,
        calibration=samples.description,
        num_calibration=len(held_out.split.calibrate),
        quality=quality,
        judged_on=runtime_name(),
        budget=held_out.gate.budget,
        outputs=tuple(held_out.judge.outputs),
        trials=tuple(search.trials),
        kept_float=kept,
        proof=proof,
        saturating=saturating,
        warnings=(*warnings, *held_out.warnings),
        failures=failures,
        not_shown=held_out.gate.not_shown(quality),
    )


def _reveal_numbers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Give a model that only decides the numbers it decides by as outputs too; return their names.

    A search needs numbers: class indices do not tell of two models which one errs less.
    """
    shapes = channels_first_shapes(model)
    if any(value.name in shapes for value in model.graph.output):
        return ()
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, None] = {}
    behind = [value.name for value in model.graph.output]
    while behind:
        node = makers.get(behind.pop())
        for name in () if node is None else node.input:
            if name in shapes and name in makers:
                found[name] = None
            else:
                behind.append(name)
    for name in found:
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shapes[name])
        )
    return tuple(found)


class _Int8Search:
    """The search for the best int8 model: its held-out samples, and the trials so far."""

    def __init__(
        self,
        model: onnx.ModelProto,
        held_out: HeldOut,
        spec: QuantSpec,
        on_stage: Callable[[str], None],
    ) -> None:
        self.trials: list[QuantTrial] = []
        self._split = held_out.split
        self._model = model
        self._held_out = held_out
        self._spec = spec
        self._on_stage = on_stage
        self._rounds = False

    def choose(self, preprocess: Preprocess | None) -> _Candidate:
        """Return the candidate with everything that helps."""
        spec = self._spec
        best = self._explore(self._model, None)
        self._quality = self._tried(self.build(best))
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
        """Return the layers to leave in float32 for the budget to hold.

        Where it is only not shown, none but if that shows it, and at most half of them: what too
        few samples need are more samples, not a slower model.
        """
        gate = self._held_out.gate
        quality = self.judge(self.build(candidate))
        if gate.holds(quality):
            return ()
        constants = Constants(candidate.model)
        left = float_nodes(candidate.model, candidate.ranges)
        nodes = [
            node
            for node in candidate.model.graph.node
            if is_layer_or_sum(node, constants) and node.name not in left
        ]
        fails = bool(gate.failures(quality))
        kept = keep_sensitive(
            nodes,
            lambda names, which: self.judge(self.build(candidate, names), which),
            gate.holds,
            ranked_with=_NUM_RANKED_WITH,
            most=None if fails else len(nodes) // 2,
            on_stage=self._on_stage,
        )
        names = tuple(layer.node for layer in kept)
        return kept if fails or gate.holds(self.judge(self.build(candidate, names))) else ()

    def proven(
        self, candidate: _Candidate, kept: tuple[KeptFloat, ...]
    ) -> tuple[onnx.ModelProto, tuple[KeptFloat, ...], IntegerProof]:
        """Return the quantised model, all that stays in float32 in it, and the runtime's graph."""
        self._on_stage("open the runtime's graph")
        nodes = {node.name: node for node in candidate.model.graph.node}
        names = tuple(layer.node for layer in kept)
        quantized = self.build(candidate, names)
        proof = self._prove(candidate, quantized, names)
        without = [
            name
            for name in nodes
            if any(left.startswith(f"{name} (") for left in proof.left_in_float)
        ]
        if without:
            kept += tuple(
                KeptFloat(
                    node=name,
                    op=nodes[name].op_type,
                    reason="the runtime finds no integer kernel for it here",
                )
                for name in without
            )
            names += tuple(without)
            quantized = self.build(candidate, names)
            proof = self._prove(candidate, quantized, names)
        kept += tuple(_without_kernel(candidate, names))
        if kept and self._spec.types == "u8s8":  # as others run on another machine
            self._on_stage("time what stays in float32")
            shares = _time_shares(quantized, self._split.explored, [node.node for node in kept])
            kept = tuple(dataclasses.replace(node, time_share=shares[node.node]) for node in kept)
        return quantized, kept, proof

    def _prove(
        self, candidate: _Candidate, quantized: onnx.ModelProto, names: tuple[str, ...]
    ) -> IntegerProof:
        left = float_nodes(candidate.model, candidate.ranges, names)
        return prove_integer(quantized, types=self._spec.types, kept_float=left)

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
            few = self._split.explored[:_NUM_ROUNDED_WITH]
            quantized = correct_biases(candidate.model, quantized, few)
        return quantized

    def judge(self, quantized: onnx.ModelProto, which: slice = slice(None)) -> QuantQuality:
        """Return the quality of a quantised model on the held-out samples."""
        runner = Runner(quantized, optimize=True, signed=self._spec.types != "u8s8")
        return self._held_out.quality(runner, which)

    def _tried(self, quantized: onnx.ModelProto) -> QuantQuality:
        return self.judge(quantized, self._split.tried)

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
        found = self._tried(self.build(changed))
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
        histograms = calibrate(model, iter(self._split.explored))
        candidate = _Candidate(model, _ranges(histograms, method, grid), grid)
        return self._rounded(candidate) if self._rounds else candidate

    def _smoothed(self, candidate: _Candidate) -> _Candidate:
        model = smooth_channels(candidate.model, self._split.explored)
        return self._explore(model, candidate.grid)

    def _calibrated(
        self, candidate: _Candidate
    ) -> tuple[_Candidate, Mapping[str, StreamHistogram]]:
        """Return the candidate with ranges from all samples, by the method that errs least."""
        histograms = calibrate(
            candidate.model,
            self._split.read_calibration(),
            num=len(self._split.calibrate),
            on_stage=self._on_stage,
        )
        asked = self._spec.method
        tried = []
        for method in METHODS if asked == "auto" else (asked,):
            self._on_stage(f"ranges by {method}")
            ranges = _ranges(histograms, method, candidate.grid)
            ranged = dataclasses.replace(candidate, ranges=ranges)
            tried.append((self._tried(self.build(ranged)), method, ranged))
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
        explored = self._split.explored
        reference = self._held_out.judge.reference.values()
        row_bytes = 8 * sum(y[0].size for y in reference if y.dtype.kind == "f")
        most = min(_NUM_REFINED_WITH, max(1, _REFINED_OUTPUT_BYTES // row_bytes))
        num = memory_limit(explored[0], _REFINED_BYTES, most)
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
            self._split.explored[:_NUM_ROUNDED_WITH],
            limit=weight_limit(reduce_range=self._spec.reduce_range),
        )
        return dataclasses.replace(candidate, weights=weights)


def _time_shares(
    quantized: onnx.ModelProto, samples: Array, names: list[str]
) -> dict[str, float | None]:
    try:
        return dict(time_shares(quantized, samples, names))
    except ProviderError:  # kernels that differ from run to run, such as a loop's
        return dict.fromkeys(names)


def _without_kernel(candidate: _Candidate, exclude: tuple[str, ...]) -> Iterator[KeptFloat]:
    """Yield the nodes that compute in float32 for lack of a kernel, and the sums between them."""
    constants = Constants(candidate.model)
    left = set(float_nodes(candidate.model, candidate.ranges, exclude))
    for node in candidate.model.graph.node:
        if node.name not in left or node.name in exclude or node.output[0] not in candidate.ranges:
            continue
        reason = why_float(node, constants)
        if reason is None and is_layer_or_sum(node, constants):
            reason = "all that it reads is in float32"
        if reason is not None:
            yield KeptFloat(node=node.name, op=node.op_type, reason=reason)


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
