"""Ranges of activations from the histograms of calibration, by four methods.

minmax      from the least value to the largest: nothing is clipped
percentile  a hundred-thousandth of the values is clipped, half at either end
mse         the clipping and rounding errors of the counted values, squared, are least
entropy     the quantised distribution is nearest to the counted one (Kullback-Leibler), as
            onnxruntime.quantization finds it

Each range holds 0, which padding and ReLU need exactly.
"""

from collections.abc import Callable, Mapping

import numpy as np
from onnxruntime.quantization.calibrate import HistogramCollector

from resdeploy.quant.calibration import StreamHistogram
from resdeploy.schema.quants import CalibrationMethod

__all__ = ["METHODS", "Range", "find_range", "widest_range"]

Range = tuple[float, float]

_PERCENTILE = 99.999
_LEVELS = 255
# Fractions of the whole range that the least-squares search tries.
_FRACTIONS = np.linspace(0.3, 1.0, 71)
# The search for least entropy takes time with the square of this.
_ENTROPY_BINS = 512
_ENTROPY_LEVELS = 128


def find_range(method: CalibrationMethod, histogram: StreamHistogram) -> Range:
    """Return the range that a method finds for a tensor."""
    if not histogram.low < histogram.high:  # a constant: its own value, and 0
        return widest_range(histogram)
    return METHODS[method](histogram)


def widest_range(histogram: StreamHistogram) -> Range:
    """Return the range in which nothing is clipped."""
    return min(histogram.low, 0.0), max(histogram.high, 0.0)


def _percentile(histogram: StreamHistogram) -> Range:
    edges = histogram.edges()
    below = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (1 - _PERCENTILE / 100) / 2
    last = len(histogram.counts)
    low = edges[min(int(np.searchsorted(below, tail)), last)]
    high = edges[min(int(np.searchsorted(below, 1 - tail)) + 1, last)]
    least, largest = widest_range(histogram)
    return max(least, min(float(low), 0.0)), min(largest, max(float(high), 0.0))


def _mse(histogram: StreamHistogram) -> Range:
    least, largest = widest_range(histogram)
    edges = histogram.edges()
    counted = histogram.counts > 0
    centres = ((edges[1:] + edges[:-1]) / 2)[counted]
    weights = histogram.counts[counted].astype(np.float64)
    lows = least * _FRACTIONS if least < 0 else np.zeros(1)
    highs = largest * _FRACTIONS if largest > 0 else np.zeros(1)
    # The two ends are searched in turn: the clipping of one hardly depends on the other.
    low, high = least, largest
    for _ in range(2):
        high = float(min(highs, key=lambda at: _squared_error(centres, weights, low, at)))
        low = float(min(lows, key=lambda at: _squared_error(centres, weights, at, high)))
    return low, high


def _squared_error(centres: np.ndarray, weights: np.ndarray, low: float, high: float) -> float:
    """Return the sum of squared errors of clipping to a range and rounding within it."""
    step = (high - low) / _LEVELS
    beyond = np.maximum(centres - high, 0.0) + np.maximum(low - centres, 0.0)
    # Rounding errors are spread evenly over a step: variance step^2 / 12.
    return float(np.sum(weights * np.where(beyond > 0, beyond**2, step**2 / 12)))


def _entropy(histogram: StreamHistogram) -> Range:
    counts = histogram.counts.reshape(_ENTROPY_BINS, -1).sum(axis=1)
    edges = np.linspace(-histogram.reach, histogram.reach, _ENTROPY_BINS + 1)
    collector = HistogramCollector(
        method="entropy",
        symmetric=False,
        num_bins=_ENTROPY_BINS,
        num_quantized_bins=_ENTROPY_LEVELS,
        percentile=_PERCENTILE,
        scenario="same",
    )
    least, largest = widest_range(histogram)
    with np.errstate(all="ignore"):
        found = collector.get_entropy_threshold(
            (counts, edges, np.float64(least), np.float64(largest), histogram.reach),
            _ENTROPY_LEVELS,
        )
    return max(least, min(float(found[0]), 0.0)), min(largest, max(float(found[1]), 0.0))


METHODS: Mapping[CalibrationMethod, Callable[[StreamHistogram], Range]] = {
    "minmax": widest_range,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
