"""What is measured of the samples before anything is searched, and labels in the place of votes."""

import numpy as np
import pytest
import small_kinds
from small_kinds import Network, noise
from small_networks import PREPROCESS, inputs, prepared_resnet

from resdeploy.quant.held_out import HeldOut
from resdeploy.quant.int8 import quantize_int8
from resdeploy.quant.runtime import Runner
from resdeploy.quant.samples import Samples
from resdeploy.schema.quants import QuantSpec
from resdeploy.schema.recipes import Preprocess

PLAIN = {
    **dict.fromkeys(("equalize", "pixel_grid", "refine", "rounding", "bias_correction"), "off"),
    "method": "percentile",
}


def held_out(x, *, labels=None, spec=None, **options):
    samples = Samples.of_array(x, labels=labels)
    return HeldOut.of(prepared_resnet(), samples, spec or QuantSpec(max_flips=0.5), **options)


def predictions(x):
    return Runner(prepared_resnet(), optimize=True).run_rows(x).argmax(axis=1)


def test_good_samples_are_not_warned_about():
    assert held_out(inputs(80), preprocess=PREPROCESS).warnings == ()


def test_predictions_of_one_class_are_warned_about_with_its_name():
    x = inputs(400)
    classes = predictions(x)
    most = np.bincount(classes).argmax()
    one = x[classes == most]
    names = ("a", "b", "c", "d", "e")
    (warning,) = held_out(one, class_names=names).warnings
    assert f"of one class ({names[most]}): nothing is shown of the others" in warning


def test_labels_of_one_class_are_warned_about():
    assert any(
        "all held-out samples are of one class" in warning
        for warning in held_out(inputs(80), labels=np.zeros(80, np.int64)).warnings
    )


@pytest.mark.parametrize("change", [lambda x: x * 0.1 - 2, lambda x: x + 3, lambda x: x * 9])
def test_samples_of_another_brightness_are_warned_about_before_the_search(change):
    told = []
    held_out(change(inputs(80)).astype(np.float32), preprocess=PREPROCESS, on_warning=told.append)
    assert any("of another brightness, or normalised twice?" in warning for warning in told)


@pytest.mark.parametrize(("scale", "is_odd"), [(1.0, False), (255.0, True), (1 / 255, True)])
def test_without_a_mean_values_lie_between_0_and_1(scale, is_odd):
    unit = Preprocess(input_shape=(3, 8, 8), divisor=255.0, color="rgb")
    x = np.random.default_rng(0).uniform(0, scale, (60, 3, 8, 8)).astype(np.float32)
    warnings = held_out(x, preprocess=unit).warnings
    assert any("values from 0 to 1" in warning for warning in warnings) == is_odd


def test_labels_judge_the_accuracy_rather_than_the_agreement():
    x = inputs(160)
    found = held_out(x, labels=predictions(x).astype(np.int64), spec=QuantSpec())
    assert (found.gate.budget.max_drop, found.gate.budget.max_flips) == (0.01, None)
    quality = found.quality(Runner(prepared_resnet(), optimize=True))
    (one,) = quality.outputs
    assert (one.accuracy, one.accuracy_before, one.lost) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.full(80, 7), "7 is none of the 5 classes of logits"),
        (np.zeros((80, 2), np.int64), "shape (2,) for one input"),
    ],
)
def test_labels_that_do_not_fit_are_not_used_and_told(labels, words):
    found = held_out(inputs(80), labels=labels)
    assert found.judge.labels is None
    assert any("the labels are not used" in w and words in w for w in found.warnings)


def test_masks_are_the_labels_of_a_map_of_classes():
    model = small_kinds.unet()
    x = noise(model, 60)
    masks = Runner(model, optimize=True).run_outputs(x)["logits"].argmax(axis=1)
    masks[:, 0, 0] = 255
    spec = QuantSpec(output_kinds={"logits": "classes"}, max_drop=0.4, **PLAIN)
    _, report = quantize_int8(model, Samples.of_array(x, labels=masks), spec)
    (one,) = report.quality.outputs
    assert report.passed
    assert (one.accuracy_before, one.iou_before) == (1.0, 1.0)
    assert 0.7 < one.iou < one.accuracy < 1.0
    assert one.lost_at_most > 1 - one.accuracy


def test_labels_of_a_logit_are_its_sides():
    model = small_kinds.one_number()
    x = noise(model, 80)
    sides = (Runner(model, optimize=True).run_rows(x)[:, 0] > 0).astype(np.int64)
    spec = QuantSpec(max_drop=0.9, **PLAIN)
    _, report = quantize_int8(model, Samples.of_array(x, labels=sides), spec)
    assert report.outputs[0].judged_as == "logit"
    assert report.quality.outputs[0].accuracy_before == 1.0


def test_fewer_samples_of_large_outputs_are_kept(monkeypatch):
    monkeypatch.setattr("resdeploy.quant.held_out._OUTPUT_BYTES", 10 * 5 * 4)
    found = held_out(inputs(80))
    assert len(found.split.held_out) == len(found.judge.reference["logits"]) == 10


def test_one_frugal_class_is_not_shown_and_what_would_be_is_said():
    """Seven held-out photos without a flip passed, and the user lost 37 points."""
    told = []
    x = inputs(400)
    classes = predictions(x)
    one = x[classes == np.bincount(classes).argmax()][:28]
    _, report = quantize_int8(
        prepared_resnet(), Samples.of_array(one), QuantSpec(**PLAIN), on_warning=told.append
    )
    assert report.quality.num_flips == 0
    assert report.verdict == "NOT SHOWN"
    assert not report.passed
    assert any("7 held-out samples can show a change of at most 34.8 %" in w for w in told)
    assert any("of one class" in warning for warning in told)
    assert "299 held-out samples without a change would" in report.reasons[0]


def test_380_held_out_samples_without_a_flip_show_a_point():
    net = Network(input=(6,))
    model = net.model(scores=net.gemm("input", 3))
    x = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
    # Far from a tie, so that none flips.
    scores = np.sort(Runner(model, optimize=True).run_rows(x), axis=1)
    clear = x[scores[:, -1] - scores[:, -2] > 0.6][:760]
    _, report = quantize_int8(model, Samples.of_array(clear), QuantSpec(max_flips=0.01, **PLAIN))
    assert report.quality.num_inputs == 380
    assert report.quality.num_flips == 0
    assert report.verdict == "PASS"
