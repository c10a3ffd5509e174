"""Calling real sessions in every way: what agrees, and that each planted disagreement is seen."""

import types

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser

from resdeploy.errors import ProviderError
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.session import session as session_module
from resdeploy.session.run import run_session
from resdeploy.session.session import Session, open_session
from resdeploy.verify import conformance as conformance_module
from resdeploy.verify.conformance import check_conformance
from resdeploy.verify.golden_file import Golden

SPEC = SessionSpec(num_threads=2)
FEATURES, HIDDEN, CLASSES = 12, 32, 7


def proto(batch="N"):
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\n'
        f"mlp (float[{batch}, {FEATURES}] x) => (float[{batch}, {CLASSES}] y) "
        "{ a = Gemm(x, w1, b1) b = Relu(a) y = Gemm(b, w2, b2) }"
    )
    for name, value in WEIGHTS.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model.SerializeToString()


def _weights():
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (FEATURES, HIDDEN),
        "b1": (HIDDEN,),
        "w2": (HIDDEN, CLASSES),
        "b2": (CLASSES,),
    }
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


WEIGHTS = _weights()


def compute(x, dtype):
    w = {name: value.astype(dtype) for name, value in WEIGHTS.items()}
    return np.maximum(x.astype(dtype) @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]


def make_golden(num_inputs):
    x = np.random.default_rng(1).normal(size=(num_inputs, FEATURES)).astype(np.float32)
    reference = compute(x, np.float64)
    return Golden(
        inputs=x,
        reference=reference,
        noise_l2=np.linalg.norm(compute(x, np.float32) - reference, axis=1),
        labels=None,
        info=GoldenInfo(source="numpy", inputs="random", num_inputs=num_inputs),
    )


@pytest.fixture
def golden():
    return make_golden(40)


@pytest.fixture
def model():
    return proto()


def with_fault(session, fault):
    """Return the session with outputs that went through fault(outputs, inputs)."""
    (name,) = (tensor.name for tensor in session.ort.get_inputs())

    def run(outputs, feed):
        (y,) = session.ort.run(outputs, feed)
        return [fault(y.copy(), feed[name])]

    ort = types.SimpleNamespace(
        run=run, get_inputs=session.ort.get_inputs, get_outputs=session.ort.get_outputs
    )
    return Session(ort, session.info)


def scaled_if(condition):
    """A fault of 1e-5, some 50 times the noise, on the last row, where `condition` says so."""

    def fault(y, x):
        if condition(y, x):
            y[-1] *= np.float32(1 + 1e-5)
        return y

    return fault


def test_a_right_session_agrees_with_itself_in_every_way(model, golden):
    conformance = check_conformance(model, golden, open_session(model, SPEC))
    assert conformance.passed, conformance.reasons
    assert list(conformance.batches) == ["2", "3", "7", "32"]
    assert list(conformance.levels) == ["disabled", "basic", "extended"]
    assert list(conformance.stress) == ["constant", "subnormal", "extreme"]
    assert conformance.missing == ()
    assert conformance.limit == 8


@pytest.mark.parametrize("size", [2, 3, 7, 32])
def test_one_row_that_is_off_in_one_batch_size_fails(model, golden, size):
    session = with_fault(open_session(model, SPEC), scaled_if(lambda y, _: len(y) == size))
    conformance = check_conformance(model, golden, session)
    assert [reason.partition(":")[0] for reason in conformance.reasons] == [f"batch {size}"]


def test_a_row_that_depends_on_its_neighbours_fails(model, golden):
    def leak(y, _):
        y[1:] += np.float32(1e-4) * y[:-1]
        return y

    conformance = check_conformance(model, golden, with_fault(open_session(model, SPEC), leak))
    assert min(conformance.batches.values()) > conformance.limit


