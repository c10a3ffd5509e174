"""What the operating system and the GPU's driver say of the machine, as text; "" if nothing."""

import subprocess
from pathlib import Path

__all__ = ["nvidia_smi", "read_text"]

# A driver that hangs must not hang the benchmark.
_NVIDIA_SMI_TIMEOUT_S = 10


def read_text(path: str | Path) -> str:
    """Return what a file of the system says."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


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
