"""Runs that MLCommons LoadGen asks for: what it is told, what it says, and what goes wrong."""

import importlib.util
import time

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import parser

from resdeploy.bench import loadgen
from resdeploy.bench.loadgen import drive, read_summary
from resdeploy.bench.measure import check_spec
from resdeploy.cli import cli
from resdeploy.errors import MissingExtraError, ResdeployError
from resdeploy.schema.benchmarks import BenchReport, BenchSpec, LoadgenSpec
from resdeploy.schema.codec import load_json
from resdeploy.schema.sessions import SessionSpec
from resdeploy.statistics.quantiles import percentile

needs_loadgen = pytest.mark.skipif(
    importlib.util.find_spec("mlperf_loadgen") is None, reason="mlcommons-loadgen is not installed"
)
SHORT = LoadgenSpec(min_duration_s=0.3)
PAUSE_NS = 2e6

SUMMARY = """\
================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Mode     : PerformanceOnly
Completed samples per second    : 92.38
Result is : INVALID
  Performance constraints satisfied : NO
  Min duration satisfied : Yes
  Early stopping satisfied: NO
"""


def spec(scenario="single-stream", **changes):
    qps = 200.0 if scenario == "server" else None
    return BenchSpec(
        session=SessionSpec(num_threads=1), scenario=scenario, qps=qps, loadgen=SHORT, **changes
    )


def drive_pauses(wanted, settings=SHORT):
    """Drive runs that take 2 ms each; return what came of it, and how many there were."""
    count = 0

    def run():
        nonlocal count
        count += 1
        time.sleep(PAUSE_NS / 1e9)

    return drive(run, wanted, settings, typical_ns=PAUSE_NS), count


@needs_loadgen
def test_single_stream_keeps_each_latency_and_agrees_with_loadgens_own():
    times, count = drive_pauses(spec())
    assert times.loadgen.valid, times.loadgen.summary
    assert len(times.latencies_ns) == count >= 64
    assert times.arrivals_ns == ()
    assert "90" in times.loadgen.metric
    # Its clock runs around ours, and around Python's way there and back.
    ours = percentile(times.latencies_ns, 90)
    assert 0.99 * ours < times.loadgen.value < 1.5 * ours + 1e6


@needs_loadgen
def test_offline_gives_all_samples_at_once_and_takes_them_in_batches():
    times, count = drive_pauses(spec("offline", batch_size=8))
    assert times.loadgen.valid, times.loadgen.summary
    assert set(times.arrivals_ns) == {0}
    assert len(times.latencies_ns) == count
    assert np.all(np.diff(times.latencies_ns) > 0), "each waits for the one before"
    # Samples, not runs: 8 in each.
    assert times.loadgen.value == pytest.approx(8 * count / (times.latencies_ns[-1] / 1e9), rel=0.2)


@needs_loadgen
def test_server_asks_at_random_times_and_waiting_is_counted(monkeypatch):
    monkeypatch.setitem(loadgen._FEWEST_QUERIES, "server", 60)
    times, _ = drive_pauses(spec("server"))
    gaps = np.diff(times.arrivals_ns)
    assert len(times.arrivals_ns) == len(times.latencies_ns) >= 60
    assert gaps.std() > 0.5 * gaps.mean(), "arrivals are Poisson, not at a steady pace"
    assert max(times.latencies_ns) > 1.5 * PAUSE_NS, "someone had to wait"


@needs_loadgen
def test_rules_that_are_not_met_make_the_result_invalid(monkeypatch):
    monkeypatch.setitem(loadgen._FEWEST_QUERIES, "server", 60)
    settings = LoadgenSpec(min_duration_s=0.3, target_latency_ms=0.5)
    times, _ = drive_pauses(spec("server"), settings)
    assert not times.loadgen.valid
    assert "not satisfied: performance constraints" in times.loadgen.reasons


@needs_loadgen
@pytest.mark.parametrize("scenario", ["single-stream", "offline", "server"])
def test_an_error_in_a_run_ends_the_test_and_is_raised(scenario):
    def fail():
        raise ResdeployError("The provider failed.")

    with pytest.raises(ResdeployError, match="The provider failed"):
        drive(fail, spec(scenario), LoadgenSpec(min_duration_s=0.05), typical_ns=PAUSE_NS)


def test_a_summary_is_read_whatever_its_figure_is_called():
    result = read_summary(SUMMARY, version="6.0")
    assert (result.metric, result.value) == ("Completed samples per second", 92.38)
    assert not result.valid
    assert result.reasons == (
        "not satisfied: performance constraints",
        "not satisfied: early stopping",
    )
    valid = SUMMARY.replace("INVALID", "VALID").replace(" NO", " Yes")
    assert read_summary(valid, version="6.0").valid
    assert read_summary(valid, version="6.0").reasons == ()


@pytest.mark.parametrize("text", ["", SUMMARY.partition("Completed")[0]])
def test_a_summary_without_a_verdict_is_an_error(text):
    with pytest.raises(ResdeployError, match="without a result"):
        read_summary(text, version="6.0")


def test_a_missing_loadgen_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="mlcommons-loadgen") as caught:
        check_spec(spec())
    assert "[loadgen]" in caught.value.fix


@needs_loadgen
@pytest.mark.parametrize("scenario", ["single-stream", "server"])
def test_a_query_is_one_sample(scenario):
    with pytest.raises(ResdeployError, match="one sample, not 4"):
        check_spec(spec(scenario, batch_size=4))


@needs_loadgen
@pytest.mark.parametrize("field", ["min_duration_s", "target_latency_ms"])
def test_durations_must_be_above_zero(field):
    wanted = BenchSpec(session=SessionSpec(), loadgen=LoadgenSpec(**{field: 0.0}))
    with pytest.raises(ResdeployError, match="is 0"):
        check_spec(wanted)


@pytest.fixture
def model(tmp_path):
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[N, 9] x) => (float[N, 9] y)'
    path = tmp_path / "tiny.onnx"
    path.write_bytes(parser.parse_model(f"{text} {{ y = Relu (x) }}").SerializeToString())
    return path


@needs_loadgen
def test_the_command_shows_what_loadgen_says(model):
    arguments = ["bench", str(model), "--threads", "1", "--loadgen", "--min-duration", "0.2"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    assert "percentile latency (ns)" in shown.stdout
    assert "not verified by MLCommons" in shown.stdout
    result = load_json(
        BenchReport, CliRunner().invoke(cli, [*arguments, "--json"]).stdout, where="stdout"
    ).results[0]
    assert result.loadgen.valid
    assert result.summary.num_runs == len(result.latencies_ns) >= 64
    assert result.bound_ns == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--min-duration", "1"], "options of --loadgen"),
        (["--target-latency", "1"], "options of --loadgen"),
        (["--loadgen", "--against-option", "threads=1"], "leave out --against"),
    ],
)
def test_options_that_do_not_go_together_are_refused(model, arguments, said):
    result = CliRunner().invoke(cli, ["bench", str(model), *arguments])
    assert result.exit_code == 2
    assert said in result.stderr
