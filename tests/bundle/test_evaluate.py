"""Accuracy of a model: the counts by hand, changed predictions, and refusals."""

import json

import numpy as np
import onnx
import pytest
from onnx import parser

from resdeploy.bundle.archive import write_archive
from resdeploy.bundle.evaluate import evaluate
from resdeploy.data.samples import LabelledSamples
from resdeploy.errors import BundleError, ResdeployError
from resdeploy.schema.codec import dump_json, load_json, to_json
from resdeploy.schema.evaluations import EvaluateReport as Report
from resdeploy.schema.recipes import Preprocess
from resdeploy.schema.sessions import SessionSpec
from resdeploy.statistics.proportions import (
    clopper_pearson,
    mcnemar_exact,
    paired_difference_interval,
)

NAMES = ("ant", "bee", "cat")
VECTOR = Preprocess(input_shape=(3,), divisor=2.0, color="none")


def write_model(path, *, body="y = Identity (x)", labels=NAMES, preprocess=VECTOR):
    """Write a model whose scores are its three inputs, but for `body`."""
    head = '<ir_version: 8, opset_import: ["": 18]> g (float[N, 3] x) => (float[N, 3] y)'
    model = parser.parse_model(f"{head} {{{body}}}")
    said = {"resdeploy.labels": json.dumps(labels)} if labels else {}
    if preprocess is not None:
        said["resdeploy.preprocess"] = json.dumps(to_json(preprocess))
    onnx.helper.set_model_props(model, said)
    onnx.save(model, path)
    return path


def samples_of(x, y, labels=NAMES):
    return LabelledSamples(
        x=np.asarray(x),
        y=None if y is None else np.asarray(y, np.int64),
        names=tuple(f"x[{i}]" for i in range(len(x))),
        labels=labels,
        description="samples by hand",
    )


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model.onnx")


@pytest.fixture
def other(tmp_path):
    """Prefers the last class by 3."""
    body = "b = Constant <value = float[3] {0, 0, 3}> () y = Add (x, b)"
    return write_model(tmp_path / "other.onnx", body=body)


def run(model, samples, **options):
    return evaluate(model, lambda preprocess: samples, SessionSpec(), **options)


# Scores are half of these. Right, right, wrong, right; with 3 more for the last class: right,
# wrong (cat), right, right.
X = [[8.0, 0, 0], [0, 5, 2], [4, 0, 3], [0, 1, 9]]
Y = [0, 1, 2, 2]


def test_accuracy_is_counted_and_its_interval_exact(model):
    report = run(model, samples_of(X, Y))
    assert report.model.result.num_correct == 3
    assert report.model.result.accuracy == 0.75
    assert report.model.result.interval == clopper_pearson(3, 4)
    assert report.paired is report.against is report.drop is None
    assert report.passed
    assert report.labels == NAMES
    assert report.model.session.active_providers == ("CPUExecutionProvider",)
    assert load_json(Report, dump_json(report), where="test") == report


def test_two_models_are_compared_sample_by_sample(model, other):
    report = run(model, samples_of(X, Y), against=other)
    paired = report.paired
    assert (paired.num_model_only, paired.num_against_only) == (1, 1)
    assert paired.p_value == mcnemar_exact(1, 1)
    assert report.drop == 0
    first, second = paired.flips
    assert (first.sample, first.index, first.label) == ("x[1]", 1, 1)
    assert (first.predicted, first.against_predicted) == (1, 2)
    assert (first.margin, first.against_margin) == (1.5, 1.5)  # 2.5 - 1, and 4 - 2.5
    assert (second.index, second.predicted, second.against_predicted) == (2, 0, 2)
    assert (second.margin, second.against_margin) == (0.5, 2.5)  # 2 - 1.5, and 4.5 - 2


def test_from_one_wrong_class_to_another_is_a_flip_but_not_discordant(model, other):
    report = run(model, samples_of([[4.0, 0, 3]], [1]), against=other)
    assert len(report.paired.flips) == 1
    assert report.paired.num_model_only == report.paired.num_against_only == 0


def test_a_drop_is_positive_where_the_model_is_worse(model, other):
    """Ten samples that only the other gets right, of forty."""
    samples = samples_of([[4.0, 0, 3]] * 10 + [[9.0, 0, 0]] * 30, [2] * 10 + [0] * 30)
    report = run(model, samples, against=other)
    assert report.drop == 0.25
    assert report.paired.drop_interval == paired_difference_interval(10, 0, 40)
    better = run(other, samples, against=model)
    assert better.drop == -0.25
    assert better.paired.drop_interval == paired_difference_interval(0, 10, 40)


def test_a_drop_passes_only_if_its_whole_interval_is_within(model, other):
    samples = samples_of([[4.0, 0, 3]] * 10 + [[9.0, 0, 0]] * 30, [2] * 10 + [0] * 30)
    high = paired_difference_interval(10, 0, 40)[1]
    for max_drop, passed in ((0.25, False), (high - 1e-6, False), (high + 1e-6, True)):
        report = run(model, samples, against=other, max_drop=max_drop)
        assert report.passed is passed
    assert run(other, samples, against=model, max_drop=0.0).passed


