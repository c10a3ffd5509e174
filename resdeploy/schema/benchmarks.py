"""Latencies, profiles and comparisons of speed."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.codec import Record, record
from resdeploy.schema.files import FileInfo, InputSpec, SourceSpec, Verdict
from resdeploy.schema.machines import Environment, MachineState
from resdeploy.schema.sessions import Placement, SessionInfo, SessionSpec

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
    """A runner of `resdeploy.bench.runners`, by its name there: the program that runs the model.

    `source` is the network of the checkpoint, of torch; `options` are provider options of a session
    instead of resdeploy's own; `python` is the interpreter that has the runtime, None for the
    running one, and is not recorded.
    """

    name: str = "session"
    source: SourceSpec = SourceSpec()
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    python: str | None = None


@record
class BenchSpec(Record):
    """A benchmark to run: `num_runs` timed runs of one session after its warm-up.

    Attributes:
        session: of another runner, its provider and threads.
        num_warmup: fewest runs of warm-up; the first run is always one.
        max_warmup: most runs of warm-up, which goes on until the times have settled.
        num_bound_runs: runs timed in turn with those through an I/O binding, in device memory.
        num_profile_runs: runs of another session, to time each layer.
        scenario: one run after the other ("single-stream"); all samples there at once ("offline");
            or runs asked for at random times ("server"), of that `seed`.
        qps: mean runs per second of "server".
        loadgen: let MLCommons LoadGen drive the runs instead of `num_runs`.
        inputs: the shapes of a sample, for sizes that the model leaves open.
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
    inputs: tuple[InputSpec, ...] = ()


@record
class LatencySummary(Record):
    """Summary of a list of latencies; `throughput_per_s` counts samples.

    With fewer than 100 runs `p99_ns` is the longest, with fewer than 1000 `p999_ns` (99.9 %). The
    intervals are (low, high) at 95 %, for this process. Where the runs are too few, low is 0 or
    high is infinite: p99 has an upper end from 368 independent runs on, p99.9 from 3,688 on.
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
    p90_interval_ns: tuple[float, ...] = ()
    p999_interval_ns: tuple[float, ...] = ()


@record
class LayerTime(Record):
    """One kernel of the model: its median time, and its work by the shapes.

    `name` is that of the model's node where the kernel can be traced to one; `num_macs` are
    multiply-adds; `num_bytes` is the least traffic, weights included.
    """

    name: str
    op: str
    p50_ns: int
    num_macs: int
    num_bytes: int

    @property
    def is_integer(self) -> bool:
        """True for integer operators: QLinearConv, QGemm, MatMulInteger and their like."""
        return self.op.startswith(("QLinear", "QGemm")) or self.op.endswith("Integer")


@record
class Profile(Record):
    """Layer times of a run, and the machine's peak rates in the same minute.

    `peak_macs_per_s` is the rate of a large float32 matrix product on the same threads,
    `peak_integer_macs_per_s` of one of uint8 by int8 (None without integer layers), and
    `peak_bytes_per_s` of copying arrays larger than any cache, reads and writes together.
    """

    layers: tuple[LayerTime, ...]
    num_runs: int
    run_p50_ns: int
    peak_macs_per_s: float
    peak_bytes_per_s: float
    peak_integer_macs_per_s: float | None = None

    def peak_of(self, layer: LayerTime) -> float:
        """Return the peak rate, in MAC/s, for the arithmetic of a layer."""
        if layer.is_integer and self.peak_integer_macs_per_s is not None:
            return self.peak_integer_macs_per_s
        return self.peak_macs_per_s


@record
class LoadgenResult(Record):
    """Result of MLCommons LoadGen: unofficial, and not verified by MLCommons.

    `metric` and `value` are the scenario's figure; `reasons` are the broken rules of the scenario,
    none if `valid`; `summary` is LoadGen's own text.
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
        load_ns: from the file to an open session.
        latencies_ns: of each run, from host memory to host memory: the copies are in it.
        bound_ns: of each run in turn with those through an I/O binding, in the provider's memory:
            without the copies.
        arrivals_ns: time of each request since the start; empty in "single-stream". The latency
            then counts from there, waiting in the queue included.
        unstable_reasons: reasons not to rely on the summary.
        before: the machine before the timed runs, as `after` is after.
        process_s: CPU time of this process in between.
        ram_base_bytes: the process's peak memory before the model was loaded, None if unreadable.
        ram_peak_bytes: and at the end.
        gpu_bytes: growth of the GPU's used memory, by any process.
        placement: of the kernels of one further run, if asked for.
        num_subnormal_weights: weights that are slow on some CPUs; None if unreadable.
        warnings: the runtime's own, about speed.
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
        """True without a reason against the summary."""
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
            ValueError: several were.
        """
        (result,) = self.results
        return result.p50_ms


@record
class BenchJob(Record):
    """A worker process's job: time a model, all at once or in bursts on command.

    `model` is None if the source's factory makes a trained module; `golden` is a golden file to run
    and judge instead of a drawn input.
    """

    model: str | None
    spec: BenchSpec
    in_bursts: bool = False
    prove_placement: bool = True
    golden: str | None = None


@record
class BenchSide(Record):
    """One side of a comparison: a model in a runner.

    `model` is None if a factory made the module; `options` are the settings in force, in the
    runtime's own words; `rel_l2` is the relative distance of its outputs from the golden file's
    float64 reference, None without one, or if an output is not finite; `verdict` is the word for a
    bundle's model on its golden inputs in this session, None of other models.
    """

    spec: BenchSpec
    model: FileInfo | None
    session: SessionInfo
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rel_l2: float | None = None
    verdict: Verdict | None = None


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
        """The side of 1 on which the whole interval lies."""
        if self.low > 1:
            return "slower"
        return "faster" if self.high < 1 else "cannot tell"


@record
class BenchComparison(Record):
    """Two sessions timed in turn, or one against a saved result, and the ratio of their times.

    `interleaved` is True if both were timed in turn: False is weaker evidence, and `caveats` are
    its limits. `p50` and `p99` are ratios of percentiles, with intervals of that `confidence`;
    `p99` is None if there were too few runs. `max_slowdown` is the largest fraction by which the
    candidate may be slower; `before` and `after` are the machine around the runs.
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
        """True unless the whole interval of the p50 ratio is beyond `max_slowdown`."""
        return self.max_slowdown is None or self.p50.low <= 1 + self.max_slowdown