@pytest.mark.parametrize("level", ["disabled", "basic", "extended"])
def test_one_graph_level_that_differs_fails(model, golden, monkeypatch, level):
    def open_off(model, spec):
        session = open_session(model, spec)
        # The session with nothing to compare with would blame the stress inputs instead.
        wrong = spec.graph_level == level and spec.provider == "cpu" and levels.pop(level, False)
        return with_fault(session, scaled_if(lambda *_: True)) if wrong else session

    levels = {level: True}
    monkeypatch.setattr(conformance_module, "open_session", open_off)
    conformance = check_conformance(model, golden, open_session(model, SPEC))
    assert [reason.partition(":")[0] for reason in conformance.reasons] == [f"graph level {level}"]


STRESS_FAULTS = {
    "constant": lambda y, x: len(np.unique(x[-1])) == 1 and x[-1, 0] > 0,
    "subnormal": lambda y, x: 0 < np.abs(x[-1]).max() < 2.0**-126,
    "extreme": lambda y, x: np.abs(x[-1]).max() > 1e6,
}


@pytest.mark.parametrize("kind", STRESS_FAULTS)
def test_one_kind_of_odd_values_that_goes_wrong_fails(model, golden, kind):
    session = with_fault(open_session(model, SPEC), scaled_if(STRESS_FAULTS[kind]))
    conformance = check_conformance(model, golden, session)
    assert [reason.partition(":")[0] for reason in conformance.reasons] == [f"stress input {kind}"]


@pytest.mark.parametrize("kind", STRESS_FAULTS)
def test_one_kind_of_odd_values_that_is_not_finite_fails(model, golden, kind):
    def fault(y, x):
        if STRESS_FAULTS[kind](y, x):
            y[-1, 2] = np.nan
        return y

    session = with_fault(open_session(model, SPEC), fault)
    conformance = check_conformance(model, golden, session)
    assert conformance.reasons == (
        f"stress input {kind}: a row is not finite, or not of the same shape",
    )


def test_odd_values_that_harm_their_neighbours_fail(model, golden):
    def spread(y, x):
        if len(x) > 1 and np.abs(x).max() > 1e6:
            y[0] += 1
        return y

    conformance = check_conformance(model, golden, with_fault(open_session(model, SPEC), spread))
    assert [reason.partition(":")[0] for reason in conformance.reasons] == ["stress input constant"]


def test_runs_that_differ_in_the_last_bit_are_reported(model, golden):
    calls = []

    def drift(y, _):
        calls.append(1)
        y[0] = np.nextafter(y[0], np.float32(len(calls) % 2 * 1e9))
        return y

    conformance = check_conformance(model, golden, with_fault(open_session(model, SPEC), drift))
    assert conformance.passed, conformance.reasons
    assert not conformance.deterministic
    assert 0 < conformance.max_run_to_run < 1e-5


