"""Readings of the operating system, the GPU's driver and the installed packages."""

import importlib.metadata
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["installed_packages", "load_average", "nvidia_smi", "read_text"]

# A driver that hangs must not hang the benchmark.
_NVIDIA_SMI_TIMEOUT_S = 10


def read_text(path: str | Path) -> str:
    """Return the text of a file of the system; "" if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def load_average() -> float | None:
    """Return the number of runnable threads, averaged over a minute; None if unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # AttributeError: Windows has none
        return None


def nvidia_smi(*arguments: str) -> str:
    """Return the output of the driver's own tool; "" if it fails."""
    try:
        return subprocess.run(
            ["nvidia-smi", *arguments],
            capture_output=True,
            check=True,
            text=True,
            errors="replace",
            timeout=_NVIDIA_SMI_TIMEOUT_S,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def installed_packages() -> Iterator[tuple[str, importlib.metadata.Distribution]]:
    """Yield the distributions by name, lower case with hyphens, without those that are broken."""
    for distribution in importlib.metadata.distributions():
        try:
            # get_all, as the answer for a missing key otherwise changes between Python versions.
            names = distribution.metadata.get_all("Name", [])
        except (OSError, ValueError):
            continue
        for name in names[:1]:
            yield name.lower().replace("_", "-"), distribution
