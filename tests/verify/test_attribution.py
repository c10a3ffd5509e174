"""Attribution of an error: the two positions of a provider's switch, told apart.

A CPU has no such switch. Here the fast position is the same network with its weights in fewer bits,
behind sessions that say they are a provider's which has one.
"""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from resdeploy.cli.render import render
from resdeploy.errors import ProviderError
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.verdicts import GoldenInfo, PrecisionNoise, ProviderVerdict, VerifyReport
from resdeploy.session.run import session_outputs
from resdeploy.session.session import Session, open_session
from resdeploy.verify import outputs as outputs_module
from resdeploy.verify.attribution import attribute_error, facts
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.outputs import judge_session_outputs

TEXT = """<ir_version: 8, opset_import: ["": 18]>
    product (float[N, 64] x) => (float[N, 10] y) { y = MatMul (x, w) }"""


def with_bits(weight: np.ndarray, num_bits: int) -> np.ndarray:
    """Return float32 values rounded to a mantissa of `num_bits`."""
    mantissa, exponent = np.frexp(weight)
    return np.ldexp(np.round(mantissa * 2.0**num_bits) / 2.0**num_bits, exponent)


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)


@pytest.fixture
def save(tmp_path, weight):
    def write(num_bits: int = 24) -> Path:
        model = parser.parse_model(TEXT)
        values = with_bits(weight, num_bits).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name="w"))
        path = tmp_path / f"bits{num_bits}.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def golden(weight) -> Golden:
    inputs = np.random.default_rng(1).normal(size=(12, 64)).astype(np.float32)
    reference = inputs.astype(np.float64) @ weight.astype(np.float64)
    noise = np.linalg.norm((inputs @ weight) - reference, axis=1)
    rounded = with_bits(inputs, 11).astype(np.float64) @ with_bits(weight, 11).astype(np.float64)
    tf32 = float(np.linalg.norm(rounded - reference) / np.linalg.norm(reference))
    levels = PrecisionNoise(
        num_inputs=12, float32=1e-7, tf32=tf32, float16=tf32, bfloat16=8 * tf32, int8=30 * tf32
    )
    info = GoldenInfo(
        source="product", inputs="random", num_inputs=len(inputs), precision_noise=levels
    )
    return Golden(inputs=inputs, reference=reference, noise_l2=noise, labels=None, info=info)


def pretend(session: Session, spec: SessionSpec) -> Session:
    """Return a session of the CPU that says it is one of `spec`."""
    return dataclasses.replace(session, info=dataclasses.replace(session.info, spec=spec))


def attribute(save, golden, spec, *, fast_bits, exact_bits=24):
    """Return the attribution for a session of `spec`, whose fast position has fewer bits."""
    opened = []

    def open_on(model, wanted):
        opened.append(wanted)
        is_fast = wanted.use_tf32 or (
            wanted.provider == "openvino" and wanted.precision_hint != "f32"
        )
        path = save(fast_bits if is_fast else exact_bits)
        return pretend(open_session(path, SessionSpec(num_threads=1)), wanted)

    session = open_on(None, spec)
    opened.clear()
    outputs = session_outputs(session, golden.inputs)
    return attribute_error(save(), golden, session, outputs, open_on=open_on), opened


@pytest.mark.parametrize("asked", [False, True])
def test_both_positions_are_measured_whichever_was_asked_for(save, golden, asked):
    spec = SessionSpec(provider="cuda", use_tf32=asked)
    found, opened = attribute(save, golden, spec, fast_bits=11)
    assert [one.use_tf32 for one in opened] == [not asked], "the other position, and it alone"
    assert found.exact.options == "use_tf32=0"
    assert found.fast.options == "use_tf32=1"
    assert found.exact.found == "float32"
    assert found.fast.found == "tf32"
    assert found.fast.rel_l2 > 100 * found.exact.rel_l2
    assert found.matters


def test_what_the_fast_arithmetic_does_not_explain_remains(save, golden):
    spec = SessionSpec(provider="cuda", use_tf32=True)
    found, _ = attribute(save, golden, spec, fast_bits=8, exact_bits=8)
    assert found.exact.found == "bfloat16"
    assert not found.matters, "the fault is in the weights, under both"


def test_a_default_is_compared_with_what_was_asked_of_it(save, golden):
    spec = SessionSpec(provider="openvino")
    found, opened = attribute(save, golden, spec, fast_bits=8)
    assert [one.precision_hint for one in opened] == ["f32"]
    assert found.fast.options == "default"
    assert "INFERENCE_PRECISION_HINT" in found.exact.options
    assert found.fast.found == "bfloat16"


def test_a_provider_of_one_arithmetic_has_nothing_to_attribute(save, golden):
    found, opened = attribute(save, golden, SessionSpec(), fast_bits=11)
    assert found is None
    assert not opened


def test_the_reason_is_kept_where_the_other_position_does_not_start(save, golden):
    def refuse(*_):
        raise ProviderError("It did not start.")

    spec = SessionSpec(provider="cuda")
    session = pretend(open_session(save(), SessionSpec(num_threads=1)), spec)
    outputs = session_outputs(session, golden.inputs)
    found = attribute_error(save(), golden, session, outputs, open_on=refuse)
    assert found == "use_tf32=1: It did not start."


@pytest.mark.parametrize("outcome", ["measured", "not measured"])
def test_a_verdict_holds_and_shows_it(save, golden, outcome, monkeypatch, capsys):
    measured, _ = attribute(save, golden, SessionSpec(provider="cuda"), fast_bits=11)
    answer = measured if outcome == "measured" else "use_tf32=1: It did not start."
    monkeypatch.setattr(outputs_module, "attribute_error", lambda *_: answer)
    path = save()
    report: VerifyReport = judge_session_outputs(
        path, golden, [open_session(path, SessionSpec(num_threads=1))]
    )
    verdict: ProviderVerdict = report.verdicts[0]
    assert verdict.passed, "it is told, not judged"
    render(report)
    shown = capsys.readouterr().out
    if outcome == "measured":
        assert verdict.attribution == measured
        assert "is TF32 (use_tf32=1)" in shown
        assert "remains with use_tf32=0, the size of float32" in shown
    else:
        assert verdict.attribution is None
        assert "no evidence on its other arithmetic: use_tf32=1: It did not start." in shown


@pytest.mark.cuda
def test_cuda_has_tf32_attributed(save, golden):
    session = open_session(save(), SessionSpec(provider="cuda"))
    found = attribute_error(save(), golden, session, session_outputs(session, golden.inputs))
    assert found.exact.found == "float32"
    assert found.fast.options == "use_tf32=1"


@pytest.mark.parametrize(
    ("spec", "fast", "widens"),
    [
        (SessionSpec(use_tf32=True), None, True),
        (SessionSpec(provider="cuda"), None, False),
        (SessionSpec(provider="cuda", use_tf32=True), "tf32", False),
        (SessionSpec(provider="tensorrt", use_tf32=True), None, False),
        (SessionSpec(provider="openvino"), "bfloat16", False),
        (SessionSpec(provider="openvino", precision_hint="f32"), None, False),
    ],
)
def test_what_is_known_of_a_session_is_what_its_provider_makes_of_its_options(spec, fast, widens):
    found = facts(spec)
    assert (found.fast, found.widens_float16) == (fast, widens)
    assert bool(found.advice) is (fast is not None)
