"""Verification of real sessions: what passes, which planted faults are caught, where it ran."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy.errors import ProviderError, ResdeployError
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.session.placement_proof import Kernel
from resdeploy.session.run import run_session
from resdeploy.session.session import open_session
from resdeploy.verify import outputs as outputs_module
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.outputs import judge_outputs, judge_session_outputs, open_sessions

CPU = SessionSpec(num_threads=2)
NUM_INPUTS, NUM_CLASSES = 10, 7


def network(rng: np.random.Generator, batch: str | int = "batch") -> onnx.ModelProto:
    """Conv -> Relu -> Conv -> Relu -> GlobalAveragePool -> Gemm."""
    weights = {
        "w1": rng.normal(size=(8, 3, 3, 3)) / 5,
        "b1": rng.normal(size=8),
        "w2": rng.normal(size=(8, 8, 3, 3)) / 8,
        "b2": rng.normal(size=8),
        "w3": rng.normal(size=(8, NUM_CLASSES)),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 9, 9])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, NUM_CLASSES])],
        [numpy_helper.from_array(v.astype(np.float32), name=k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def weight(model: onnx.ModelProto, name: str) -> np.ndarray:
    (found,) = (t for t in model.graph.initializer if t.name == name)
    return numpy_helper.to_array(found).copy()


def with_weight(model: onnx.ModelProto, name: str, value: np.ndarray) -> onnx.ModelProto:
    changed = copy.deepcopy(model)
    for tensor in changed.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name=name))
    return changed


def evaluate(model: onnx.ModelProto, x: np.ndarray, dtype: type) -> np.ndarray:
    """The network in numpy, straight from the definition of a convolution."""

    def conv(x, w, b):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        return np.einsum("nchwij,ocij->nohw", windows, w) + b[:, None, None]

    w = {t.name: numpy_helper.to_array(t).astype(dtype) for t in model.graph.initializer}
    y = np.maximum(conv(x.astype(dtype), w["w1"], w["b1"]), 0)
    y = np.maximum(conv(y, w["w2"], w["b2"]), 0)
    return y.mean(axis=(2, 3)) @ w["w3"]


@pytest.fixture
def model():
    return network(np.random.default_rng(0))


@pytest.fixture
def golden(model):
    x = np.random.default_rng(1).normal(size=(NUM_INPUTS, 3, 9, 9)).astype(np.float32)
    reference = evaluate(model, x, np.float64)
    noise = evaluate(model, x, np.float32) - reference
    return Golden(
        inputs=x,
        reference=reference,
        noise_l2=np.linalg.norm(noise, axis=1),
        labels=reference.argmax(axis=1),
        info=GoldenInfo(source="numpy", inputs="random", num_inputs=NUM_INPUTS),
    )


@pytest.fixture
def save(tmp_path):
    def _save(model: onnx.ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return _save


@pytest.mark.parametrize("level", ["disabled", "basic", "extended", "all"])
def test_the_right_model_passes_at_every_graph_level(model, golden, save, level):
    report = judge_outputs(save(model), golden, [SessionSpec(graph_level=level, num_threads=2)])
    assert report.passed
    (verdict,) = report.verdicts
    assert verdict.comparison.top1_agreement == 1
    assert verdict.accuracy == report.reference_accuracy == 1
    assert verdict.session.active_providers[0] == "CPUExecutionProvider"


FAULTS = {
    "one channel x (1 + 1e-4)": lambda m: with_weight(
        m,
        "w2",
        weight(m, "w2")
        * np.where(np.arange(8) == 2, 1 + 1e-4, 1)[:, None, None, None].astype(np.float32),
    ),
    "a bias dropped": lambda m: with_weight(m, "b1", np.zeros(8, np.float32)),
    "two channels swapped": lambda m: with_weight(m, "w1", weight(m, "w1")[[1, 0, *range(2, 8)]]),
    "one weight's sign": lambda m: with_weight(
        m,
        "w2",
        weight(m, "w2")
        * np.where(np.arange(576).reshape(8, 8, 3, 3) == 100, -1, 1).astype(np.float32),
    ),
    "weights in float16": lambda m: with_weight(
        m, "w2", weight(m, "w2").astype(np.float16).astype(np.float32)
    ),
    "a NaN weight": lambda m: with_weight(m, "b2", np.full(8, np.nan, np.float32)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails(model, golden, save, fault):
    report = judge_outputs(save(FAULTS[fault](model)), golden, [CPU])
    assert not report.passed
    assert report.verdicts[0].comparison.reasons


@pytest.mark.parametrize("part", ["placement", "conformance"])
def test_a_failure_of_any_part_is_a_failure_of_the_whole(model, golden, save, part):
    path = save(model)
    sessions = open_sessions(path, [CPU])
    report = judge_session_outputs(path, golden, sessions, conformance=True)
    assert report.passed, report.verdicts[0].reasons
    (verdict,) = report.verdicts
    failed = dataclasses.replace(getattr(verdict, part), reasons=("it differs",))
    verdict = dataclasses.replace(verdict, **{part: failed})
    assert not verdict.passed
    assert verdict.reasons == ("it differs",)
    assert not dataclasses.replace(report, verdicts=(*report.verdicts, verdict)).passed


def test_conformance_is_looked_at_where_that_is_asked_for(model, golden, save):
    (verdict,) = judge_outputs(save(model), golden, [CPU]).verdicts
    assert verdict.conformance is None
    assert verdict.placement.executed.keys() == {"CPUExecutionProvider"}


def test_a_kernel_elsewhere_fails_the_verification(model, golden, save, monkeypatch):
    stray = Kernel(name="c1", op="Conv", provider="CUDAExecutionProvider")
    monkeypatch.setattr("resdeploy.session.placement.planned_kernels", lambda _: (stray,))
    report = judge_outputs(save(model), golden, [CPU])
    assert not report.passed
    assert report.verdicts[0].comparison.passed
    assert report.verdicts[0].reasons == ("planned elsewhere: c1 (Conv) on CUDAExecutionProvider",)


def test_padding_off_by_one_fails(model, golden, save):
    model.graph.node[0].attribute[0].ints[:] = [0, 0, 2, 2]
    assert not judge_outputs(save(model), golden, [CPU]).passed


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_model_of_fixed_batch_is_fed_whole_batches(golden, batch):
    fixed = network(np.random.default_rng(0), batch)
    session = open_session(fixed.SerializeToString(), CPU)
    outputs = run_session(session, golden.inputs)
    np.testing.assert_allclose(outputs, golden.reference, rtol=1e-4, atol=1e-5)


def test_no_spec_proves_nothing(model, golden, save):
    assert not judge_outputs(save(model), golden, []).passed


def test_refuses_inputs_of_another_shape(model, golden, save):
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 11
    with pytest.raises(ResdeployError, match="takes samples of shape"):
        judge_outputs(save(model), golden, [CPU])


def test_refuses_a_model_of_two_inputs(model, golden, save):
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    with pytest.raises(ResdeployError, match=r"has 2 inputs .*; the samples have 1"):
        judge_outputs(save(model), golden, [CPU])


def test_nothing_runs_if_one_provider_does_not_start(model, golden, save, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(outputs_module, "session_outputs", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ProviderError):
        judge_outputs(save(model), golden, [CPU, SessionSpec(provider="cuda")])


@pytest.mark.cuda
def test_cuda_without_tf32_passes_as_float32(model, golden, save):
    report = judge_outputs(save(model), golden, [SessionSpec(provider="cuda", use_tf32=False)])
    assert report.passed, report.verdicts[0].comparison.reasons
    assert report.verdicts[0].session.active_providers[0] == "CUDAExecutionProvider"
