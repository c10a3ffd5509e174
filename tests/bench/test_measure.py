"""One session timed in this process: what is timed, what is kept, what cannot be timed."""

import dataclasses
import gc
import time

import numpy as np
import pytest
from onnx import parser

from resdeploy.bench import measure as measure_module
from resdeploy.bench import session_runner
from resdeploy.bench.measure import measure
from resdeploy.errors import ProviderError, ResdeployError
from resdeploy.machine.state import read_machine_state
from resdeploy.schema.benchmarks import BenchResult, BenchSpec
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.files import InputSpec
from resdeploy.schema.machines import GpuState
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.session import open_session

SPEC = BenchSpec(session=SessionSpec(num_threads=1), num_warmup=3, max_warmup=3, num_runs=7)


def save(path, signature="float[N, 3, 4] x", body="y = Relu(x)", output="float[N, 3, 4] y"):
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> tiny ({signature}) => ({output}) {{ {body} }}'
    )
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "tiny.onnx")


def replace(spec, **changes):
    fields = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    return BenchSpec(**(fields | changes))


def test_every_latency_is_kept_and_the_warm_up_is_apart(model):
    result = measure(model, SPEC)
    assert len(result.warmup_ns) == 3
    assert len(result.latencies_ns) == 7
    assert all(duration > 0 for duration in (*result.warmup_ns, *result.latencies_ns))
    assert result.load_ns > 0
    assert result.spec == SPEC
    assert result.input_shape == (1, 3, 4)


def test_the_result_says_what_ran_where_and_survives_json(model):
    result = measure(model, SPEC)
    assert result.model.path == "tiny.onnx"
    assert result.model.size_bytes == model.stat().st_size
    assert result.session.active_providers == ("CPUExecutionProvider",)
    assert result.environment.num_cpus >= 1
    assert load_json(BenchResult, dump_json(result), where="x") == result


def test_the_first_run_is_warm_up_even_when_none_is_asked_for(model):
    result = measure(model, replace(SPEC, num_warmup=0, max_warmup=0))
    assert len(result.warmup_ns) == 1
    assert len(result.latencies_ns) == 7


class Recorder:
    """A session's `run` that notes what it is given and takes a known time."""

    def __init__(self, ort, *, pause_s=0.0):
        self.ort = ort
        self.pause_s = pause_s
        self.feeds = []
        self.collector_was_on = []

    def __getattr__(self, name):
        return getattr(self.ort, name)

    def run(self, names, feed):
        self.feeds.append({key: value.copy() for key, value in feed.items()})
        self.collector_was_on.append(gc.isenabled())
        time.sleep(self.pause_s)
        return self.ort.run(names, feed)


@pytest.fixture
def recorder(monkeypatch):
    """Return a function that makes `measure` use a Recorder, and the list of those it made."""
    made = []
    open_session = session_runner.open_session

    def install(**options):
        def open_recorded(model, spec):
            session = open_session(model, spec)
            made.append(Recorder(session.ort, **options))
            return type(session)(made[-1], session.info)

        monkeypatch.setattr(session_runner, "open_session", open_recorded)
        return made

    return install


def test_the_clock_runs_around_the_run_and_not_around_the_callback(model, recorder):
    recorder(pause_s=0.005)
    result = measure(model, replace(SPEC, num_runs=3), on_run=lambda _: time.sleep(0.03))
    # The least of them, for this machine may be busy with something else.
    assert 5_000_000 <= min(result.latencies_ns) < 30_000_000


def test_the_model_is_loaded_off_the_clock_of_the_runs(model, monkeypatch):
    open_session = session_runner.open_session

    def open_slowly(*arguments):
        time.sleep(0.05)
        return open_session(*arguments)

    monkeypatch.setattr(session_runner, "open_session", open_slowly)
    result = measure(model, SPEC)
    assert result.load_ns >= 50_000_000
    assert min(result.warmup_ns) < 50_000_000


def test_one_input_of_ordinary_numbers_is_used_throughout_and_every_time(model, recorder):
    made = recorder()
    for _ in range(2):
        measure(model, replace(SPEC, batch_size=50))
    feeds = [feed["x"] for session in made for feed in session.feeds]
    assert len(feeds) == 20
    assert all(feed.tobytes() == feeds[0].tobytes() for feed in feeds)
    assert feeds[0].dtype == np.float32
    assert feeds[0].shape == (50, 3, 4)
    assert abs(feeds[0].mean()) < 0.2
    assert 0.9 < feeds[0].std() < 1.1


def test_garbage_is_not_collected_while_the_clock_runs(model, recorder):
    made = recorder()
    assert gc.isenabled()
    measure(model, SPEC)
    assert made[0].collector_was_on == [False] * 10
    assert gc.isenabled()