def test_an_optimisation_that_changes_the_model_is_found(monkeypatch):
    """The wrong fusion of this very runtime, let loose: see _WRONG_OPTIMIZERS."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\n'
        "wrong (float[3, 3] x) => (float[3, 3] y) {"
        " a = MatMul(x, w) t = Transpose<perm=[1, 0]>(a)"
        " b = BatchNormalization(t, gamma, beta, mean, var) y = Transpose<perm=[1, 0]>(b) }"
    )
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(0.5, 2, 3) for name in ("gamma", "beta", "mean", "var")}
    for name, value in {"w": rng.normal(size=(3, 3)), **values}.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    content = model.SerializeToString()
    x = rng.normal(size=(3, 3)).astype(np.float32)
    plain = run_session(open_session(content, SessionSpec(graph_level="disabled")), x)
    golden = Golden(
        inputs=x,
        reference=plain.astype(np.float64),
        noise_l2=np.full(3, 1e-6),
        labels=None,
        info=GoldenInfo(source="itself", inputs="random", num_inputs=3),
    )
    right = check_conformance(content, golden, open_session(content, SPEC))
    assert max(right.levels.values()) <= right.limit
    monkeypatch.setattr(session_module, "_WRONG_OPTIMIZERS", {})
    wrong = check_conformance(content, golden, open_session(content, SPEC))
    assert wrong.levels["disabled"] > 1e3
    assert any(reason.startswith("graph level disabled") for reason in wrong.reasons)


# --- what cannot be tried is said ----------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_left_at_that_and_the_rest_is_tried(golden, batch):
    model = proto(batch)
    conformance = check_conformance(model, golden, open_session(model, SPEC))
    assert conformance.passed, conformance.reasons
    assert conformance.batches == {}
    assert conformance.missing == (f"other batches: the model takes batches of {batch} only",)
    assert len(conformance.levels) == len(conformance.stress) == 3


@pytest.mark.parametrize(("num_inputs", "batches"), [(1, []), (2, ["2"]), (5, ["2", "3", "5"])])
def test_few_inputs_make_few_batches(model, num_inputs, batches):
    conformance = check_conformance(model, make_golden(num_inputs), open_session(model, SPEC))
    assert list(conformance.batches) == batches
    assert conformance.missing == (f"batches of more than {num_inputs}: there are no more inputs",)


def test_a_graph_level_that_does_not_open_is_said(model, golden, monkeypatch):
    def refuse(model, spec):
        if spec.graph_level == "basic":
            raise ProviderError("Shape on CPUExecutionProvider.")
        return open_session(model, spec)

    monkeypatch.setattr(conformance_module, "open_session", refuse)
    conformance = check_conformance(model, golden, open_session(model, SPEC))
    assert "basic" not in conformance.levels
    assert conformance.missing == ("graph level basic: Shape on CPUExecutionProvider.",)


def test_without_the_other_implementation_there_are_no_stress_inputs(model, golden, monkeypatch):
    def refuse(*_):
        raise ProviderError("Not here.")

    monkeypatch.setattr(conformance_module, "open_session", refuse)
    conformance = check_conformance(model, golden, open_session(model, SPEC))
    assert conformance.stress == {}
    assert "stress inputs: there is nothing to compare with. Not here." in conformance.missing


def test_the_plain_session_itself_is_compared_with_the_optimised_one(model, golden, monkeypatch):
    specs = []

    def spy(model, spec):
        specs.append(spec)
        return open_session(model, spec)

    monkeypatch.setattr(conformance_module, "open_session", spy)
    plain = SessionSpec(num_threads=2, graph_level="disabled")
    check_conformance(model, golden, open_session(model, plain))
    assert specs[-1].graph_level == "all"
    check_conformance(model, golden, open_session(model, SPEC))
    assert specs[-1] == plain


# --- the odd inputs ------------------------------------------------------------------------------


def test_odd_inputs_are_what_their_names_say():
    x = np.random.default_rng(0).normal(size=(5, 3, 4, 4)).astype(np.float32)
    odd = conformance_module._odd_inputs(x)
    assert [np.unique(image).tolist() for image in odd["constant"]] == [
        [0.0],
        [x.min()],
        [x.max()],
    ]
    magnitudes = np.abs(odd["subnormal"][odd["subnormal"] != 0])
    assert magnitudes.max() < np.finfo(np.float32).tiny
    assert len(np.unique(magnitudes)) > 10
    assert {value.dtype for value in odd.values()} == {np.dtype(np.float32)}


def of_inputs(inputs):
    info = types.SimpleNamespace(outputs=())
    return types.SimpleNamespace(inputs=np.array(inputs, np.float32), info=info)


def test_the_extreme_input_keeps_a_margin_from_overflow():
    squares = helper.make_model(
        parser.parse_graph("g (float[N, 2] x) => (float[N, 2] y) { y = Mul(x, x) }"),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 18)],
    )
    session = open_session(squares.SerializeToString(), SPEC)
    extreme = conformance_module._extreme_inputs(of_inputs([[1, -3]]), session)
    assert np.abs(extreme).max() == np.float32(2.0**40)


def test_no_input_is_extreme_where_all_overflow_or_are_zero():
    session = types.SimpleNamespace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            conformance_module, "session_outputs", lambda *_, **__: {"y": np.array([np.inf])}
        )
        assert conformance_module._extreme_inputs(of_inputs([[1, 1]]), session) is None
        patch.setattr(
            conformance_module, "session_outputs", lambda *_, **__: {"y": np.array([1.0])}
        )
        assert conformance_module._extreme_inputs(of_inputs([[0, 0]]), session) is None
