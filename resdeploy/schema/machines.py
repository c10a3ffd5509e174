"""The machine: its environment, its state, its providers, and findings."""

from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.codec import Record, record


@record
class Environment(Record):
    """The machine and the software a measurement was made with; None is "not readable here".

    `cpu_features` are the instruction sets that decide how fast a network runs; `cpu_limit` (in
    CPUs) and `ram_limit_bytes` are what a container allows, None where it sets no limit.
    """

    machine: str
    system: str
    cpu_model: str | None
    num_cpus: int
    num_cpus_allowed: int
    ram_bytes: int | None
    load_average_1min: float | None
    cpu_governor: str | None
    gpu_names: tuple[str, ...]
    versions: Mapping[str, str]
    cpu_features: tuple[str, ...] = ()
    cpu_limit: float | None = None
    ram_limit_bytes: int | None = None


@record
class GpuState(Record):
    """One GPU at one moment; None is "not readable here".

    `slowed_by` are the bits of NVML's clocks event reasons, 0 if nothing slows it; bit 0 is "idle".
    """

    clock_mhz: int | None
    temperature_c: int | None
    used_bytes: int | None
    slowed_by: int | None


@record
class MachineState(Record):
    """The machine at one moment; None is "not readable here".

    Attributes:
        time_s: on a clock with an arbitrary start.
        load_average_1min: running and waiting processes.
        cpu_frequency_mhz: mean over the CPUs.
        temperature_c: of the hottest sensor.
        num_throttles: slow-downs of a core for heat or power, since boot.
        limited_s: time for which this container was stopped at its CPU limit.
        busy_s: CPU time of all processes on the machine since boot.
        stolen_s: CPU time that the host of this virtual machine gave to others, since boot.
    """

    time_s: float
    load_average_1min: float | None = None
    cpu_frequency_mhz: float | None = None
    temperature_c: float | None = None
    num_throttles: int | None = None
    limited_s: float | None = None
    busy_s: float | None = None
    stolen_s: float | None = None
    gpus: tuple[GpuState, ...] = ()


@record
class ProviderProbe(Record):
    """The start of a session on an execution provider, tried with a tiny model.

    `provider` is the short name of `resdeploy.session.providers`, or ONNX Runtime's own name of a
    provider without settings there; `why_not` is the obstacle to its start, `fix` the remedy, if
    known.
    """

    provider: str
    ort_name: str
    starts: bool
    why_not: str | None = None
    fix: str | None = None


@record
class ProbeReport(Record):
    """A machine's abilities: its runtime, its providers, and the instructions that decide speed.

    `available_providers` are those the runtime was built with, in its order, and may not all start;
    `providers` the outcome of opening a tiny model on each; `plugins` the versions of the packages
    of plugin providers; `cpu_features` True for the instructions of this CPU, empty if unreadable;
    `lacks` are functions that this version of the runtime does not have.
    """

    environment: Environment
    runtime: str
    runtime_version: str
    available_providers: tuple[str, ...]
    providers: tuple[ProviderProbe, ...]
    plugins: Mapping[str, str]
    cpu_features: Mapping[str, bool]
    lacks: tuple[str, ...] = ()


@record
class Finding(Record):
    """One finding; a "fault" stops the requested providers, a "remark" does not."""

    subject: str
    verdict: Literal["ok", "remark", "fault"]
    what: str
    fix: str | None = None


@record
class DoctorReport(Record):
    """All findings in an installation, in the order of the examination."""

    providers: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """True if all requested providers can run."""
        return all(finding.verdict != "fault" for finding in self.findings)
