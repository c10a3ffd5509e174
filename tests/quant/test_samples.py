import numpy as np
import pytest
from small_networks import inputs

from resdeploy.errors import ResdeployError
from resdeploy.quant.samples import Samples, SampleSplit, batches, spread


def test_a_quarter_is_held_out_and_never_calibrated_with():
    split = SampleSplit.of(Samples.of_array(inputs(400)))
    assert len(split.held_out) == 100
    assert len(split.calibrate) == 300
    seen = {sample.tobytes() for sample in split.read_calibration()}
    assert not seen & {sample.tobytes() for sample in split.held_out}
    assert {sample.tobytes() for sample in split.explored} <= seen
    assert split.warnings == ()


@pytest.mark.parametrize(
    ("num", "num_to_show", "num_held_out"),
    [
        (400, 0, 100),
        (400, 299, 299),  # what shows it, and enough to calibrate with
        (1000, 299, 500),  # twice as many as show it would be 598
        (2000, 299, 598),
        (4000, 299, 1000),
        (362, 299, 90),  # in vain: too few would be left
        (40, 299, 10),
        (160, 59, 80),
    ],
)
def test_as_many_are_held_out_as_show_the_budget(num, num_to_show, num_held_out):
    samples = Samples.of_array(np.random.default_rng(0).normal(size=(num, 3)))
    split = SampleSplit.of(samples, num_to_show=num_to_show)
    assert len(split.held_out) == num_held_out
    assert len(split.calibrate) == num - num_held_out
    # The steps of a search are measured on no more than before.
    assert len(split.held_out[split.tried]) <= 2 * max(1, num // 4)
    gaps = np.diff(sorted(set(range(num)) - set(split.calibrate)))
    assert gaps.max() - gaps.min() <= 1


def test_copies_are_on_one_side_alone_and_counted_once():
    x = np.concatenate([inputs(60), inputs(60)[::-1], inputs(60)])
    split = SampleSplit.of(Samples.of_array(x))
    seen = {sample.tobytes() for sample in split.read_calibration()}
    held_out = {sample.tobytes() for sample in split.held_out}
    assert len(seen) + len(held_out) == len(split.calibrate) + len(split.held_out) == 60
    assert not seen & held_out
    assert split.warnings == ("120 of 180 calibration samples are copies of others and left out",)


def test_labels_go_with_the_samples_that_are_held_out():
    x = inputs(100)
    labels = (x.mean(axis=(1, 2, 3)) > 0).astype(np.int64)
    split = SampleSplit.of(Samples.of_array(x, labels=labels))
    assert np.array_equal(split.labels, split.held_out.mean(axis=(1, 2, 3)) > 0)
    fewer = split.at_most(7)
    assert len(fewer.held_out) == len(fewer.labels) == 7
    assert np.array_equal(fewer.labels, fewer.held_out.mean(axis=(1, 2, 3)) > 0)


def test_a_sample_of_several_inputs_is_a_record():
    record = np.dtype([("left", np.float32, (3, 2)), ("right", np.float32, (5,))])
    samples = np.zeros(40, record)
    samples["left"] = np.random.default_rng(0).normal(size=(40, 3, 2))
    split = SampleSplit.of(Samples.of_array(samples))
    assert split.held_out["left"].shape == (10, 3, 2)
    samples["right"][3, 4] = np.nan
    with pytest.raises(ResdeployError, match="sample 3 holds NaN"):
        SampleSplit.of(Samples.of_array(samples))


def test_a_single_sample_is_looked_at_once():
    """It is judged on as well, and was counted twice."""
    warnings = SampleSplit.of(Samples.of_array(inputs(1))).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith("only 1 calibration sample: too few to hold any out")


def test_what_is_kept_in_memory_does_not_grow_with_the_samples():
    sample = inputs(1)[0]
    many = Samples(description="many", num=50_000, read=lambda indices: (sample for _ in indices))
    split = SampleSplit.of(many)
    assert (len(split.explored), len(split.held_out)) == (512, 1024)


def test_large_samples_are_kept_by_their_size():
    large = np.zeros((3, 512, 512), np.float32)  # 3 MiB
    many = Samples(description="large", num=400, read=lambda indices: (large for _ in indices))
    split = SampleSplit.of(many)
    assert (len(split.explored), len(split.held_out)) == (21, 42)


@pytest.mark.parametrize("index", [0, 3, 6])
def test_a_sample_that_is_not_finite_is_an_error_that_names_it(index):
    x = inputs(8)
    x[index, 0, 0, 0] = np.nan
    with pytest.raises(ResdeployError, match=f"sample {index} holds NaN"):
        SampleSplit.of(Samples.of_array(x))


def test_a_sample_beyond_those_in_memory_is_looked_at_too():
    x = np.concatenate([inputs(1000)] * 3)
    split = SampleSplit.of(Samples.of_array(x))
    place = next(i for i in split.calibrate if i not in spread(split.calibrate, 512))
    x[place] = np.inf
    with pytest.raises(ResdeployError, match=f"sample {place} holds NaN or infinity"):
        list(split.read_calibration())


def test_samples_of_two_shapes_are_an_error():
    two = [np.zeros((3, 8, 8), np.float32), np.zeros((3, 8, 9), np.float32)]
    samples = Samples(description="two", num=2, read=lambda indices: (two[i] for i in indices))
    with pytest.raises(ResdeployError, match="has shape"):
        SampleSplit.of(samples)


def test_no_samples_are_an_error():
    with pytest.raises(ResdeployError, match="no calibration samples"):
        SampleSplit.of(Samples.of_array(np.zeros((0, 3, 8, 8), np.float32)))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (inputs(1), "only 1 calibration sample:"),
        (np.repeat(inputs(1), 500, axis=0), "499 of 500 calibration samples are copies"),
        (np.full((500, 3, 8, 8), 0.5, np.float32), "every value"),
    ],
)
def test_odd_calibration_data_is_warned_about(x, words):
    assert any(words in warning for warning in SampleSplit.of(Samples.of_array(x)).warnings)


def test_chosen_samples_lie_evenly_over_their_order():
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), 5) == [0, 1, 2]


def test_the_last_batch_is_what_is_left():
    assert [len(b) for b in batches(iter(inputs(10)), 4)] == [4, 4, 2]
