"""OpenVINO's plugin: that it is found, that it says what is missing, and what it computes in."""

import importlib.util
import json
import re
import types
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from resdeploy.errors import ProviderError
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.session import plugins as plugins_module
from resdeploy.session import session as session_module
from resdeploy.session.providers import find_provider
from resdeploy.session.runtime import ort_state
from resdeploy.session.session import open_session
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.outputs import judge_outputs, judge_session_outputs, open_sessions

OPENVINO = SessionSpec(provider="openvino", num_threads=2)
F32 = SessionSpec(provider="openvino", num_threads=2, precision_hint="f32")
NAME = "OpenVINOExecutionProvider"
FEATURES, HIDDEN, CLASSES = 64, 128, 10


ONLY_PLUGIN = pytest.mark.skipif(
    NAME in onnxruntime.get_available_providers(), reason="this runtime has OpenVINO in itself"
)


def has_bfloat16():
    """Whether OpenVINO's CPU plugin takes bfloat16 here by itself."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", text))


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {
        "w1": (rng.normal(size=(FEATURES, HIDDEN)) / 8).astype(np.float32),
        "w2": (rng.normal(size=(HIDDEN, CLASSES)) / 11).astype(np.float32),
    }


@pytest.fixture
def model(tmp_path, weights):
    graph = parser.parse_graph(
        f"mlp (float[N, {FEATURES}] x) => (float[N, {CLASSES}] y) "
        "{ a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) }"
    )
    for name, value in weights.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def golden(weights):
    def compute(x, dtype):
        hidden = np.maximum(x.astype(dtype) @ weights["w1"].astype(dtype), 0)
        return hidden @ weights["w2"].astype(dtype)

    x = np.random.default_rng(1).normal(size=(16, FEATURES)).astype(np.float32)
    reference = compute(x, np.float64)
    return Golden(
        inputs=x,
        reference=reference,
        noise_l2=np.linalg.norm(compute(x, np.float32) - reference, axis=1),
        labels=None,
        info=GoldenInfo(source="numpy", inputs="random", num_inputs=len(x)),
    )


# --- where it runs -------------------------------------------------------------------------------


@pytest.mark.openvino
def test_float32_is_float32_where_it_is_asked_for(model, golden):
    report = judge_session_outputs(model, golden, open_sessions(model, [F32]), conformance=True)
    assert report.passed, report.verdicts[0].reasons
    (verdict,) = report.verdicts
    assert verdict.session.active_providers[0] == NAME
    # One compiled subgraph holds the whole model.
    assert verdict.placement.executed == {NAME: 1}
    assert verdict.placement.planned == {NAME: 3}
    assert verdict.conformance.passed
    bfloat16 = judge_outputs(
        model, golden, [SessionSpec(provider="openvino", precision_hint="bf16")]
    )
    assert report.verdicts[0].comparison.diff.rel_l2 < bfloat16.verdicts[0].comparison.diff.rel_l2


# The plugin chooses bfloat16 by itself, the runtime that has OpenVINO in itself does not.
@pytest.mark.openvino
@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16 instructions")
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(OPENVINO, marks=ONLY_PLUGIN),
        SessionSpec(provider="openvino", precision_hint="bf16"),
    ],
)
def test_bfloat16_is_not_float32(model, golden, spec):
    report = judge_outputs(model, golden, [spec])
    (verdict,) = report.verdicts
    assert not report.passed
    assert any("the error is that of bfloat16" in reason for reason in verdict.reasons)
    # 8 bits of mantissa instead of 24.
    assert 1e-3 < verdict.comparison.diff.rel_l2 < 1e-1
    assert verdict.comparison.noise_ratio > 1e3


@pytest.mark.openvino
def test_the_plugin_is_registered_once_for_many_sessions(model, capfd):
    first, second = open_session(model, F32), open_session(model, OPENVINO)
    x = {"x": np.ones((1, FEATURES), np.float32)}
    assert first.run(x).keys() == second.run(x).keys() == {"y"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.openvino
@ONLY_PLUGIN
def test_the_options_are_read_back_from_the_session(model):
    options = open_session(model, F32).ort.get_provider_options()[NAME]
    assert options == find_provider("openvino").options(F32)


# --- what is asked for ---------------------------------------------------------------------------


def test_the_precision_and_the_threads_are_options_of_the_plugin():
    options = find_provider("openvino").options
    assert options(SessionSpec(provider="openvino")) == {}
    assert json.loads(options(F32)["load_config"]) == {
        "CPU": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "2"}
    }


def test_an_option_that_the_session_does_not_have_is_an_error():
    provider = find_provider("openvino")
    lost = types.SimpleNamespace(get_provider_options=lambda: {NAME: {}})
    with pytest.raises(ProviderError, match="did not take the option load_config"):
        session_module._check_options(lost, provider, F32)
    kept = types.SimpleNamespace(get_provider_options=lambda: {NAME: provider.options(F32)})
    session_module._check_options(kept, provider, F32)


def test_a_runtime_that_has_the_provider_itself_needs_no_plugin(model, monkeypatch):
    """Only what it is asked for: `test_environment_traps` runs the real one."""
    asked = []

    def session(_path, _options, *, providers, **_):
        asked.extend(providers)
        raise ort_state.Fail("far enough")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [NAME])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ProviderError):
        open_session(model, F32)
    config = {"CPU": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "2"}}
    assert asked == [(NAME, {"device_type": "CPU", "load_config": json.dumps(config)})]


# --- what may be missing, played by a runtime that is not real -----------------------------------


@pytest.fixture
def fake(monkeypatch):
    """Return a function that installs a plugin which offers `devices` once it is registered."""

    def install(*, register, devices=()):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
        monkeypatch.setattr(plugins_module, "_library_path", lambda *_: "plugin.so")
        cpu = onnxruntime.OrtHardwareDeviceType.CPU
        own = types.SimpleNamespace(
            ep_name="CPUExecutionProvider", device=types.SimpleNamespace(type=cpu, vendor="AMD")
        )
        monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [own, *devices])
        monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)

    return install


def assert_is_missing(model, match):
    with pytest.raises(ProviderError, match=match) as caught:
        open_session(model, OPENVINO)
    assert caught.value.exit_code == 3
    return caught.value


def test_a_missing_plugin_names_the_extra_that_brings_it(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    error = assert_is_missing(model, "package onnxruntime-ep-openvino is not installed")
    assert error.fix == "pip install onnxruntime-ep-openvino"
    assert "onnxruntime" in error.where


def test_a_runtime_that_knows_no_plugins_is_too_old(model, fake, monkeypatch):
    fake(register=None)
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    assert "pip install -U" in assert_is_missing(model, "too old for providers that are plug").fix


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("already", [False, True])
def test_a_plugin_without_a_device_says_what_this_machine_has(
    model, fake, monkeypatch, already, machine
):
    def register(*_):
        if already:
            raise ort_state.Fail("EP library is already registered under OpenVINO")

    fake(register=register)
    monkeypatch.setattr(plugins_module.platform, "machine", lambda: machine)
    error = assert_is_missing(model, "finds no device .* has a CPU of AMD, .* Intel CPUs only")
    assert "another provider" in error.fix
    assert ("then pip install onnxruntime-openvino" in error.fix) == (machine == "x86_64")


def test_a_plugin_that_does_not_load_names_the_library(model, fake):
    def register(*_):
        raise ort_state.Fail("libtbb.so.12: cannot open shared object file: No such file")

    fake(register=register)
    error = assert_is_missing(model, r"did not start: libtbb\.so\.12 is missing")
    assert error.fix == "pip install onnxruntime-ep-openvino"


def test_a_plugin_that_fails_for_another_reason_is_to_be_installed_anew(model, fake):
    def register(*_):
        raise ort_state.Fail("symbol lookup error")

    fake(register=register)
    assert assert_is_missing(model, "symbol lookup").fix.startswith("install it anew: pip")


def test_a_damaged_package_is_told(model, monkeypatch):
    def gone():
        raise FileNotFoundError("library not found")

    package = types.SimpleNamespace(get_library_path=gone)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(plugins_module.importlib, "import_module", lambda _: package)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    assert_is_missing(model, "onnxruntime-ep-openvino is damaged: library not found")
