"""The extras of the package, and the command that installs one: from here, as no index has it."""

import re
from pathlib import Path

__all__ = ["install_extra", "packages_of"]


def install_extra(extra: str) -> str:
    """Return the command for pip: of this checkout, or of the packages that the extra names."""
    from importlib.metadata import PackageNotFoundError, requires  # noqa: PLC0415 - for errors only

    checkout = Path(__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f'pip install -e "{checkout}[{extra}]"'
    try:
        packages = packages_of(extra, requires("resdeploy") or [])
    except PackageNotFoundError:  # a folder of files
        return f"install the wheel of resdeploy, with its extra {extra}"
    return f"pip install {' '.join(packages)}"


def packages_of(extra: str, requirements: list[str]) -> list[str]:
    """Return the requirements of an extra, quoted, with those of the extras that it includes.

    `requirements` are the lines of the metadata: `onnxruntime>=1.18; extra == "cpu"`.
    """
    found = []
    for line in requirements:
        requirement, _, marker = line.partition(";")
        if not re.search(rf"extra\s*==\s*['\"]{extra}['\"]", marker):
            continue
        if included := re.fullmatch(r"resdeploy\[(\w+)\]", requirement.strip()):
            found += packages_of(included[1], requirements)
        else:
            found.append(f'"{requirement.strip()}"')
    return found
