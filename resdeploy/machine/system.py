"""What the operating system and the GPU's driver say of the machine, as text; "" if nothing."""

import os
import subprocess
from pathlib import Path

__all__ = ["load_average", "nvidia_smi", "read_text"]

# A driver that hangs must not hang the benchmark.
_NVIDIA_SMI_TIMEOUT_S = 10


def read_text(path: str | Path) -> str:
    """Return what a file of the system says."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def load_average() -> float | None:
    """Return the number of runnable threads, averaged over a minute; None where it is not told."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # AttributeError: Windows has none
        return None


def nvidia_smi(*arguments: str) -> str:
    """Return what the driver's own tool prints."""
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
