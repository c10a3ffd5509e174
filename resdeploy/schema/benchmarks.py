"""Latencies, profiles and comparisons of speed."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.codec import Record, record
from resdeploy.schema.files import FileInfo
from resdeploy.schema.machines import Environment, MachineState
from resdeploy.schema.sessions import Placement, SessionInfo, SessionSpec
from resdeploy.schema.sources import SourceSpec

__all__ = [
    "BenchBlock",
    "BenchComparison",
    "BenchJob",
    "BenchReport",
    "BenchResult",
    "BenchSide",
    "BenchSpec",
    "LatencySummary",
    "LayerTime",
    "LoadgenResult",
    "LoadgenSpec",
    "Profile",
    "RunnerSpec",
    "Scenario",
    "SpeedRatio",
]

Scenario = Literal["single-stream", "offline", "server"]


@record
class LoadgenSpec(Record):
    """A run that MLCommons LoadGen drives: its shortest duration, and the rule of "server".

    `target_latency_ms` is what 99 % of the queries of "server" may take: 15 ms for MLPerf's
    ResNet-50.
    """

    min_duration_s: float = 60.0
    target_latency_ms: float = 15.0


@record
class RunnerSpec(Record):
    """A runner of `resdeploy.bench.runners`: the program that runs the model.

    Attributes:
        name: its name in the table there.
        source: of torch, the network that the checkpoint belongs to; its path is the model's.
        options: of a session, provider options in place of those that resdeploy chooses.
        python: the interpreter that has the runtime; None for the running one. It is not recorded.
    """

    name: str = "session"
    source: SourceSpec = SourceSpec()
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    python: str | None = None


@record
class BenchSpec(Record):
    """What to time: `num_runs` runs of one session after its warm-up.

    Attributes:
        session: on what, and how; of a runner other than a session, its provider and threads.
        batch_size: samples of one run.
        num_warmup: runs of warm-up, at least; the first run is always one.
        max_warmup: runs of warm-up at most; up to there it goes on until the times have settled.
            No more than `num_warmup` where they need not.
        num_runs: how many are timed.
        num_bound_runs: runs timed in turn with those, whose input and output stay where the
            provider computes.
        num_profile_runs: runs of another session, to time each layer; 0 for none.
        scenario: one run after the other ("single-stream"); all samples there at once
            ("offline"); or runs asked for at random times ("server").
        qps: in "server", how many runs are asked for in a second, on average.
        seed: of those random times.
        loadgen: let MLCommons LoadGen ask for the runs, and not `num_runs`; None without it.
        runner: what runs the model.
    """

    session: SessionSpec
    batch_size: int = 1
    num_warmup: int = 10
    max_warmup: int = 200
    num_runs: int = 100
    num_bound_runs: int = 0
    num_profile_runs: int = 0
    scenario: Scenario = "single-stream"
    qps: float | None = None
    seed: int = 0
    loadgen: LoadgenSpec | None = None
    runner: RunnerSpec = RunnerSpec()


@record
class LatencySummary(Record):
    """What a list of latencies comes to.

    Attributes:
        num_runs: how many latencies there were.
        mean_ns: their arithmetic mean.
        min_ns: the shortest.
        p50_ns: 50 % of the runs took no longer than this; likewise `p90_ns`, `p99_ns` and
            `p999_ns`, which is 99.9 %. With fewer than 100 runs `p99_ns` is the longest, with fewer
            than 1000 `p999_ns`.
        max_ns: the longest.
        throughput_per_s: samples answered per second.
        p50_interval_ns: low and high end of the 95 % interval, for these runs in this process.
        p99_interval_ns: likewise; empty with fewer than 100 runs, which have no p99.
    """

    num_runs: int
    mean_ns: float
    min_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int
    throughput_per_s: float
    p50_interval_ns: tuple[float, ...]
    p99_interval_ns: tuple[float, ...]


@record
class LayerTime(Record):
    """One kernel of the model: the median of its times, and the work that its shapes mean.

    `name` is that of the model's node, where the runtime's can be traced to one; `num_macs` are
    multiplications with an addition; `num_bytes` are what it must read and write at least, weights
    included.
    """

    name: str
    op: str
    p50_ns: int
    num_macs: int
    num_bytes: int

    @property
    def is_integer(self) -> bool:
        """Whether it computes with integers: QLinearConv, QGemm, MatMulInteger and their like."""
        return self.op.startswith(("QLinear", "QGemm")) or self.op.endswith("Integer")


@record
class Profile(Record):
    """Where the time of a run goes, and what the machine could do at best in the same minute.

    `peak_macs_per_s` is that of a large matrix product of float32 on the same threads,
    `peak_integer_macs_per_s` of one of uint8 by int8, None where no layer is one of integers;
    `peak_bytes_per_s` is that of copying arrays that no cache holds, read and written bytes
    together.
    """

    layers: tuple[LayerTime, ...]
    num_runs: int
    run_p50_ns: int
    peak_macs_per_s: float
    peak_bytes_per_s: float
    peak_integer_macs_per_s: float | None = None

    def peak_of(self, layer: LayerTime) -> float:
        """Return the best rate of products of the kind that a layer's are, per second."""
        if layer.is_integer and self.peak_integer_macs_per_s is not None:
            return self.peak_integer_macs_per_s
        return self.peak_macs_per_s


@record
class LoadgenResult(Record):
    """What MLCommons LoadGen says of a run: unofficial, and not verified by MLCommons.

    Attributes:
        version: of mlcommons-loadgen.
        valid: whether the rules of its scenario were met.
        metric: the figure that the scenario is about, as LoadGen names it.
        value: of that figure.
        reasons: which rules were not met.
        summary: all that LoadGen says, as it says it.
    """

    version: str
    valid: bool
    metric: str
    value: float
    reasons: tuple[str, ...]
    summary: str


