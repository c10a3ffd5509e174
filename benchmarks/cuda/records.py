"""Records of a run, its request and its results, with a JSON form as those of resdeploy."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.benchmarks import BenchResult
from resdeploy.schema.codec import Record, record, to_json
from resdeploy.schema.machines import Environment
from resdeploy.schema.sessions import PrecisionName, SessionSpec
from resdeploy.schema.verdicts import VerifyReport

__all__ = [
    "Case",
    "Ceilings",
    "Form",
    "GpuReport",
    "Kind",
    "LayerWork",
    "NetworkWork",
    "Outcome",
    "RunSpec",
    "Timed",
    "arithmetic",
    "session_title",
]

Kind = Literal["ceilings", "model", "verify", "bench", "settings", "peers"]
Form = Literal["float32", "float16", "int8"]


@record
class RunSpec(Record):
    """Settings that decide the numbers of a run; results of another one are not mixed with it.

    Attributes:
        provider: the short name of the provider to look at.
        side: height and width of images in pixels; None for the networks' own.
        num_inputs: golden inputs of each network.
        num_runs: timed runs at small batches; see `runs_for`.
    """

    provider: str
    side: int | None = None
    num_inputs: int = 16
    num_runs: int = 100

    def runs_for(self, batch_size: int) -> int:
        """Return the number of timed runs at a batch size: fewer where one takes long.

        Each still is hundreds of samples; 20 is the least that a median is worth.
        """
        return min(self.num_runs, max(20, self.num_runs * 32 // batch_size))


@record
class Case(Record):
    """One thing to do in a process of its own.

    Attributes:
        kind: measure the device's ceilings; make a model; verify or time one session; or time, in
            turn, what a setting changes ("settings") or what else there is ("peers").
        network: an architecture by name; "" where none is needed.
        form: of its model.
        session: of "verify" and "bench".
        batch_size: of what is timed; 0 elsewhere.
        block: counts the repetitions of "settings" and "peers".
        thorough: in "verify", also certify every layer, other batches, graph levels and odd values.
    """

    kind: Kind
    network: str = ""
    form: Form = "float32"
    session: SessionSpec | None = None
    batch_size: int = 0
    block: int = 0
    thorough: bool = False

    @property
    def key(self) -> str:
        """Its key among all cases."""
        return json.dumps(to_json(self), sort_keys=True)

    @property
    def title(self) -> str:
        """Words that say what it is, for tables and for `--only`."""
        words = [self.kind, self.network]
        if self.kind not in ("ceilings", "peers"):
            words.append(self.arithmetic)
        if self.session is not None:
            words.append(session_title(self.session))
        if self.batch_size:
            words.append(f"batch={self.batch_size}")
        if self.block:
            words.append(f"block={self.block}")
        return " ".join(filter(None, words))

    @property
    def arithmetic(self) -> PrecisionName:
        """Its nominal precision: float32, tf32, float16 or int8."""
        return arithmetic(self.form, self.session or SessionSpec())


def arithmetic(form: Form, session: SessionSpec) -> PrecisionName:
    """Return the nominal precision of a form in a session."""
    return "tf32" if form == "float32" and session.use_tf32 else form


def session_title(session: SessionSpec) -> str:
    """Return the layout of a session and whether it replays a graph, in two words."""
    layout = "NHWC" if session.prefer_nhwc else "NCHW"
    return f"{layout} graph" if session.cuda_graph else f"{layout} launches"


@record
class Ceilings(Record):
    """Ceilings of the device, by torch; `missing` has the reason for each that is absent.

    Attributes:
        device: torch's name for it.
        macs_per_s: by arithmetic, the rate of a large matrix product, multiplications with addition
            in a second.
        copy_bytes_per_s: of copying an array that no cache holds, read and written together.
        to_device_bytes_per_s: of copying one from ordinary host memory; None on a CPU.
        missing: by arithmetic.
    """

    device: str
    macs_per_s: Mapping[str, float]
    copy_bytes_per_s: float
    to_device_bytes_per_s: float | None = None
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)


@record
class LayerWork(Record):
    """Work of one kernel for one sample: arithmetic, and float32 bytes read and written.

    `fixed_bytes` are those that a batch shares, its weights; `sample_bytes` those of each sample.
    """

    name: str
    op: str
    num_macs: int
    fixed_bytes: int
    sample_bytes: int


@record
class NetworkWork(Record):
    """The kernels of a network, in their order."""

    layers: tuple[LayerWork, ...]


@record
class Timed(Record):
    """Result of one contender timed in turn, in one process.

    Attributes:
        name: in tables.
        failure: why it was not timed, or stopped; None if all went well.
        host_ns: latencies from host memory to host memory.
        device_ns: and from and to the device's.
        rel_l2: distance of its outputs from the float64 reference.
        options: settings in force, in the runtime's own words.
    """

    name: str
    failure: str | None = None
    host_ns: tuple[int, ...] = ()
    device_ns: tuple[int, ...] = ()
    rel_l2: float | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


@record
class Outcome(Record):
    """Outcome of a case: one of the records below, or the reason why there is none.

    `duration_s` is the time of its process, from its start to its end; 0 until that is known.
    """

    case: Case
    duration_s: float = 0.0
    failure: str | None = None
    ceilings: Ceilings | None = None
    work: NetworkWork | None = None
    verify: VerifyReport | None = None
    bench: BenchResult | None = None
    timed: tuple[Timed, ...] = ()

    @property
    def passed(self) -> bool:
        """True if it was done, and every verification passed."""
        return self.failure is None and (self.verify is None or self.verify.passed)


@record
class GpuReport(Record):
    """Everything a run has found so far, on one machine."""

    spec: RunSpec
    environment: Environment
    outcomes: tuple[Outcome, ...] = ()

    @property
    def passed(self) -> bool:
        """True if every case passed, of at least one."""
        return bool(self.outcomes) and all(outcome.passed for outcome in self.outcomes)
