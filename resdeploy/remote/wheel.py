"""The running resdeploy as a wheel, for a device to install.

The package is pure Python, so its own files are packed, in one form (sorted, stored, one date): the
same files give the same bytes, and a device recognises a wheel that it has already.
"""

import base64
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import resdeploy
from resdeploy.recipe import zoo_directory

__all__ = ["write_wheel"]

_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
_WHEEL = "Wheel-Version: 1.0\nGenerator: resdeploy\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_COMMANDS = "[console_scripts]\nresdeploy = resdeploy.cli:main\n"


def write_wheel(folder: Path) -> Path:
    """Write the wheel of the resdeploy that is running into `folder`, and return its path."""
    name = f"resdeploy-{resdeploy.__version__}"
    about = f"{name}.dist-info"
    members = dict(sorted(_package_files()))
    members[f"{about}/METADATA"] = _metadata().encode()
    members[f"{about}/WHEEL"] = _WHEEL.encode()
    members[f"{about}/entry_points.txt"] = _COMMANDS.encode()
    members[f"{about}/RECORD"] = _record(members, f"{about}/RECORD").encode()
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            info = zipfile.ZipInfo(member, date_time=_DATE)
            info.create_system = 3  # Unix, so that the mode counts, wherever this is made
            info.external_attr = 0o100644 << 16
            archive.writestr(info, content)
    return path


def _package_files() -> Iterator[tuple[str, bytes]]:
    package = Path(resdeploy.__file__).parent
    for path in package.rglob("*"):
        if path.suffix == ".py" or path.name == "py.typed":
            yield f"resdeploy/{path.relative_to(package).as_posix()}", path.read_bytes()
    models = zoo_directory()
    for path in models.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            yield f"resdeploy/models/{path.relative_to(models).as_posix()}", path.read_bytes()


def _metadata() -> str:
    """Return the metadata for pip: name, version, and the requirements of each extra."""
    installed = importlib.metadata.metadata("resdeploy")
    lines = ["Metadata-Version: 2.1", "Name: resdeploy", f"Version: {resdeploy.__version__}"]
    for key in ("Requires-Python", "Requires-Dist", "Provides-Extra"):
        lines += [f"{key}: {value}" for value in sorted(installed.get_all(key, []))]
    return "\n".join(lines) + "\n"


def _record(members: dict[str, bytes], itself: str) -> str:
    """Return the list of files that pip checks, which leaves out its own hash."""
    lines = []
    for name, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join([*lines, f"{itself},,\n"])
