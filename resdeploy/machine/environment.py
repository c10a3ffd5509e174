"""Environment of a measurement: the machine and the software, and nothing about their owner."""

import math
import os
import platform
import re
import sys

from resdeploy import __version__
from resdeploy.machine.cpu_features import common_flags
from resdeploy.machine.system import installed_packages, load_average, nvidia_smi, read_text
from resdeploy.schema.machines import Environment

__all__ = ["read_environment"]

# The instruction sets that ONNX Runtime has kernels for, as Linux names them, x86 then Arm.
_CPU_FEATURES = (
    *("avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


def read_environment() -> Environment:
    """Return this machine and its software; unreadable fields are None, or empty.

    Never raises, and holds no user name, host name, path or serial number: the result is meant to
    be published with the numbers.
    """
    return Environment(
        machine=platform.machine(),
        system=_system(),
        cpu_model=_cpu_model(),
        num_cpus=os.cpu_count() or 1,
        num_cpus_allowed=_num_cpus_allowed(),
        ram_bytes=_ram_bytes(),
        load_average_1min=load_average(),
        cpu_governor=_first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        gpu_names=_gpu_names(),
        versions=_versions(),
        cpu_features=_cpu_features(),
        cpu_limit=_cpu_limit(),
        ram_limit_bytes=_ram_limit_bytes(),
    )


def _system() -> str:
    # Only the numbers of a release: its builder may have added a name.
    release = re.match(r"[\d.]*", platform.release())
    return f"{platform.system()} {release[0] if release else ''}".strip()


def _cpu_model() -> str | None:
    # On x86 the first; on Arm boards the device tree names the board, which says more than the
    # core's part number does.
    for line in read_text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return _first_line("/proc/device-tree/model") or platform.processor() or None


def _num_cpus_allowed() -> int:
    """Return the CPUs' worth of time that this process may use, at least 1."""
    if sys.platform == "linux":
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    # The process sees all the CPUs, and is stopped when the limit is used up.
    if (limit := _cpu_limit()) is not None:
        allowed = min(allowed, math.ceil(limit))
    return max(1, allowed)


def _cpu_features() -> tuple[str, ...]:
    found = common_flags(read_text("/proc/cpuinfo"))
    return tuple(name for name in _CPU_FEATURES if name in found)


def _cpu_limit() -> float | None:
    """Return a container's limit on CPU time, in CPUs: "quota period", both in microseconds."""
    match read_text("/sys/fs/cgroup/cpu.max").split():
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            return int(quota) / int(period)
    return None


def _ram_limit_bytes() -> int | None:
    limit = read_text("/sys/fs/cgroup/memory.max").strip()
    return int(limit) if limit.isdecimal() else None


def _ram_bytes() -> int | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB", read_text("/proc/meminfo"), re.M)
    return int(match[1]) * 1024 if match else None


def _gpu_names() -> tuple[str, ...]:
    # "GPU 0: NVIDIA H200 (UUID: GPU-...)"; the UUID identifies the owner's board.
    return tuple(re.findall(r"^GPU \d+: (.+?)(?: \(UUID: .*)?$", nvidia_smi("-L"), re.M))


def _versions() -> dict[str, str]:
    # resdeploy by its own word: run from a checkout, it is not an installed distribution.
    versions = {"python": platform.python_version(), "resdeploy": __version__}
    for name, distribution in installed_packages():
        if name == "numpy" or name.startswith("onnxruntime"):
            version = distribution.metadata.get_all("Version", [""])[0]
            versions.setdefault(name, version)
    return dict(sorted(versions.items()))


def _first_line(path: str) -> str | None:
    # Device-tree strings end in a zero byte.
    lines = read_text(path).replace("\0", "").splitlines()
    return lines[0].strip() or None if lines else None
