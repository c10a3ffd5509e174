"""Held-out samples with the float32 model's outputs for them: where every lowered model is judged.

What the samples can tell is measured first, and said before anything is searched: too few of them,
all of one class, of another brightness than the preprocessing is for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.bundle.evaluate import classes_of
from resdeploy.data.samples import LabelledSamples
from resdeploy.errors import ResdeployError
from resdeploy.graph.affine_layer import Array
from resdeploy.quant.gate import Gate, budget_for, num_to_show
from resdeploy.quant.judge import Judge, decisions
from resdeploy.quant.output_kinds import describe_outputs
from resdeploy.quant.runtime import Runner
from resdeploy.quant.samples import Samples, SampleSplit
from resdeploy.schema.quants import JudgedOutput, QuantQuality, QuantSpec
from resdeploy.schema.recipes import Preprocess

__all__ = ["HeldOut"]

# The outputs for the samples are in memory twice: the float32 model's, and those judged.
_OUTPUT_BYTES = 256 * 2**20
# Normalised inputs lie about 0 with a spread of 1. A set of photos stays well within these.
_MOST_MEAN, _LEAST_SPREAD, _MOST_SPREAD = 1.0, 0.25, 4.0
# Values from 0 to 1 where nothing is subtracted.
_MOST_UNIT, _LEAST_UNIT = 1.5, 0.02


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """The held-out samples of a split, and the judgement on them.

    Attributes:
        split: the samples.
        judge: holds outputs against the float32 model's.
        gate: the budget.
        warnings: about the samples.
    """

    split: SampleSplit
    judge: Judge
    gate: Gate
    warnings: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto,
        samples: Samples,
        spec: QuantSpec,
        *,
        preprocess: Preprocess | None = None,
        class_names: tuple[str, ...] = (),
        hidden: tuple[str, ...] = (),
        on_warning: Callable[[str], None] = lambda warning: None,
    ) -> "HeldOut":
        """Split samples, run the float32 model on those held out, and look at what they can show.

        `preprocess` and `class_names` are the model's, if known; `hidden` are outputs that were
        added to its own, to have the numbers behind decisions; `on_warning` is told each warning.

        Raises:
            ResdeployError: a sample is not usable, or the request does not fit the outputs.
        """
        split = SampleSplit.of(samples, num_to_show=num_to_show(spec))
        runner = Runner(model, optimize=True)
        row = sum(y.nbytes for y in runner.run_outputs(split.held_out[:1]).values())
        split = split.at_most(max(1, _OUTPUT_BYTES // max(1, row)))
        reference = runner.run_outputs(split.held_out)
        own = {name: y for name, y in reference.items() if name not in hidden}
        outputs = describe_outputs(
            model,
            own,
            spec.output_kinds,
            num_labels=len(class_names),
            decides=spec.max_flips is not None or spec.max_drop is not None,
        )
        outputs += tuple(
            JudgedOutput(name=name, judged_as="map", because="the numbers that it decides by")
            for name in hidden
        )
        labels, unused = _labels_of(split, outputs, reference, class_names)
        gate = Gate(
            budget=budget_for(spec, outputs, has_labels=labels is not None), outputs=outputs
        )
        judge = Judge(outputs=outputs, reference=reference, labels=labels)
        warnings = (
            *split.warnings,
            *(filter(None, [gate.least_shown(len(split.held_out)), unused])),
            *_one_class(judge, class_names),
            *_brightness(split.explored, preprocess),
        )
        for warning in warnings:
            on_warning(warning)
        return cls(split=split, judge=judge, gate=gate, warnings=warnings)

    def quality(self, runner: Runner, which: slice = slice(None)) -> QuantQuality:
        """Return the quality of an open model on the held-out samples `which`."""
        return self.judge.quality(runner.run_outputs(self.split.held_out[which]), which)


def _labels_of(
    split: SampleSplit,
    outputs: tuple[JudgedOutput, ...],
    reference: dict[str, Array],
    known: tuple[str, ...],
) -> tuple[NDArray[np.int64] | None, str | None]:
    """Return the labels as the decisions of the one output that decides, and why they are not used.

    A place of a map whose label is no class, such as 255 by custom, is not to count.
    """
    deciding = [output for output in outputs if output.decides]
    if split.labels is None or len(deciding) != 1:
        return None, None
    output, labels = deciding[0], split.labels
    values = reference[output.name]
    if output.judged_as == "classes":
        places = decisions(output, values)
        if labels.ndim < 1 or labels.size != places.size:
            return None, (
                f"the labels are not used: they have shape {labels.shape[1:]} for one input, and "
                f"{output.name} decides {places.shape[1]} classes"
            )
        num_classes = values.shape[1] if values.dtype.kind == "f" else None
        is_class = (labels >= 0) & (True if num_classes is None else labels < num_classes)
        return np.where(is_class, labels, -1), None
    if labels.ndim != 1:
        return None, f"the labels are not used: they have shape {labels.shape[1:]} for one input"
    samples = split.samples
    labelled = LabelledSamples(
        x=np.empty(0),
        y=labels,
        names=(),
        labels=samples.label_names,
        description=samples.description,
    )
    try:
        places = classes_of(labelled, known)
    except ResdeployError as error:
        return None, f"the labels are not used: {error.what}"
    num_classes = 2 if output.judged_as == "logit" else values[0].size
    odd = places[(places < 0) | (places >= num_classes)]
    if len(odd):
        return None, (
            f"the labels are not used: {odd[0]} is none of the {num_classes} classes of "
            f"{output.name}"
        )
    return places, None


def _one_class(judge: Judge, names: tuple[str, ...]) -> Iterator[str]:
    """Yield a warning if all predictions, or all labels, are of one class."""
    for output in judge.outputs:
        if not output.decides:
            continue
        found = np.unique(decisions(output, judge.reference[output.name]))
        num = len(judge.reference[output.name])
        if len(found) == 1 and num > 1:
            place = int(found[0])
            title = (
                names[place] if output.judged_as == "scores" and place < len(names) else str(place)
            )
            yield (
                f"all predictions for the {num} held-out samples are of one class ({title}): "
                "nothing is shown of the others"
            )
        elif judge.labels is not None and len(np.unique(judge.labels)) == 1:
            yield "all held-out samples are of one class: nothing is shown of the others"


def _brightness(inputs: Array, preprocess: Preprocess | None) -> Iterator[str]:
    """Yield a warning if images are darker or brighter than their normalisation expects."""
    if preprocess is None or preprocess.embedded or preprocess.color == "none" or inputs.ndim != 4:
        return
    by_channel = (0, 2, 3)
    mean_C = inputs.mean(axis=by_channel, dtype=np.float64)
    spread_C = inputs.std(axis=by_channel, dtype=np.float64)
    means, spreads = (
        ", ".join(f"{value:.2f}" for value in values) for values in (mean_C, spread_C)
    )
    if any(preprocess.mean) or any(one != 1 for one in preprocess.std):
        odd = np.abs(mean_C).max() > _MOST_MEAN
        odd = odd or spread_C.min() < _LEAST_SPREAD or spread_C.max() > _MOST_SPREAD
        expected = "means near 0 and spreads near 1"
    else:
        odd = preprocess.divisor > 1 and (
            float(np.abs(inputs).max()) > _MOST_UNIT or abs(float(mean_C.max())) < _LEAST_UNIT
        )
        expected = "values from 0 to 1"
    if odd:
        yield (
            f"the channels of the calibration inputs have means {means} and spreads {spreads}, and "
            f"their normalisation is for {expected}: are they of another brightness, or normalised "
            "twice?"
        )
