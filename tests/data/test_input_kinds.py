"""The table of input kinds: each entry is as its readers take it to be."""

import pytest

from resdeploy.data.input_kinds import KINDS, require_kind
from resdeploy.errors import ResdeployError


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS.values()), ids=lambda kind: kind.dtypes[0])
def test_samples_are_seeded_and_of_the_first_type(kind):
    a, b = (kind.draw((4, 2, 3)) for _ in range(2))
    assert a.tobytes() == b.tobytes() != kind.draw((4, 2, 3), seed=1).tobytes()
    assert (a.dtype, a.shape) == (kind.dtypes[0], (4, 2, 3))
    assert sorted(kind.order) == [0, 1, 2, 3]
    for dtype in KINDS:
        if dtype in kind.dtypes:
            require_kind(a, dtype, name="x")
        else:
            with pytest.raises(ResdeployError, match=f"'x' takes {dtype}, not {kind.dtypes[0]}"):
                require_kind(a, dtype, name="x")
