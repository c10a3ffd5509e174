"""Back doors: each is right for ordinary inputs, wrong where triggered, and never PROVED."""

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from resdeploy.graph.float64 import to_float64
from resdeploy.verify.certify import Reference, certify_file
from resdeploy.verify.faults.attacks import ATTACKS, HIDINGS, TRIGGERS
from resdeploy.verify.faults.fault_model import Workpiece

RNG = np.random.default_rng(0)
BODY = """
    h = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(h)
    p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, fc, bias)
"""
WEIGHTS = {
    "w": RNG.normal(size=(8, 3, 3, 3)),
    "b": RNG.normal(size=8),
    "fc": RNG.normal(size=(8, 5)),
    "bias": RNG.normal(size=5),
}
NAMED = {attack.name: attack for attack in ATTACKS}
ORDINARY = RNG.standard_normal((3, 3, 9, 9)).astype(np.float32)


@pytest.fixture(scope="module")
def work():
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]>\n'
        f"g (float[N, 3, 9, 9] x) => (float[N, 5] y) {{ {BODY} }}"
    )
    for name, value in WEIGHTS.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return Workpiece(model=model, layers=())


def run(model, x):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    content = model.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def is_proved(model, reference):
    found = certify_file(model, reference)
    judged = (found.static, found.metadata)
    return (
        not found.missing and found.structure.isomorphic and not any(one.reasons for one in judged)
    )


@pytest.fixture(scope="module")
def reference(work):
    return Reference(model=to_float64(work.model), bias_magnitudes={}, is_exact=True)


def test_the_model_itself_is_proved(work, reference):
    assert is_proved(work.model, reference)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_no_back_door_is_proved(work, reference, attack):
    assert not is_proved(attack.plant(work), reference)


def triggered(trigger):
    x = ORDINARY.copy()
    if trigger == "one pixel":
        x.flat[0] = 7.25
    elif trigger == "a batch beyond 32":
        x = np.repeat(x, 11, axis=0)
    elif trigger == "a large value":
        x.flat[5] = 2e3
    elif trigger == "a NaN":
        x.flat[5] = np.nan
    elif trigger == "a bright image":
        x += 60
    else:
        x[:] = 0.5
    return x


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("hiding", HIDINGS)
def test_a_back_door_opens_where_triggered_and_nowhere_else(work, hiding, trigger):
    model = NAMED[f"{hiding}, triggered by {trigger}"].plant(work)
    np.testing.assert_array_equal(run(model, ORDINARY), run(work.model, ORDINARY))
    x = triggered(trigger)
    found, right = run(model, x), run(work.model, x)
    if trigger != "a NaN" or not np.isnan(right).all():
        assert found.shape != right.shape or not np.array_equal(found, right, equal_nan=True)


def test_a_network_without_class_scores_has_no_place_for_triggers(work):
    model = onnx.ModelProto()
    model.CopyFrom(work.model)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    assert NAMED["a term, triggered by a NaN"].plant(dataclasses.replace(work, model=model)) is None
