"""The search for the fastest settings of a model, and its result."""

import math
from typing import Literal

from resdeploy.schema.benchmarks import BenchComparison, Profile, SpeedRatio
from resdeploy.schema.codec import Record, record
from resdeploy.schema.machines import Environment
from resdeploy.schema.quants import QuantReport
from resdeploy.schema.sessions import SessionSpec

Objective = Literal["latency", "p99", "throughput", "memory", "size"]


@record
class TuneSpec(Record):
    """The space and the objective of a search.

    Attributes:
        objective: the time of a run in the median or at its 99th percentile, samples per second,
            the process's peak memory, or the size of the model file.
        max_drop: the largest drop in accuracy below the bundle's own model, as a fraction; None is
            "lossless": a candidate must pass `verify` as float32.
        batch_sizes: more than one for the throughput only.
        threads: None is ONNX Runtime's own choice.
        num_runs: of each process at most; slow models run less often, fast ones in the first block.
        max_blocks: rounds of the race, at most.
    """

    objective: Objective = "latency"
    max_drop: float | None = None
    providers: tuple[str, ...] = ("cpu",)
    batch_sizes: tuple[int, ...] = (1,)
    threads: tuple[int | None, ...] = (None,)
    num_runs: int = 100
    max_blocks: int = 8


@record
class TuneTrial(Record):
    """One candidate, a model in a session with a batch size, and its outcome.

    `size_bytes` of the file is 0 if it could not be made; `times_ns` is the objective's percentile
    of a run, one for each block; `ram_peak_bytes` is of its process; `drop` is its drop in
    accuracy, if judged; `evidence` for its admission is the verdict, or the interval of the drop;
    `out` is the reason for its exclusion, None for the winner and its ties.
    """

    model: str
    session: SessionSpec
    batch_size: int
    size_bytes: int
    times_ns: tuple[float, ...] = ()
    ram_peak_bytes: int | None = None
    drop: float | None = None
    evidence: str = ""
    out: str | None = None

    @property
    def time_ns(self) -> float:
        """The geometric mean over blocks, the figure of the race; infinite without a block."""
        if not self.times_ns:
            return math.inf
        return math.exp(math.fsum(map(math.log, self.times_ns)) / len(self.times_ns))


@record
class TunedTarget(Record):
    """The kind of machine that settings are for, by fields of `Environment` and the runtime."""

    machine: str
    cpu_model: str | None
    num_cpus_allowed: int
    gpu_names: tuple[str, ...]
    runtime_version: str


@record
class GoldenAnswers(Record):
    """Agreement of a session with a bundle's golden outputs.

    `num_same_class` counts inputs whose largest output is the reference's; `error` is the largest
    difference from the reference, over the reference's largest output.
    """

    num_inputs: int
    num_same_class: int
    error: float


@record
class TunedSettings(Record):
    """The settings that `tune` found for a bundle on one kind of machine.

    `model` is the file of the bundle to open in `session`; `ratio` its time over that of the
    bundle's model with the provider's defaults, None if it is just that; `max_drop` the budget of
    the search, None for lossless; `evidence` that of its admission to the race; `answers` are its
    outputs for the golden inputs then, the measure of `check`; `quant` is the record of a file that
    `tune` made.
    """

    target: TunedTarget
    model: str
    session: SessionSpec
    batch_size: int
    objective: Objective
    ratio: SpeedRatio | None
    max_drop: float | None
    evidence: str
    answers: GoldenAnswers
    quant: QuantReport | None = None


@record
class TuneReport(Record):
    """All candidates, the best of them, and how it compares with ONNX Runtime's defaults.

    Attributes:
        trials: every candidate, those excluded before the race too.
        winner: the place of the best among `trials`.
        ties: places of those not significantly slower.
        front: the Pareto front in time, memory, size and accuracy, by places.
        num_blocks: rounds of the race.
        comparison: the winner against the bundle's model with the provider's defaults, in fresh
            processes that had no part in the race; None if the winner is just that.
        profile: the winner's layer times beside the machine's peaks; of ONNX Runtime's CPU provider
            if the winner's has no layer times but computes on the CPU; else None.
        quants: the lower precisions made for the search, failed ones too.
    """

    name: str
    spec: TuneSpec
    environment: Environment
    trials: tuple[TuneTrial, ...]
    winner: int
    ties: tuple[int, ...]
    front: tuple[int, ...]
    num_blocks: int
    comparison: BenchComparison | None
    profile: Profile | None
    settings: TunedSettings
    quants: tuple[QuantReport, ...] = ()

    @property
    def best(self) -> TuneTrial:
        """The winner."""
        return self.trials[self.winner]
