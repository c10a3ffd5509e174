"""Reading from a real runtime where a model ran."""

import json
import tempfile
import types
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import parser

from resdeploy.errors import ProviderError, ResdeployError
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session import placement as placement_module
from resdeploy.session import session as session_module
from resdeploy.session.placement import read_placement
from resdeploy.session.session import open_session

CPU = "CPUExecutionProvider"
X = np.ones((2, 3), np.float32)


@pytest.fixture
def model():
    return parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\n'
        "tiny (float[N, 3] x) => (float[N, 3] y) { a = Relu(x) b = Tanh(a) y = Add(b, x) }"
    ).SerializeToString()


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where profiles go meanwhile."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_kernels_of_one_run_are_counted_and_nothing_is_left(model, temporary, monkeypatch):
    monkeypatch.chdir(temporary)
    placement = read_placement(model, open_session(model, SessionSpec()), X)
    assert placement.passed
    assert placement.executed == {CPU: 3}
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        assert placement.planned == {CPU: 3}
    assert list(temporary.iterdir()) == []


def test_an_older_runtime_is_judged_by_the_profile_alone(model, monkeypatch):
    monkeypatch.setattr(session_module, "_records_placement", lambda: False)
    placement = read_placement(model, open_session(model, SessionSpec()), X)
    assert placement.planned is None
    assert placement.executed == {CPU: 3}


def test_kernels_are_those_of_the_session_asked_for(model, monkeypatch):
    """The same spec: another graph level or provider would prove something else."""
    opened = []

    def spy(model, spec, *, profile_prefix):
        opened.append(spec)
        return open_session(model, spec, profile_prefix=profile_prefix)

    monkeypatch.setattr(placement_module, "open_session", spy)
    spec = SessionSpec(graph_level="disabled", num_threads=1)
    read_placement(model, open_session(model, spec), X)
    assert opened == [spec]


def test_a_run_that_fails_leaves_no_profile_behind(model, temporary):
    with pytest.raises(ResdeployError, match="samples of shape"):
        read_placement(model, open_session(model, SessionSpec()), np.ones((1, 4), np.float32))
    assert list(temporary.iterdir()) == []


def event(op, provider, name="n_kernel_time", cat="Node"):
    return {"cat": cat, "name": name, "dur": 1, "args": {"op_name": op, "provider": provider}}


@pytest.fixture
def profile_says(model, monkeypatch):
    """Return a function that gives a real session's verdict with another profile in its place."""

    def judge(text):
        def fake(model, spec, *, profile_prefix):
            session = open_session(model, spec)
            path = Path(f"{profile_prefix}.json")
            path.write_text(text)
            ort = types.SimpleNamespace(
                run=session.ort.run,
                get_inputs=session.ort.get_inputs,
                get_outputs=session.ort.get_outputs,
                get_provider_graph_assignment_info=list,
                end_profiling=lambda: str(path),
            )
            return type(session)(ort, session.info)

        session = open_session(model, SessionSpec())
        monkeypatch.setattr(placement_module, "open_session", fake)
        return read_placement(model, session, X)

    return judge


def test_a_kernel_of_another_provider_in_the_profile_fails(profile_says):
    events = [event("Relu", CPU), event("Conv", "CUDAExecutionProvider", "c1_kernel_time")]
    placement = profile_says(json.dumps(events))
    assert placement.reasons == ("ran elsewhere: c1 (Conv) on CUDAExecutionProvider",)


def test_events_that_are_no_kernels_are_passed_over(profile_says):
    fence = {"cat": "Node", "name": "n_fence_before", "args": {"op_name": "Relu"}}
    session = {"cat": "Session", "name": "model_run", "args": {}}
    placement = profile_says(json.dumps([session, fence, event("Relu", CPU), event("Relu", CPU)]))
    assert placement.executed == {CPU: 2}


def test_a_profile_without_kernels_is_no_proof(profile_says):
    assert profile_says("[]").reasons == (f"no kernel of {CPU} ran",)


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"cat": "Node", "args": {"provider": "x"}}]'])
def test_a_profile_that_cannot_be_read_is_an_error(profile_says, text):
    with pytest.raises(ProviderError, match="profile of a run cannot be read"):
        profile_says(text)


@pytest.mark.cuda
def test_every_kernel_of_a_cuda_session_is_cudas(model):
    placement = read_placement(model, open_session(model, SessionSpec(provider="cuda")), X)
    assert placement.passed, placement.reasons
    assert set(placement.executed) == {"CUDAExecutionProvider"}
