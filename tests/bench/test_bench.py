"""Benchmarks in processes of their own: what comes back, what dies, what is compared."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest
from onnx import parser

from resdeploy.bench import in_turn as in_turn_module
from resdeploy.bench.in_turn import NUM_BURSTS, bench_in_turn
from resdeploy.bench.process import BenchProcess, bench, slow_warnings
from resdeploy.bench.saved import compare_with_saved, load_result
from resdeploy.errors import EnvironmentLacksError, ProviderError, ResdeployError
from resdeploy.schema.benchmarks import (
    BenchComparison,
    BenchJob,
    BenchReport,
    BenchSpec,
    SpeedRatio,
)
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.machines import MachineState
from resdeploy.schema.sessions import SessionSpec

SPEC = BenchSpec(session=SessionSpec(num_threads=1), num_warmup=2, max_warmup=2, num_runs=30)


def save(path, body="y = Relu(x)"):
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> tiny (float[N, 3, 4] x) => (float[N, 3, 4] y) '
        f"{{ {body} }}"
    )
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "tiny.onnx")


@pytest.fixture(scope="module")
def result(model):
    ballast = bytearray(400 << 20)  # of this process, and none of the worker's business
    return bench(model, dataclasses.replace(SPEC, num_bound_runs=20)) if ballast else None


def test_the_record_of_the_worker_comes_back_whole(result):
    assert (len(result.warmup_ns), len(result.latencies_ns), len(result.bound_ns)) == (2, 30, 20)
    assert result.summary.num_runs == 30
    assert result.placement.executed == {"CPUExecutionProvider": 1}
    assert result.num_subnormal_weights == 0
    assert result.before.time_s < result.after.time_s
    assert load_json(BenchReport, dump_json(BenchReport(results=(result,))), where="") == (
        BenchReport(results=(result,))
    )


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_peak_memory_is_that_of_the_worker_and_not_of_who_started_it(result):
    assert 10 << 20 < result.ram_base_bytes <= result.ram_peak_bytes < 350 << 20


def test_the_worker_imports_numpy_and_onnxruntime_and_nothing_heavier():
    script = "import resdeploy.bench.worker, sys, json; print(json.dumps([*sys.modules]))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    heavy = {"torch", "onnx", "onnx_ir", "rich", "click", "PIL", "scipy", "sklearn", "safetensors"}
    assert {"numpy", "onnxruntime"} <= loaded
    assert not loaded & heavy


def test_a_refusal_of_the_worker_is_the_same_error_here(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("this is not a model")
    with pytest.raises(ResdeployError, match="not an ONNX model") as caught:
        bench(path, SPEC)
    assert caught.value.where == str(path)
    assert caught.value.fix


def test_a_provider_that_does_not_start_is_exit_3_and_no_number(model, no_cuda):
    with pytest.raises(ProviderError) as caught:
        bench(model, dataclasses.replace(SPEC, session=SessionSpec(provider="cuda")))
    assert caught.value.exit_code == 3


def test_kernels_elsewhere_are_an_error_and_no_number(model, monkeypatch):
    from resdeploy.bench import measure, session_runner

    stand = measure.set_up(model, SPEC)
    stray = dataclasses.replace(stand.runner.prove(stand.values), reasons=("Relu ran on the CPU",))
    monkeypatch.setattr(session_runner, "read_placement", lambda *_: stray)
    with pytest.raises(ProviderError, match="Relu ran on the CPU"):
        measure.measure(model, SPEC)
    assert measure.measure(model, SPEC, prove_placement=False).placement is None


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "memory runs out"), (signal.SIGILL, "instruction")]
)
def test_a_worker_that_is_killed_is_an_error_that_says_so(model, number, words):
    with BenchProcess(BenchJob(model=str(model), spec=SPEC, in_bursts=True)) as process:
        assert process.receive()["kind"] == "ready"
        os.kill(process._process.pid, number)
        process.send("1")
        with pytest.raises(EnvironmentLacksError, match=words) as caught:
            process.receive()
    assert caught.value.where == str(model)


def test_a_bug_in_the_worker_is_a_bug_here_with_its_traceback(model):
    with BenchProcess(BenchJob(model=str(model), spec=SPEC, in_bursts=True)) as process:
        process.receive()
        process.send("not a number")
        with pytest.raises(RuntimeError, match="invalid literal for int"):
            process.receive()


def test_no_process_is_left_when_the_block_is_left_by_an_error(model):
    job = BenchJob(model=str(model), spec=SPEC)
    with pytest.raises(ZeroDivisionError), BenchProcess(job) as process:
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):
        os.kill(process._process.pid, 0)


def test_a_numpy_in_the_current_folder_is_not_imported(model, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert len(bench(model, SPEC, prove_placement=False).latencies_ns) == 30


def test_what_the_runtime_says_of_slow_convolutions_is_kept():
    line = (
        "[W:onnxruntime:, conv.cc:425] OP Conv(c1) running in Fallback mode. May be extremely slow."
    )
    assert slow_warnings(f"{line}\nelse\n{line}") == ("Conv(c1) running in Fallback mode",)
    assert slow_warnings("") == ()


# --- in turn -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison(model):
    slow = save(
        model.parent / "slow.onnx",
        "".join(f"t{i} = Sin({'x' if i == 0 else f't{i - 1}'}) " for i in range(60))
        + "y = Relu(t59)",
    )
    spec = dataclasses.replace(SPEC, num_runs=33, batch_size=64)
    return bench_in_turn((slow, spec), (model, spec), num_blocks=3, max_slowdown=0.03)


def test_a_much_slower_model_is_called_slower_and_fails(comparison):
    assert comparison.p50.verdict == "slower"
    assert not comparison.passed
    assert comparison.candidate.model.path == "slow.onnx"
    assert load_json(BenchComparison, dump_json(comparison), where="") == comparison


def test_every_latency_of_every_burst_is_kept_and_who_began_alternates(comparison):
    assert [block.candidate_first for block in comparison.blocks] == [True, False, True]
    for block in comparison.blocks:
        for bursts in (block.candidate_ns, block.baseline_ns):
            assert len(bursts) == NUM_BURSTS
            assert sum(map(len, bursts)) == 33


def test_bursts_take_turns_as_a_b_b_a(model, monkeypatch):
    order, made = [], []

    class Recorded(BenchProcess):
        def __enter__(self):
            made.append(self)
            return super().__enter__()

        def send(self, line):
            if line.isdecimal():
                order.append(made.index(self))
            super().send(line)

    monkeypatch.setattr(in_turn_module, "BenchProcess", Recorded)
    bench_in_turn((model, SPEC), (model, SPEC), num_blocks=3)
    assert len(made) == 6  # fresh ones for each block
    assert order[:8] == [0, 1, 1, 0, 0, 1, 1, 0]


def test_too_few_runs_have_no_p99(comparison):
    assert comparison.p99 is None
    assert "too few runs for p99: a process takes some 368" in comparison.caveats


def test_as_many_runs_as_it_takes_have_a_p99(model, monkeypatch):
    monkeypatch.setattr(in_turn_module, "runs_per_process", lambda blocks, q: SPEC.num_runs)
    comparison = bench_in_turn((model, SPEC), (model, SPEC), num_blocks=3)
    assert comparison.p99 is not None
    assert comparison.caveats == ()


@pytest.mark.parametrize(
    ("low", "limit", "passed"),
    [(1.04, 0.03, False), (1.02, 0.03, True), (0.9, 0.03, True), (2.0, None, True)],
)
def test_only_an_interval_wholly_beyond_the_limit_fails(comparison, low, limit, passed):
    changed = dataclasses.replace(
        comparison, p50=SpeedRatio(ratio=2.0, low=low, high=3.0), max_slowdown=limit
    )
    assert changed.passed is passed


@pytest.mark.parametrize(
    ("changes", "blocks", "message"),
    [
        ({}, 2, "number of blocks is 2"),
        ({"num_runs": NUM_BURSTS - 1}, 3, "runs each or more"),
        ({"scenario": "offline"}, 3, "single-stream"),
        ({"batch_size": 0}, 3, "batch size is 0"),
    ],
)
def test_a_comparison_that_means_nothing_is_refused(model, changes, blocks, message):
    with pytest.raises(ResdeployError, match=message):
        bench_in_turn(
            (model, SPEC), (model, dataclasses.replace(SPEC, **changes)), num_blocks=blocks
        )


# --- against a saved result ----------------------------------------------------------------------


def timed(result, latencies_ns, **changes):
    return dataclasses.replace(
        result, latencies_ns=tuple(latencies_ns), unstable_reasons=(), **changes
    )


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.04, "cannot tell"), (0.97, "cannot tell"), (1.15, "slower"), (0.85, "faster")],
)
def test_against_a_saved_result_five_percent_do_not_count(result, factor, verdict):
    base = [1_000_000 + 100 * (i % 7) for i in range(200)]
    comparison = compare_with_saved(
        timed(result, (int(factor * x) for x in base)), timed(result, base)
    )
    assert comparison.p50.verdict == verdict
    assert comparison.p50.ratio == pytest.approx(factor, rel=1e-3)
    assert not comparison.interleaved
    assert "not timed in turn" in comparison.caveats[0]


def test_a_result_that_is_not_stable_or_of_another_machine_proves_nothing(result):
    fast, slow = timed(result, [10] * 400), timed(result, [20] * 400)
    other = dataclasses.replace(result.environment, cpu_model="another")
    for new in (
        dataclasses.replace(slow, unstable_reasons=("it drifts",)),
        dataclasses.replace(slow, environment=other),
    ):
        comparison = compare_with_saved(new, fast, max_slowdown=0.0)
        assert comparison.p50.verdict == comparison.p99.verdict == "cannot tell"
        assert comparison.passed
        assert len(comparison.caveats) == 2
    assert compare_with_saved(slow, fast).p50.verdict == "slower"


def test_a_saved_result_of_too_few_runs_has_no_ratio_of_p99(result):
    many, few = timed(result, [10] * 400), timed(result, [10] * 200)
    comparison = compare_with_saved(many, few)
    assert comparison.p99 is None
    assert comparison.caveats[1:] == (
        "too few runs for p99: 200 of the saved result, it takes some 368",
    )
    assert compare_with_saved(many, many).p99 is not None


def test_another_version_is_a_caveat(result):
    versions = {**result.environment.versions, "onnxruntime": "0.1"}
    old = dataclasses.replace(
        timed(result, [10] * 200),
        environment=dataclasses.replace(result.environment, versions=versions),
    )
    caveats = compare_with_saved(timed(result, [10] * 200), old).caveats
    assert any("onnxruntime is" in caveat and "was 0.1" in caveat for caveat in caveats)


def test_results_of_different_work_are_not_compared(result):
    with pytest.raises(ResdeployError, match="input shape is"):
        compare_with_saved(result, dataclasses.replace(result, input_shape=(2, 3, 4)))


def test_a_saved_file_is_one_result(result, tmp_path):
    path = tmp_path / "saved.json"
    path.write_text(dump_json(BenchReport(results=(result,))))
    assert load_result(path) == result
    path.write_text(dump_json(BenchReport(results=(result, result))))
    with pytest.raises(ResdeployError, match="holds 2 results"):
        load_result(path)
    with pytest.raises(ResdeployError, match="cannot be read"):
        load_result(tmp_path / "none.json")


def test_states_of_the_machine_survive_json():
    state = MachineState(time_s=1.0)
    assert load_json(MachineState, dump_json(state), where="") == state
