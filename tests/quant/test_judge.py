import math

import pytest

from resdeploy.quant.judge import why_not
from resdeploy.schema.quants import QuantQuality, QuantSpec


@pytest.mark.parametrize(
    ("budget", "num_reasons"),
    [
        ({"max_flips": 0.2, "max_error": 0.5}, 0),
        ({"max_flips": 0.1, "max_error": 0.5}, 1),
        ({"max_flips": 0.2, "max_error": 0.4}, 1),
        ({"max_flips": math.nan, "max_error": math.nan}, 2),
    ],
)
def test_a_budget_that_is_no_number_holds_for_nothing(budget, num_reasons):
    quality = QuantQuality(error=0.5, num_inputs=10, num_flips=2)
    assert len(why_not(quality, QuantSpec(**budget))) == num_reasons
