"""Runs from tensors that stay where they are. Without a GPU, on the CPU: all but the recording."""

import dataclasses

import numpy as np
import pytest
from onnx import parser

from resdeploy.bench import session_runner
from resdeploy.bench.measure import measure
from resdeploy.errors import ResdeployError
from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.cuda_graph import RecordedRuns
from resdeploy.session.providers import find_provider
from resdeploy.session.session import open_session

CPU = SessionSpec(num_threads=1)


def save(path, output="float[N, 4] y", body="y = MatMul (x, w)"):
    weight = "<float[3, 4] w = {1,2,3,4, 5,6,7,8, 9,10,11,12}>"
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g (float[N, 3] x) => ({output}) {weight} '
        f"{{ {body} }}"
    )
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "product.onnx")


@pytest.fixture
def session(model):
    opened = open_session(model, CPU)
    return dataclasses.replace(opened, recorded=RecordedRuns(opened.ort, "cpu"))


def inputs(batch_size, seed=0):
    return np.random.default_rng(seed).normal(size=(batch_size, 3)).astype(np.float32)


def test_the_outputs_are_those_of_an_ordinary_run(session, model):
    plain = open_session(model, CPU)
    for seed in (0, 1):  # the second from the same tensors
        feed = {"x": inputs(2, seed)}
        np.testing.assert_array_equal(session.run(feed)["y"], plain.run(feed)["y"])


def test_what_was_returned_is_not_changed_by_the_next_run(session):
    first = session.run({"x": inputs(2, 0)})["y"]
    kept = first.copy()
    session.run({"x": inputs(2, 1)})
    np.testing.assert_array_equal(first, kept)


def test_each_shape_has_tensors_and_a_graph_of_its_own(session):
    numbers = set()
    for batch_size in (2, 5, 2):
        feed = {"x": inputs(batch_size)}
        assert session.run(feed)["y"].shape == (batch_size, 4)
        options = session.recorded.recorded(feed).options
        numbers.add(options.get_run_config_entry("gpu_graph_id"))
    assert numbers == {"1", "2"}


def test_an_array_that_is_not_in_one_piece_is_copied_right(session, model):
    wide = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    feed = {"x": wide[:, ::2]}
    expected = open_session(model, CPU).run({"x": np.ascontiguousarray(feed["x"])})["y"]
    np.testing.assert_array_equal(session.run(feed)["y"], expected)


def test_outputs_of_unknown_shape_are_refused(tmp_path):
    turned = "m = MatMul (x, w) y = Transpose (m)"  # whose batch is its second dimension
    path = save(tmp_path / "open.onnx", output="float[M, K] y", body=turned)
    opened = open_session(path, CPU)
    with pytest.raises(ResdeployError, match="outputs of known shape"):
        RecordedRuns(opened.ort, "cpu").run({"x": inputs(2)})


@pytest.mark.parametrize(
    ("provider", "changes", "takers"),
    [
        ("cpu", {"cuda_graph": True}, "cuda or tensorrt"),
        ("cpu", {"prefer_nhwc": True}, "cuda"),
        ("tensorrt", {"prefer_nhwc": True}, "cuda"),
    ],
)
def test_settings_of_cuda_are_refused_elsewhere(model, provider, changes, takers):
    with pytest.raises(ResdeployError, match=f"does nothing on {provider}") as caught:
        open_session(model, SessionSpec(provider=provider, **changes))
    assert caught.value.fix.endswith(f"--provider {takers}")


def test_they_reach_the_provider():
    spec = SessionSpec(provider="cuda", prefer_nhwc=True, cuda_graph=True)
    options = find_provider("cuda").options(spec)
    assert (options["prefer_nhwc"], options["enable_cuda_graph"]) == ("1", "1")
    plain = find_provider("cuda").options(SessionSpec(provider="cuda"))
    assert (plain["prefer_nhwc"], plain["enable_cuda_graph"]) == ("0", "0")


def test_a_benchmark_times_recorded_runs_with_and_without_the_copies(model, session, monkeypatch):
    monkeypatch.setattr(session_runner, "open_session", lambda *_: session)
    counted = {"run": 0, "launch": 0}
    for name in counted:
        method = getattr(RecordedRuns, name)

        def count(self, *arguments, name=name, method=method):
            counted[name] += 1
            return method(self, *arguments)

        monkeypatch.setattr(RecordedRuns, name, count)
    spec = BenchSpec(session=CPU, num_warmup=2, max_warmup=2, num_runs=7, num_bound_runs=5)
    result = measure(model, spec, prove_placement=False)
    assert (len(result.latencies_ns), len(result.bound_ns)) == (7, 5)
    assert counted == {"run": 9, "launch": 15}, "each run launches once, and 6 are launches alone"


@pytest.mark.cuda
def test_a_recorded_graph_computes_what_cuda_computes(model):
    recorded = open_session(model, SessionSpec(provider="cuda", cuda_graph=True))
    plain = open_session(model, SessionSpec(provider="cuda"))
    for seed in range(4):
        feed = {"x": inputs(2, seed)}
        np.testing.assert_array_equal(recorded.run(feed)["y"], plain.run(feed)["y"])
