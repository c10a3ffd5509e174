"""Ranges by what they do to the outputs, each with the rest of the network in float32."""

import numpy as np
import pytest
from small_networks import inputs, prepared_resnet

from resdeploy.quant.calibration import calibrate
from resdeploy.quant.onnx_graph import Constants
from resdeploy.quant.qdq import insert_qdq
from resdeploy.quant.ranges import widest_range
from resdeploy.quant.refine_ranges import refine_ranges
from resdeploy.quant.runtime import Runner

X = inputs(64)
BEFORE_SUM, AFTER_SUM = "block1.conv2", "block1.relu"


def widest_of(model):
    return {name: widest_range(found) for name, found in calibrate(model, iter(X)).items()}


def error_of(model, ranges):
    """The distance of the outputs of the whole model in int8."""
    found = Runner(insert_qdq(model, ranges, types="u8s8"), optimize=False).run_rows(X)
    return np.linalg.norm(found - Runner(model, optimize=False).run_rows(X))


def test_what_the_relu_after_a_sum_drops_anyway_is_clipped():
    model = prepared_resnet()
    constants = Constants(model)
    # Half of the channels are so low that nothing of them is left after the sum.
    low = constants["block1.conv2.bias"].copy()
    low[::2] -= 40
    constants["block1.conv2.bias"] = low
    widest = widest_of(model)
    assert widest[BEFORE_SUM][0] < -30
    refined = refine_ranges(model, widest, [BEFORE_SUM], widest, X, types="u8s8")
    assert refined[BEFORE_SUM][0] > 0.5 * widest[BEFORE_SUM][0]
    assert refined[BEFORE_SUM][1] > 0.5 * widest[BEFORE_SUM][1]
    others = {name: range_ for name, range_ in refined.items() if name != BEFORE_SUM}
    assert others == {name: range_ for name, range_ in widest.items() if name != BEFORE_SUM}
    assert error_of(model, refined) < 0.8 * error_of(model, widest)


@pytest.mark.parametrize("types", ["u8s8", "s8s8", "s8s8-symmetric"])
@pytest.mark.parametrize("factor", [0.3, 4.0])
def test_a_range_that_is_much_too_narrow_or_too_wide_is_mended(types, factor):
    model = prepared_resnet()
    widest = widest_of(model)
    wrong = {
        name: (factor * low, factor * high) if name == AFTER_SUM else (low, high)
        for name, (low, high) in widest.items()
    }
    bounds = {name: (4 * low, 4 * high) for name, (low, high) in widest.items()}
    refined = refine_ranges(model, wrong, [AFTER_SUM], bounds, X, types=types)
    assert 0.6 < refined[AFTER_SUM][1] / widest[AFTER_SUM][1] < 1.4


def test_no_range_goes_beyond_the_widest_and_the_model_s_own_input_has_one():
    model = prepared_resnet()
    widest = widest_of(model)
    names = ["input", "stem.relu", AFTER_SUM]
    seen = []
    narrow = {name: (0.5 * low, 0.5 * high) for name, (low, high) in widest.items()}
    refined = refine_ranges(model, narrow, names, widest, X, types="u8s8", on_tensor=seen.append)
    assert seen == names
    for name in names:
        assert widest[name][0] <= refined[name][0] <= 0 <= refined[name][1] <= widest[name][1]
        assert refined[name] != narrow[name]