def test_labels_are_matched_by_name(model):
    """A folder without ants: its class 0 is the model's class 1."""
    right = samples_of([[0.0, 5, 2], [0, 1, 9]], [0, 1], labels=("bee", "cat"))
    assert run(model, right).model.result.num_correct == 2
    turned = samples_of(X, [2, 1, 0, 0], labels=("cat", "bee", "ant"))
    assert run(model, turned).model.result.num_correct == 3


def test_other_names_for_as_many_classes_are_taken_in_order(model):
    wordnet = samples_of(X, Y, labels=("n01", "n02", "n03"))
    assert run(model, wordnet).model.result.num_correct == 3


def test_other_names_for_another_number_of_classes_are_refused(model):
    with pytest.raises(ResdeployError, match="2 classes, the model 3, and 'dog'") as caught:
        run(model, samples_of(X, [0, 1, 1, 0], labels=("ant", "dog")))
    assert "ant, bee, cat" in caught.value.fix


def test_a_bundle_is_evaluated_as_a_folder_and_in_one_file(tmp_path, write_flat_bundle):
    vector = Preprocess(input_shape=(16,), color="none")
    bundle = write_flat_bundle(tmp_path / "flat", vector)
    write_archive(bundle, tmp_path / "flat.zip")
    samples = samples_of(np.eye(16) * 4, np.arange(16), labels=())
    for path in (bundle, tmp_path / "flat.zip"):
        report = run(path, samples)
        assert report.model.result.accuracy == 1
        assert report.labels[3] == "class 3"
    (bundle / "labels.txt").write_text("x")
    with pytest.raises(BundleError):
        run(bundle, samples)


def test_more_samples_than_one_batch_keep_their_order(model, other):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 3)) * 4
    truth = rng.integers(0, 3, 150)
    seen = []
    report = run(
        model, samples_of(x, truth), against=other,
        on_progress=lambda done, total, remark: seen.append((done, total)),
    )  # fmt: skip
    scores = x.astype(np.float32) / np.float32(2)
    assert report.model.result.num_correct == (scores.argmax(1) == truth).sum()
    changed = scores.argmax(1) != (scores + np.float32([0, 0, 3])).argmax(1)
    assert [flip.index for flip in report.paired.flips] == np.flatnonzero(changed).tolist()
    assert seen[0] == (0, 150)
    assert seen[-1] == (150, 150)


def test_samples_that_both_models_decode_alike_are_read_once(model, other):
    calls = []

    def load(preprocess):
        calls.append(preprocess)
        return samples_of(X, Y)

    evaluate(model, load, SessionSpec(), against=other)
    assert calls == [VECTOR]


# --- refusals ------------------------------------------------------------------------------------


def test_samples_without_labels_are_refused(model):
    with pytest.raises(ResdeployError, match="have no labels") as caught:
        run(model, samples_of(X, None))
    assert "y" in caught.value.fix


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_beyond_the_model_is_refused_and_named(model, label):
    with pytest.raises(ResdeployError, match=f"label {label} is none of .* 0 to 2") as caught:
        run(model, samples_of(X, [0, 1, label, 2], labels=()))
    assert caught.value.where.endswith("x[2]")


def test_outputs_that_are_no_numbers_are_refused_and_the_sample_named(model):
    x = np.zeros((70, 3))
    x[66, 1] = np.nan
    with pytest.raises(ResdeployError, match="not finite") as caught:
        run(model, samples_of(x, np.zeros(70)))
    assert caught.value.where.endswith("x[66]")


def test_two_models_of_other_classes_are_refused(model, tmp_path):
    other = write_model(tmp_path / "other.onnx", labels=("bee", "ant", "cat"))
    with pytest.raises(ResdeployError, match="do not have the same classes"):
        run(model, samples_of(X, Y), against=other)


def test_raw_pixels_without_known_preprocessing_are_refused(tmp_path):
    bare = write_model(tmp_path / "bare.onnx", preprocess=None, labels=())
    with pytest.raises(ResdeployError, match="is not known"):
        run(bare, samples_of(np.zeros((2, 3), np.uint8), [0, 1]))
    assert run(bare, samples_of(X, Y)).model.result.num_correct == 3


def test_metadata_that_is_not_ours_is_named(tmp_path):
    path = write_model(tmp_path / "model.onnx")
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"resdeploy.preprocess": "{"})
    onnx.save(model, path)
    with pytest.raises(ResdeployError, match="metadata is not JSON"):
        run(path, samples_of(X, Y))


def test_a_model_without_a_row_of_scores_is_refused(tmp_path):
    text = (
        '<ir_version: 8, opset_import: ["": 18]> g (float[N, 1, 4] x) => (float[N, 1, 4] y)'
        " { y = Relu (x) }"
    )
    onnx.save(parser.parse_model(text), tmp_path / "map.onnx")
    with pytest.raises(ResdeployError, match="no single row of class scores"):
        run(tmp_path / "map.onnx", samples_of(X, Y))
