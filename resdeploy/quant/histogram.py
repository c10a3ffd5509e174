"""A histogram of a stream whose range is not known: memory does not grow with the stream.

The bins cover [-reach, reach] evenly, with a fixed even number of them. When a value lies beyond,
reach is doubled and each two neighbours become one, so that nothing is read twice.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["StreamHistogram"]

_NUM_BINS = 16384


class StreamHistogram:
    """Counts of all values that were added, with the exact least and largest of them."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(_NUM_BINS, np.int64)
        self.reach = 0.0
        self.low = np.inf
        self.high = -np.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Count finite values."""
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if largest == 0.0:
            self.counts[_NUM_BINS // 2] += flat.size
            return
        if self.reach == 0.0:
            self.reach = largest
        while self.reach < largest:
            self._double()
        half = _NUM_BINS // 2
        places = (flat * np.float32(half / self.reach) + np.float32(half)).astype(np.int32)
        # The largest value itself would be one beyond the last bin.
        np.minimum(places, _NUM_BINS - 1, out=places)
        np.maximum(places, 0, out=places)
        self.counts += np.bincount(places, minlength=_NUM_BINS)

    def edges(self) -> NDArray[np.float64]:
        """Return the edges of the bins, one more than there are bins."""
        return np.linspace(-self.reach, self.reach, _NUM_BINS + 1)

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(_NUM_BINS, np.int64)
        quarter = _NUM_BINS // 4
        self.counts[quarter : 3 * quarter] = pairs
        self.reach *= 2
