"""Scenarios driven by MLCommons LoadGen, the load generator of MLPerf Inference.

LoadGen decides when each query is issued, keeps its own clock and says whether its rules were met.
Its figures are "unofficial": not submitted to, and not verified by, MLCommons. The rules here are
those of its scenarios; the durations are the user's, and MLPerf's own are longer (10 minutes).

Its clock includes its own work and Python's, some 50 us a query: of a model that takes less than
0.1 ms, it times mostly that.

https://github.com/mlcommons/inference/tree/master/loadgen
"""

import importlib.metadata
import importlib.util
import queue
import re
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdeploy.errors import MissingExtraError, ResdeployError
from resdeploy.schema.benchmarks import BenchSpec, LoadgenResult, LoadgenSpec

__all__ = ["Times", "drive", "read_summary", "require_loadgen"]

# What MLPerf gives a ResNet-50: as many samples to draw from, though here all are one input.
_NUM_SAMPLES = 1024

# The number of queries is fixed before the run, from a guess of the latency: too few of them end
# it before its time, and make it invalid.
_MARGIN = 2.0

# What its early stopping needs for an estimate of a 90th and of a 99th percentile.
_FEWEST_QUERIES = {"single-stream": 64, "server": 662, "offline": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Latencies of a test, the arrivals they count from, those through an I/O binding.

    `arrivals_ns`, since the first query, is empty in "single-stream"; `loadgen` is its verdict.
    """

    latencies_ns: tuple[int, ...]
    arrivals_ns: tuple[int, ...] = ()
    bound_ns: tuple[int, ...] = ()
    loadgen: LoadgenResult | None = None


def drive(
    run: Callable[[], object], spec: BenchSpec, settings: LoadgenSpec, *, typical_ns: float
) -> Times:
    """Run a test under LoadGen; `run` takes `spec.batch_size` samples, in `typical_ns` or so.

    Raises:
        MissingExtraError: LoadGen is not installed.
        ResdeployError: it ended without a result.
    """
    require_loadgen()
    import mlperf_loadgen as lg  # noqa: PLC0415 - an extra

    system = _System(lg, run, spec.batch_size)
    waiting: queue.SimpleQueue[tuple[Sequence[Any], int] | None] = queue.SimpleQueue()

    def issue(samples: Sequence[Any]) -> None:
        if spec.scenario == "server":  # whose next query does not wait for the answer
            waiting.put((samples, time.perf_counter_ns()))
        else:
            system.answer(samples, time.perf_counter_ns())

    def serve() -> None:
        while (query := waiting.get()) is not None:
            system.answer(*query)

    worker = threading.Thread(target=serve, daemon=True)
    sut = lg.ConstructSUT(issue, lambda: None)
    qsl = lg.ConstructQSL(_NUM_SAMPLES, _NUM_SAMPLES, lambda _: None, lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        logs = lg.LogSettings()
        logs.log_output.outdir = folder
        logs.log_output.copy_summary_to_stdout = False
        worker.start()
        try:
            test = _test_settings(lg, spec, settings, typical_ns)
            lg.StartTestWithLogSettings(sut, qsl, test, logs, "")
        finally:
            waiting.put(None)
            worker.join()
            lg.DestroyQSL(qsl)
            lg.DestroySUT(sut)
        if system.failure is not None:
            raise system.failure
        summary = Path(folder, "mlperf_log_summary.txt")
        text = summary.read_text(encoding="utf-8") if summary.exists() else ""
    arrivals_ns = tuple(asked_ns - system.asked_ns[0] for asked_ns in system.asked_ns)
    return Times(
        arrivals_ns=() if spec.scenario == "single-stream" else arrivals_ns,
        latencies_ns=tuple(system.latencies_ns),
        loadgen=read_summary(text, version=importlib.metadata.version("mlcommons-loadgen")),
    )


def require_loadgen() -> None:
    """Raise MissingExtraError if LoadGen is not installed."""
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise MissingExtraError("mlcommons-loadgen", extra="loadgen")


def read_summary(text: str, *, version: str) -> LoadgenResult:
    """Return the result in a summary of LoadGen.

    The scenario's figure stands right above the verdict, under a name that differs from scenario to
    scenario and from version to version.

    Raises:
        ResdeployError: it has no verdict.
    """
    found = re.search(
        r"^(?P<metric>[^\n:]+?)\s*:\s*(?P<value>[\d.eE+]+)\s*^Result is : (?P<verdict>\w+)",
        text,
        re.MULTILINE,
    )
    if found is None:
        raise ResdeployError(
            "LoadGen ended without a result.", fix="give it more time, with --min-duration"
        )
    broken = re.findall(r"^\s*([\w ]+?) satisfied\s*:\s*NO", text, re.MULTILINE | re.IGNORECASE)
    return LoadgenResult(
        version=version,
        valid=found["verdict"] == "VALID",
        metric=found["metric"],
        value=float(found["value"]),
        reasons=tuple(f"not satisfied: {rule.lower()}" for rule in broken),
        summary=text,
    )


class _System:
    """LoadGen's system under test, which answers queries of samples.

    LoadGen calls from a thread of its own, through which no exception passes: the first is kept,
    and every further query answered at once, so that the test ends.
    """

    def __init__(self, lg: Any, run: Callable[[], object], batch_size: int) -> None:
        self._lg = lg
        self._run = run
        self._batch_size = batch_size
        self.failure: BaseException | None = None
        self.asked_ns: list[int] = []
        self.latencies_ns: list[int] = []

    def answer(self, samples: Sequence[Any], asked_ns: int) -> None:
        """Run `samples`, asked for at that time of `perf_counter_ns`."""
        for start in range(0, len(samples), self._batch_size):
            batch = samples[start : start + self._batch_size]
            if self.failure is None:
                try:
                    self._run()
                except BaseException as error:  # `drive` raises it again
                    self.failure = error
                self.asked_ns.append(asked_ns)
                self.latencies_ns.append(time.perf_counter_ns() - asked_ns)
            self._lg.QuerySamplesComplete(
                [self._lg.QuerySampleResponse(sample.id, 0, 0) for sample in batch]
            )


def _test_settings(lg: Any, spec: BenchSpec, settings: LoadgenSpec, typical_ns: float) -> Any:
    test = lg.TestSettings()
    test.mode = lg.TestMode.PerformanceOnly
    test.min_duration_ms = round(settings.min_duration_s * 1e3)
    test.min_query_count = _FEWEST_QUERIES[spec.scenario]
    match spec.scenario:
        case "single-stream":
            test.scenario = lg.TestScenario.SingleStream
            test.single_stream_expected_latency_ns = max(1, round(typical_ns / _MARGIN))
        case "offline":
            test.scenario = lg.TestScenario.Offline
            test.offline_expected_qps = _MARGIN * spec.batch_size * 1e9 / typical_ns
        case "server":
            test.scenario = lg.TestScenario.Server
            test.server_target_qps = spec.qps
            test.server_target_latency_ns = round(settings.target_latency_ms * 1e6)
            test.server_target_latency_percentile = 0.99
    return test
