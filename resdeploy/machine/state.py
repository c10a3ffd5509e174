"""State of the machine at one moment: load, clock, temperature, and this process's memory.

Everything here is best effort: an unreadable value is None, and nothing raises.
"""

import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from resdeploy.machine.system import load_average, nvidia_smi, read_text
from resdeploy.schema.machines import GpuState, MachineState

__all__ = ["peak_ram_bytes", "read_machine_state"]

_GPU_FIELDS = ("clocks.sm", "temperature.gpu", "memory.used", "clocks_event_reasons.active")


def read_machine_state(*, gpus: bool = False) -> MachineState:
    """Return the machine's state now; that of its GPUs takes a process of its own."""
    busy_s, stolen_s = _cpu_times()
    return MachineState(
        time_s=time.monotonic(),
        load_average_1min=load_average(),
        cpu_frequency_mhz=_cpu_frequency(),
        temperature_c=_temperature(),
        num_throttles=_num_throttles(),
        limited_s=_limited(),
        busy_s=busy_s,
        stolen_s=stolen_s,
        gpus=_gpus() if gpus else (),
    )


def peak_ram_bytes() -> int | None:
    """Return the peak memory of this process.

    On Linux its count for this program: `getrusage` there starts at the peak of the parent.
    """
    if match := re.search(r"^VmHWM:\s*(\d+) kB", read_text("/proc/self/status"), re.M):
        return 1024 * int(match[1])
    if sys.platform == "darwin":
        import resource  # noqa: PLC0415 - Windows has none

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _cpu_times() -> tuple[float | None, float | None]:
    """Return the used CPU time of the whole machine, and the time stolen from it."""
    match read_text("/proc/stat").partition("\n")[0].split():
        case ["cpu", user, nice, system, _idle, _wait, interrupt, soft_interrupt, stolen, *_]:
            used = map(int, (user, nice, system, interrupt, soft_interrupt))
            ticks = os.sysconf("SC_CLK_TCK")
            return sum(used) / ticks, int(stolen) / ticks
    return None, None


def _cpu_frequency() -> float | None:
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    values = [kilohertz / 1e3 for kilohertz in _numbers_in(files)]
    # Virtual machines have no such files; x86 says it here too.
    values = values or [
        float(value)
        for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", read_text("/proc/cpuinfo"), re.M)
    ]
    return sum(values) / len(values) if values else None


def _temperature() -> float | None:
    files = Path("/sys/class/thermal").glob("thermal_zone*/temp")
    return max((millidegrees / 1e3 for millidegrees in _numbers_in(files)), default=None)


def _num_throttles() -> int | None:
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = _numbers_in(files)
    return sum(counts) if counts else None


def _numbers_in(files: Iterable[Path]) -> list[int]:
    return [int(text) for text in map(read_text, files) if text.strip().isdecimal()]


def _limited() -> float | None:
    match = re.search(r"^throttled_usec (\d+)", read_text("/sys/fs/cgroup/cpu.stat"), re.M)
    return int(match[1]) / 1e6 if match else None


def _gpus() -> tuple[GpuState, ...]:
    query = f"--query-gpu={','.join(_GPU_FIELDS)}"
    table = nvidia_smi(query, "--format=csv,noheader,nounits")
    rows = [[_number(text) for text in line.split(",")] for line in table.splitlines()]
    return tuple(
        GpuState(
            clock_mhz=row[0],
            temperature_c=row[1],
            used_bytes=None if row[2] is None else row[2] << 20,
            slowed_by=row[3],
        )
        for row in rows
        if len(row) == len(_GPU_FIELDS)
    )


def _number(text: str) -> int | None:
    try:
        return int(text.strip(), 0)  # the reasons are hexadecimal
    except ValueError:
        return None
