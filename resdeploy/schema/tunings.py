"""The search for the fastest way to run a model, and what it settled on."""

import math
from typing import Literal

from resdeploy.schema.benchmarks import BenchComparison, Profile, SpeedRatio
from resdeploy.schema.codec import Record, record
from resdeploy.schema.machines import Environment
from resdeploy.schema.quants import QuantReport
from resdeploy.schema.sessions import SessionSpec

__all__ = [
    "GoldenAnswers",
    "Objective",
    "TuneReport",
    "TuneSpec",
    "TuneTrial",
    "TunedSettings",
    "TunedTarget",
]

Objective = Literal["latency", "p99", "throughput", "memory", "size"]


@record
class TuneSpec(Record):
    """What to search, and what for.

    Attributes:
        objective: the time of a run in the median or at its 99th percentile, samples per second,
            the process's peak memory, or the size of the model file.
        max_drop: the fraction by which a candidate may be right less often than the bundle's own
            model; None is "lossless": it must pass `verify` as float32.
        providers: where to run.
        batch_sizes: samples of a run; more than one for the throughput only.
        threads: numbers of threads of the CPU; None is ONNX Runtime's own choice.
        num_runs: of each process at most; slow models run less often, fast ones in the first block.
        max_blocks: how often the race goes round at most.
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
    """One candidate: a model in a session with a batch size, and what became of it.

    Attributes:
        model: the file's name.
        session: on what, and how.
        batch_size: samples of one run.
        size_bytes: of the file; 0 where it could not be made.
        times_ns: the objective's percentile of a run, one for each block that it was in.
        ram_peak_bytes: of its process; None where it cannot be read.
        drop: how much less often it is right, where that was judged.
        evidence: what lets it in: the verdict, or the interval of the drop.
        out: why it left, or was never in; None if nobody beat it.
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
        """The geometric mean over blocks, which is what the race compares; infinite if in none."""
        if not self.times_ns:
            return math.inf
        return math.exp(math.fsum(map(math.log, self.times_ns)) / len(self.times_ns))


@record
class TunedTarget(Record):
    """The kind of machine that settings were found on; on any other they say nothing.

    The processor's architecture, its model, how many CPUs were allowed, and the GPUs, as in
    `Environment`; and the version of ONNX Runtime. A thread more or another kernel, and the fastest
    way may be another one.
    """

    machine: str
    cpu_model: str | None
    num_cpus_allowed: int
    gpu_names: tuple[str, ...]
    runtime_version: str


@record
class GoldenAnswers(Record):
    """What a model in a session made of a bundle's golden inputs.

    Attributes:
        num_inputs: how many.
        num_same_class: for how many of them the largest output is the reference's.
        error: the largest difference from the reference, over the reference's largest output.
    """

    num_inputs: int
    num_same_class: int
    error: float


@record
class TunedSettings(Record):
    """The way to run a bundle on one kind of machine, as `tune` found it.

    Attributes:
        target: the kind of machine.
        model: the file of the bundle to open.
        session: how to open it.
        batch_size: samples of one run.
        objective: what it is best at.
        ratio: its time over that of the bundle's model with the provider's defaults, with its
            interval; None if it is just that.
        max_drop: the budget it was found with; None is lossless.
        evidence: what was demanded of its answers, and shown.
        answers: what it made of the golden inputs then; `check` holds it to that.
        quant: how the file was made, where `tune` made it.
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
        name: of the bundle.
        spec: what was searched.
        environment: the machine and the software.
        trials: every candidate, those that were out before the race too.
        winner: the place of the best among `trials`.
        ties: places of those that could not be told from it.
        front: places of those that no other beats in time, memory, size and accuracy at once.
        num_blocks: how often the race went round.
        comparison: the winner against the bundle's model with the provider's defaults, in fresh
            processes that had no part in the race; None if the winner is just that.
        profile: where the winner's time goes now, and what the machine could do; where its provider
            does not tell, and computes on the CPU, that of the same model on ONNX Runtime's own;
            None where there is neither.
        settings: what the bundle was given.
        quants: the lower precisions that were made for the search, those that did not pass too.
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
