"""Instruction sets of this CPU that decide the speed of a network."""

import platform
from collections.abc import Mapping

from resdeploy.machine.system import read_text

__all__ = ["common_flags", "read_cpu_features"]

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


def read_cpu_features() -> Mapping[str, bool]:
    """Return the presence of each by name; empty where it is unknown (not Linux)."""
    names = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}.get(
        platform.machine().lower()
    )
    common = common_flags(read_text("/proc/cpuinfo"))
    if names is None or not common:
        return {}
    return {name: flag in common for name, flag in names.items()}


def common_flags(cpuinfo: str) -> frozenset[str]:
    """Return the flags that all CPUs have in Linux's description.

    "flags" on x86, "Features" on ARM; big and little cores of one chip run the same code.
    """
    cores = [
        frozenset(value.split())
        for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())
        if key.strip() in ("flags", "Features")
    ]
    return frozenset.intersection(*cores) if cores else frozenset()
