import numpy as np
import pytest

from resdeploy.quant.calibration import StreamHistogram
from resdeploy.quant.ranges import METHODS, find_range, widest_range


def counted(*batches):
    histogram = StreamHistogram()
    for batch in batches:
        histogram.add(np.asarray(batch, np.float32))
    return histogram


def test_a_stream_in_many_batches_is_counted_as_the_whole():
    random = np.random.default_rng(0)
    # Ever larger, so that the range is widened on the way.
    batches = [random.normal(size=1000) * 2.0**k for k in range(8)]
    histogram = counted(*batches)
    values = np.concatenate(batches).astype(np.float32)
    assert histogram.counts.sum() == len(values)
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    exact, _ = np.histogram(values, histogram.edges())
    # Values on an edge may fall to either side.
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(exact)).max() <= 3


def test_the_memory_of_a_histogram_does_not_depend_on_what_it_counted():
    few, many = counted(np.ones(10)), counted(*(np.arange(1000) * k for k in range(50)))
    assert few.counts.nbytes == many.counts.nbytes


def test_zeros_are_counted_before_anything_else_is_seen():
    histogram = counted(np.zeros(7), [1.0, -0.5])
    assert histogram.counts.sum() == 9
    assert histogram.counts[len(histogram.counts) // 2] == 7


@pytest.mark.parametrize("method", METHODS)
def test_every_range_holds_zero_and_lies_within_the_values(method):
    random = np.random.default_rng(1)
    for values in (random.normal(size=5000), random.uniform(1, 3, size=5000), -np.ones(9)):
        low, high = find_range(method, counted(values))
        assert low <= 0 <= high
        assert low >= min(0.0, np.float32(values.min()))
        assert high <= max(0.0, np.float32(values.max())) + 1e-3


def test_minmax_keeps_an_outlier_that_percentile_and_mse_clip():
    values = np.append(np.random.default_rng(2).uniform(0, 1, size=500_000), 50.0)
    assert find_range("minmax", counted(values))[1] == 50.0
    assert find_range("percentile", counted(values))[1] < 1.1
    # A lost outlier costs 49^2, as much as a step of 0.2 instead of 0.004 costs 500,000 others.
    assert 10 < find_range("mse", counted(values))[1] < 50


def test_mse_finds_the_range_that_has_the_least_measured_error():
    values = np.random.default_rng(3).laplace(size=200_000).astype(np.float32)

    def measured(low, high):
        step = (high - low) / 255
        return float(np.mean((np.clip(np.rint(values / step) * step, low, high) - values) ** 2))

    found = find_range("mse", counted(values))
    whole = find_range("minmax", counted(values))
    assert measured(*found) < 0.8 * measured(*whole)
    grid = [f * whole[1] for f in np.linspace(0.2, 1, 33)]
    best = min(measured(-at, at) for at in grid)
    assert measured(*found) < 1.1 * best


def test_the_widest_range_clips_nothing_and_holds_zero():
    assert widest_range(counted([2.0, 3.5])) == (0.0, 3.5)
    assert widest_range(counted([-1.0, 0.5], [4.0])) == (-1.0, 4.0)
