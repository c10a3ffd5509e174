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
