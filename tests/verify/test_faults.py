"""Faults are planted by output channel, however the layer stores its weight."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from resdeploy.graph.float64 import evaluate_float64
from resdeploy.verify.faults import FAULTS, Workpiece


def dense(weight_OI: np.ndarray, *, by_row: bool) -> onnx.ModelProto:
    stored = weight_OI if by_row else np.ascontiguousarray(weight_OI.T)
    bias = np.arange(len(weight_OI), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc", transB=int(by_row))],
        "dense",
        [helper.make_tensor_value_info("x", 1, [3, weight_OI.shape[1]])],
        [helper.make_tensor_value_info("y", 1, [3, len(weight_OI)])],
        [numpy_helper.from_array(stored, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("name", ["output: two classes swapped", "weights in int8, per channel"])
def test_a_gemm_stored_either_way_gets_the_same_fault(name):
    random = np.random.default_rng(0)
    weight_OI = random.normal(size=(4, 5)).astype(np.float32) * np.float32(
        [[1], [10], [1e2], [1e3]]
    )
    plant = next(fault.plant for fault in FAULTS if fault.name == name)
    x = random.normal(size=(3, 5))
    outputs = []
    for by_row in (True, False):
        faulty = plant(Workpiece(model=dense(weight_OI, by_row=by_row), layers=()))
        assert faulty is not None
        outputs.append(evaluate_float64(faulty, {"x": x})["y"])
    assert np.allclose(*outputs, rtol=1e-12)
    correct = evaluate_float64(dense(weight_OI, by_row=True), {"x": x})["y"]
    assert not np.allclose(outputs[0], correct, rtol=1e-4)
