"""The one feeder of samples: what a model is given, and what of its answers is kept."""

import numpy as np
import pytest

from resdeploy.session.batches import padded_batches, run_rows


@pytest.mark.parametrize("num", [1, 4, 7, 8])
@pytest.mark.parametrize(("fixed", "size"), [(None, 3), (4, 3), (0, 3)])
def test_every_sample_is_answered_once_and_in_its_place(num, fixed, size):
    x = np.arange(num * 6, dtype=np.float32).reshape(num, 2, 3)
    seen = []

    def run(batch):
        seen.append(len(batch))
        return {"same": batch, "sum": batch.sum(axis=(1, 2))}

    rows_NK = run_rows(run, x, fixed=fixed, size=size)
    np.testing.assert_array_equal(rows_NK[:, :6], x.reshape(num, 6))
    np.testing.assert_array_equal(rows_NK[:, 6], x.sum(axis=(1, 2)))
    assert max(seen) <= (fixed or size)
    assert not fixed or set(seen) == {fixed}


def test_what_fills_a_batch_up_is_its_last_sample():
    x = np.array([[1.0], [2.0], [3.0], [4.0], [np.inf]])
    *_, (batch, count) = padded_batches(x, fixed=3)
    assert (batch.tolist(), count) == ([[4.0], [np.inf], [np.inf]], 2)
