"""Stability of a benchmark: the reasons why its numbers cannot be relied on."""

import math
from collections.abc import Iterator, Sequence

from resdeploy.schema.benchmarks import BenchSpec, LatencySummary
from resdeploy.schema.machines import MachineState
from resdeploy.statistics.latency import (
    STABLE_SHIFT_LIMIT,
    is_settled,
    is_stable,
    is_sustained,
    service_times,
)

__all__ = ["machine_reasons", "unstable_reasons"]

# Other programs may use this part of the CPUs that the benchmark leaves free: beyond it they are
# in its way. Clock ticks of 10 ms make the share of short runs uncertain by a few percent.
_BUSY_LIMIT = 0.95
_STOLEN_LIMIT = 0.02

# Bits of NVML's reasons that are no throttling: idle, a clock that was asked for, display.
_HARMLESS_REASONS = 0x1 | 0x2 | 0x10 | 0x100


def unstable_reasons(
    spec: BenchSpec,
    *,
    warmup_ns: Sequence[int],
    latencies_ns: Sequence[int],
    arrivals_ns: Sequence[int],
    summary: LatencySummary,
) -> Iterator[str]:
    """Yield the reasons for doubt in the times of a result."""
    if spec.max_warmup > spec.num_warmup and not is_settled(warmup_ns):
        yield f"the times had not settled after {len(warmup_ns)} runs of warm-up"
    # Waiting in a queue varies by nature, so there it is the runs themselves that are judged.
    runs_ns = service_times(arrivals_ns, latencies_ns) if arrivals_ns else latencies_ns
    stable, reason = is_stable(runs_ns)
    if not stable:
        yield reason
    elif not arrivals_ns:
        low, high = summary.p50_interval_ns
        if (high - low) / 2 > STABLE_SHIFT_LIMIT * summary.p50_ns:
            half = (high - low) / 2 / summary.p50_ns
            known = (
                f"is known to {half:.1%} only"
                if high < math.inf
                else "is not known, so alike are neighbours"
            )
            yield f"the median {known}"
    if spec.scenario == "server":
        sustained, reason = is_sustained(arrivals_ns, latencies_ns)
        if not sustained:
            yield reason


def machine_reasons(
    before: MachineState, after: MachineState, *, process_s: float, num_cpus: int
) -> Iterator[str]:
    """Yield the events on the machine between two states that make its times doubtful."""
    elapsed_s = after.time_s - before.time_s
    seconds = max(elapsed_s, 1e-9)
    if before.busy_s is not None and after.busy_s is not None and elapsed_s > 0:
        others = max(0.0, (after.busy_s - before.busy_s - process_s) / seconds)
        if others > _BUSY_LIMIT * (num_cpus - process_s / seconds):
            yield f"other programs used {others:.1f} of {num_cpus} CPUs"
    stolen = _growth(before.stolen_s, after.stolen_s) / seconds
    if stolen > _STOLEN_LIMIT * num_cpus:
        yield f"the host took {stolen:.2f} CPUs from this virtual machine"
    if _growth(before.num_throttles, after.num_throttles) > 0:
        yield "the processor was slowed for its heat or power"
    if limited := _growth(before.limited_s, after.limited_s):
        yield f"the container's CPU limit stopped it for {limited * 1e3:.0f} ms"
    for number, gpu in enumerate(after.gpus):
        if gpu.slowed_by is not None and gpu.slowed_by & ~_HARMLESS_REASONS:
            yield f"GPU {number} was slowed (clock event reasons {gpu.slowed_by:#x})"


def _growth(before: float | None, after: float | None) -> float:
    return 0.0 if before is None or after is None else after - before
