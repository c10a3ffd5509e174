"""Environment of a measurement: the machine and the software, and nothing about their owner."""

import math
import os
import platform
import re
import sys
from collections.abc import Mapping

from resdeploy import __version__
from resdeploy.machine.system import installed_packages, load_average, nvidia_smi, read_text
from resdeploy.schema.machines import Environment

__all__ = ["read_cpu_features", "read_environment"]

# The instruction sets that ONNX Runtime has kernels for, as Linux names them, x86 then Arm.
_CPU_FEATURES = (
    *("avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
# Our names, and Linux's for the same; x86 in the order they came.
_X86 = {
    "avx2": "avx2",  # float32 by 8
    "avx512": "avx512f",  # float32 by 16
    "avx512_vnni": "avx512_vnni",  # int8 products without saturation, by 64
    "avx_vnni": "avx_vnni",  # the same, by 32
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",  # whole tiles
    "amx_bf16": "amx_bf16",
}
_ARM = {
    "neon": "asimd",
    "dot_product": "asimddp",  # int8 products
    "i8mm": "i8mm",  # int8 matrix products
    "fp16": "asimdhp",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}


def read_environment() -> Environment:
    """Return this machine and its software; unreadable fields are None, or empty.

    Never raises, and holds no user name, host name, path or serial number: the result is meant to
    be published with the numbers.
    """
    flags = _common_flags(read_text("/proc/cpuinfo"))
    ram_limit = read_text("/sys/fs/cgroup/memory.max").strip()
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
        cpu_features=tuple(name for name in _CPU_FEATURES if name in flags),
        cpu_limit=_cpu_limit(),
        ram_limit_bytes=int(ram_limit) if ram_limit.isdecimal() else None,
    )


def _system() -> str:
    # Only the numbers of a release: its builder may have added a name.
    release = re.match(r"[\d.]*", platform.release())
    return f"{platform.system()} {release[0] if release else ''}".strip()


def _cpu_model() -> str | None:
    # On x86 the first; on Arm boards the device tree names the board, which says more than the
    # core's part number does.
    if match := re.search(r"^model name[ \t]*:[ \t]*(.*\S)", read_text("/proc/cpuinfo"), re.M):
        return match[1]
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


def read_cpu_features() -> Mapping[str, bool]:
    """Return the presence of each by name; empty where it is unknown (not Linux)."""
    names = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}.get(
        platform.machine().lower()
    )
    common = _common_flags(read_text("/proc/cpuinfo"))
    if names is None or not common:
        return {}
    return {name: flag in common for name, flag in names.items()}


def _common_flags(cpuinfo: str) -> frozenset[str]:
    """Return the flags that all CPUs have in Linux's description.

    "flags" on x86, "Features" on ARM; big and little cores of one chip run the same code.
    """
    lines = re.findall(r"^(?:flags|Features)[ \t]*:(.*)", cpuinfo, re.M)
    cores = [frozenset(line.split()) for line in lines]
    return frozenset.intersection(*cores) if cores else frozenset()


def _cpu_limit() -> float | None:
    """Return a container's limit on CPU time, in CPUs: "quota period", both in microseconds."""
    match read_text("/sys/fs/cgroup/cpu.max").split():
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            return int(quota) / int(period)
    return None


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