@record
class BenchResult(Record):
    """Raw latencies of one session in a process of its own, warm-up apart, and their summary.

    Attributes:
        spec: what was asked for.
        model: the file.
        session: what it ran on.
        environment: the machine and the software.
        input_shape: of one run.
        load_ns: from the file to an open session.
        warmup_ns: time of each run of the warm-up; the first is the first run.
        latencies_ns: of each run, from host memory to host memory: the copies are in it.
        bound_ns: of each run in turn with those, from and to the provider's own memory by an I/O
            binding: the copies are not in it.
        arrivals_ns: when each run was asked for, since the start; empty in "single-stream". The
            latency then counts from there, so that waiting in the queue is in it.
        summary: what the latencies come to.
        unstable_reasons: why the summary is not to be relied on; empty if nothing speaks against.
        before: the machine before the timed runs.
        after: and after.
        process_s: CPU time that this process used in between.
        ram_base_bytes: the process's peak memory before the model was loaded.
        ram_peak_bytes: and at the end; None where it cannot be read.
        gpu_bytes: what the GPU's used memory grew by, whoever used it.
        placement: where the kernels of one further run were; None where that was not looked at.
        num_subnormal_weights: weights that are subnormal, which some CPUs compute slowly with;
            None where they cannot be read.
        warnings: what the runtime said of itself being slow.
        profile: times of the layers, where asked for.
        loadgen: what LoadGen says, where it asked for the runs.
    """

    spec: BenchSpec
    model: FileInfo
    session: SessionInfo
    environment: Environment
    input_shape: tuple[int, ...]
    load_ns: int
    warmup_ns: tuple[int, ...]
    latencies_ns: tuple[int, ...]
    summary: LatencySummary
    unstable_reasons: tuple[str, ...] = ()
    bound_ns: tuple[int, ...] = ()
    arrivals_ns: tuple[int, ...] = ()
    before: MachineState | None = None
    after: MachineState | None = None
    process_s: float | None = None
    ram_base_bytes: int | None = None
    ram_peak_bytes: int | None = None
    gpu_bytes: int | None = None
    placement: Placement | None = None
    num_subnormal_weights: int | None = None
    warnings: tuple[str, ...] = ()
    profile: Profile | None = None
    loadgen: LoadgenResult | None = None

    @property
    def stable(self) -> bool:
        """Whether nothing speaks against the summary."""
        return not self.unstable_reasons

    @property
    def p50_ms(self) -> float:
        """The median latency of a run, in milliseconds."""
        return self.summary.p50_ns / 1e6


@record
class BenchReport(Record):
    """One result for each configuration that was asked for."""

    results: tuple[BenchResult, ...]

    @property
    def p50_ms(self) -> float:
        """The median latency of a run in milliseconds, where one configuration was timed.

        Raises:
            ValueError: several were: each of `results` has its own.
        """
        (result,) = self.results
        return result.p50_ms


@record
class BenchJob(Record):
    """What a worker process is told to do: time a model, all at once or in bursts on command.

    `model` is None where the source's factory makes a trained module by itself; `golden` is a
    golden file whose inputs are run, and its answers judged, in place of a drawn input.
    """

    model: str | None
    spec: BenchSpec
    in_bursts: bool = False
    prove_placement: bool = True
    golden: str | None = None


@record
class BenchSide(Record):
    """One of those that are compared: a model in a runner.

    Attributes:
        spec: what was asked for.
        model: the file; None where a factory made the module.
        session: what it ran on.
        options: settings in force, in the runtime's own words.
        rel_l2: relative distance of its outputs from the golden file's float64 reference; None
            without one, or where an output is not finite.
    """

    spec: BenchSpec
    model: FileInfo | None
    session: SessionInfo
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rel_l2: float | None = None


@record
class BenchBlock(Record):
    """Latencies of one pair of fresh processes, in bursts that took turns: A B B A or B A A B."""

    candidate_ns: tuple[tuple[int, ...], ...]
    baseline_ns: tuple[tuple[int, ...], ...]
    candidate_first: bool


@record
class SpeedRatio(Record):
    """Time of the candidate over that of the baseline, with its interval."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["faster", "slower", "cannot tell"]:
        """What the candidate is, if the whole interval says so."""
        if self.low > 1:
            return "slower"
        return "faster" if self.high < 1 else "cannot tell"


@record
class BenchComparison(Record):
    """Two sessions timed in turn, or one against a saved result, and the ratio of their times.

    Attributes:
        candidate: the one in question.
        baseline: the one it is held against.
        environment: the machine and the software.
        interleaved: whether both were timed in turn; False is weaker evidence.
        blocks: the raw latencies.
        confidence: of the intervals.
        p50: ratio of the medians.
        p99: ratio of the 99th percentiles; None if there were too few runs.
        max_slowdown: the candidate may be slower by this fraction; None if that was not asked.
        caveats: what the reader must know before believing it.
        before: the machine before.
        after: and after.
    """

    candidate: BenchSide
    baseline: BenchSide
    environment: Environment
    interleaved: bool
    blocks: tuple[BenchBlock, ...]
    confidence: float
    p50: SpeedRatio
    p99: SpeedRatio | None
    max_slowdown: float | None = None
    caveats: tuple[str, ...] = ()
    before: MachineState | None = None
    after: MachineState | None = None

    @property
    def passed(self) -> bool:
        """Whether the candidate is not proven slower than allowed: all of the interval beyond."""
        return self.max_slowdown is None or self.p50.low <= 1 + self.max_slowdown
