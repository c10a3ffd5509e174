import numpy as np
import pytest

from resdeploy.quant.judge import Judge
from resdeploy.schema.quants import JudgedOutput
from resdeploy.statistics.proportions import upper_bound


def quality(kind, reference, candidate, *, labels=None, threshold=0.0):
    output = JudgedOutput(name="y", judged_as=kind, because="as stated", threshold=threshold)
    judge = Judge(
        outputs=(output,),
        reference={"y": np.array(reference)},
        labels=None if labels is None else np.array(labels),
    )
    return judge.quality({"y": np.array(candidate)})


def test_scores_flip_where_another_class_leads():
    found = quality("scores", [[1.0, 0.0], [3.0, 5.0]], [[0.9, 0.1], [5.0, 3.0]])
    (one,) = found.outputs
    assert (found.num_flips, one.changed) == (1, 1)
    assert one.changed_at_most == upper_bound(1, 2)
    assert (found.largest_flip_margin, found.median_margin) == (2.0, 1.5)
    assert one.lost is None


def test_with_labels_what_was_right_and_is_not_any_more_is_lost_and_luck_is_no_gain():
    reference = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    candidate = [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    (one,) = quality("scores", reference, candidate, labels=[0, 1, 0, 0]).outputs
    assert (one.changed, one.lost) == (2, 1)
    assert (one.accuracy_before, one.accuracy) == (0.5, 0.5)
    assert one.lost_at_most == upper_bound(1, 4)


@pytest.mark.parametrize(("threshold", "num_flips"), [(0.0, 1), (0.5, 2)])
def test_a_logit_flips_where_it_changes_sides(threshold, num_flips):
    found = quality("logit", [[-0.1], [0.6], [2.0]], [[0.1], [0.4], [0.3]], threshold=threshold)
    assert found.num_flips == num_flips
    assert found.outputs[0].largest_error == pytest.approx(1.7)


def test_one_number_of_one_sign_never_flips_and_has_an_error():
    found = quality("regression", [[10.0], [20.0]], [[10.0], [21.0]])
    assert found.num_flips == 0
    assert found.outputs[0].changed is None
    assert found.outputs[0].worst_error == 0.05


def test_of_a_map_of_classes_each_input_counts_as_the_fraction_of_its_places():
    reference = np.zeros((3, 2, 2, 2))
    reference[:, 1] = 1.0
    candidate = reference.copy()
    candidate[0, 0, 0, 0] = 2.0
    (one,) = quality("classes", reference, candidate).outputs
    assert one.changed == 0.25
    assert one.changed_at_most == upper_bound(0.25, 3, is_counted=False)


def test_with_masks_there_is_an_accuracy_and_iou_and_places_of_no_class_do_not_count():
    reference = np.zeros((1, 2, 1, 4))
    reference[0, 1, 0, :2] = 1.0  # classes 1 1 0 0
    candidate = reference.copy()
    candidate[0, 1, 0, 2] = 2.0  # classes 1 1 1 0
    (one,) = quality("classes", reference, candidate, labels=[[[1, 1, 0, -1]]]).outputs
    assert (one.accuracy_before, one.accuracy) == (1.0, pytest.approx(2 / 3))
    assert one.lost == pytest.approx(1 / 3)
    assert (one.iou_before, one.iou) == (1.0, pytest.approx((2 / 3 + 0) / 2))


def test_class_indices_are_compared_one_by_one():
    found = quality("classes", [0, 1, 2], [0, 2, 2])
    assert (found.num_flips, found.outputs[0].changed, found.outputs[0].error) == (1, 1, None)
    assert found.error == pytest.approx(1 / 3)


def test_embeddings_are_compared_by_direction_and_by_their_nearest_neighbours():
    reference = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]
    (same,) = quality("embedding", reference, 3 * np.array(reference)).outputs
    assert (same.least_cosine, same.same_nearest) == (pytest.approx(1.0), 1.0)
    turned = [[1.0, 0.0], [0.1, 0.9], [0.0, 1.0], [0.9, 0.1]]
    (other,) = quality("embedding", reference, turned).outputs
    assert other.least_cosine < 0.25
    assert other.same_nearest == 0.0


def test_several_outputs_count_alike_however_large_their_numbers_are():
    outputs = tuple(JudgedOutput(name=n, judged_as="map", because="") for n in ("small", "large"))
    reference = {"small": np.full((2, 3, 4), 1.0), "large": np.full((2, 3, 4), 1000.0)}
    judge = Judge(outputs=outputs, reference=reference)
    found = judge.quality({"small": reference["small"] * 1.3, "large": reference["large"] * 1.4})
    assert [one.error for one in found.outputs] == [pytest.approx(0.3), pytest.approx(0.4)]
    assert found.error == pytest.approx(np.sqrt((0.09 + 0.16) / 2))


@pytest.mark.parametrize("kind", ["scores", "logit", "classes", "map", "embedding", "regression"])
def test_what_is_not_finite_is_infinitely_wrong_and_no_decision_of_it_is_kept(kind):
    shape = (2, 1) if kind == "logit" else (2, 3)
    reference = np.zeros(shape) + np.arange(shape[1])
    candidate = np.full(shape, np.nan)
    found = quality(kind, reference, candidate)
    assert found.error == np.inf
    assert found.num_flips == (2 if kind in ("scores", "logit", "classes") else 0)