def test_the_collector_is_on_again_after_a_failure_and_off_if_it_was_off(model):
    def fail(_):
        raise RuntimeError("of the caller")

    # As it is: what a callback raises is no failure of the provider.
    with pytest.raises(RuntimeError, match="of the caller"):
        measure(model, SPEC, on_run=fail)
    assert gc.isenabled()
    gc.disable()
    try:
        measure(model, SPEC)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_callback_counts_every_run(model):
    counts = []
    measure(model, SPEC, on_run=counts.append)
    assert counts == list(range(1, 11))


def test_the_batch_size_fills_the_dynamic_dimension(model):
    assert measure(model, replace(SPEC, batch_size=5)).input_shape == (5, 3, 4)


def test_a_fixed_batch_is_timed_as_it_is_and_no_other(tmp_path):
    model = save(tmp_path / "fixed.onnx", "float[4, 3] x", output="float[4, 3] y")
    assert measure(model, replace(SPEC, batch_size=4)).input_shape == (4, 3)
    with pytest.raises(ResdeployError, match="batches of 4, not of 1") as caught:
        measure(model, SPEC)
    assert "dynamic batch" in caught.value.fix
    assert caught.value.where == str(model)


def test_half_precision_inputs_are_timed_too(tmp_path):
    model = save(
        tmp_path / "half.onnx", "float16[N, 3] x", output="float16[N, 3] y", body="y = Identity(x)"
    )
    assert measure(model, SPEC).input_shape == (1, 3)


@pytest.mark.parametrize(
    ("signature", "body", "output", "message"),
    [
        ("float[N, 3, H] x", "y = Relu(x)", "float[N, 3, H] y", "more than its batch is dynamic"),
        ("int8[N, 3] x", "y = Neg(x)", "int8[N, 3] y", "'x' is int8"),
        ("float x", "y = Relu(x)", "float y", "no batch dimension"),
    ],
)
def test_a_model_with_no_one_size_to_time_is_refused(tmp_path, signature, body, output, message):
    model = save(tmp_path / "other.onnx", signature, body, output)
    with pytest.raises(ResdeployError, match=message) as caught:
        measure(model, SPEC)
    assert caught.value.where == str(model)


def test_several_inputs_and_open_sizes_are_timed_at_the_shapes_asked_for(tmp_path):
    signature = "float[N, 3, H] x, int64[N] z"
    body = "wide = Cast<to = 1>(z)  sum = ReduceMean<keepdims = 0>(x)  y = Add(wide, sum)"
    model = save(tmp_path / "two.onnx", signature, body, "float[N] y")
    asked = (InputSpec(name="x", shape=(3, 5)),)
    assert measure(model, replace(SPEC, inputs=asked)).input_shape == (1, 3, 5)
    unfit = (InputSpec(name="x", shape=(4, 5)),)
    with pytest.raises(ResdeployError, match=r"takes samples of shape \(3, 'H'\), not \(4, 5\)"):
        measure(model, replace(SPEC, inputs=unfit))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"num_runs": 0}, "number of runs is 0"),
        ({"num_warmup": -1}, "warm-up runs is -1"),
    ],
)
def test_counts_out_of_range_are_refused_before_anything_is_loaded(model, changes, message):
    model.unlink()
    with pytest.raises(ResdeployError, match=message):
        measure(model, replace(SPEC, **changes))


def test_a_provider_that_does_not_start_is_never_timed(model, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError):
        measure(model, replace(SPEC, session=SessionSpec(provider="cuda")), on_run=pytest.fail)


@pytest.mark.parametrize(
    ("provider", "on_gpu"),
    [("cpu", False), ("cuda", True), ("tensorrt", True), ("openvino", False)],
)
def test_a_slowed_gpu_is_seen_whichever_provider_computes_on_it(
    model, monkeypatch, provider, on_gpu
):
    """A benchmark on TensorRT on a throttled GPU was called stable: only CUDA's was looked at."""
    slowed = GpuState(clock_mhz=300, temperature_c=90, used_bytes=0, slowed_by=0x40)

    def state(*, gpus):
        return dataclasses.replace(read_machine_state(), gpus=(slowed,) if gpus else ())

    cpu = open_session(model, SPEC.session)
    monkeypatch.setattr(measure_module, "read_machine_state", state)
    monkeypatch.setattr(session_runner, "open_session", lambda *_: cpu)
    result = measure(
        model, replace(SPEC, session=SessionSpec(provider=provider)), prove_placement=False
    )
    assert any("GPU 0 was slowed" in reason for reason in result.unstable_reasons) is on_gpu
