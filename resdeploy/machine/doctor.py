"""Examination of an installation: its faults, each with a fix.

Nothing here imports the runtime at module level, as it may be damaged. It is first imported in a
process of its own, since a wheel for another CPU ends the process with a signal.
"""

import base64
import hashlib
import importlib.metadata
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from resdeploy.errors import ReportedError
from resdeploy.extras import install_extra
from resdeploy.machine.system import installed_packages
from resdeploy.schema.machines import DoctorReport, Finding
from resdeploy.session.providers import Provider, find_provider

__all__ = ["OLDEST_RUNTIME", "examine"]

OLDEST_RUNTIME = (1, 18)
_OLDEST_PYTHON = (3, 11)

# Packages that put their files into the one folder `onnxruntime/`.
_RUNTIME = re.compile(
    r"onnxruntime(-(gpu|openvino|directml|windowsml|training|rocm|migraphx|cann|azure))?$"
)
_IMPORT_TIMEOUT_S = 120


def examine(providers: Sequence[str] = ("cpu",)) -> DoctorReport:
    """Return the findings on this machine, which has to start these providers; nothing is changed.

    Raises:
        ResdeployError: there is no provider of such a name.
    """
    asked = [find_provider(name) for name in providers]
    findings = [_python(), *_packages(), _temporary_folder()]
    runtime = list(_runtime())
    findings += runtime
    if all(finding.verdict != "fault" for finding in runtime):
        findings += _providers(asked)
    else:
        findings += [
            _fault(provider.name, "not tried: the runtime is not in order", "see above")
            for provider in asked
        ]
    return DoctorReport(providers=tuple(providers), findings=tuple(findings))


# --- Python and its packages ---------------------------------------------------------------------


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return _fault("python", f"{version} is too old", "install Python 3.11 or newer")
    return _ok("python", version)


def _packages() -> Iterator[Finding]:
    """Yield a finding for each package that resdeploy itself needs, by its own metadata."""
    try:
        requirements = importlib.metadata.requires("resdeploy") or []
    except importlib.metadata.PackageNotFoundError:
        yield _remark(
            "resdeploy",
            "it runs from a folder and is not installed, so that its needs are unknown",
            install_extra("cpu"),
        )
        return
    for requirement in requirements:
        # The others belong to extras.
        if match := re.match(r"([\w.-]+)\s*>=\s*([\d.]+)\s*$", requirement):
            yield _package(match[1], match[2])


def _package(name: str, oldest: str) -> Finding:
    fix = f'pip install -U "{name}>={oldest}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _fault(name, "it is not installed", fix)
    if _numbers(version) < _numbers(oldest):
        return _fault(name, f"{version} is too old: {oldest} is the oldest that works", fix)
    return _ok(name, version)


def _temporary_folder() -> Finding:
    subject = "temporary folder"
    fix = "set TMPDIR to a folder that you may write to, with some space left"
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"resdeploy")
    except OSError as error:
        return _fault(subject, f"it cannot be written to: {error.strerror or error}", fix)
    return _ok(subject, "it can be written to")


# --- the runtime ---------------------------------------------------------------------------------


def _runtime() -> Iterator[Finding]:
    """Yield the findings on ONNX Runtime, up to the first fault."""
    found, hidden = _installed_runtimes()
    for distribution in hidden:
        yield _remark(
            "runtime",
            f"{distribution.name} {distribution.version} stands later on the search path, "
            "and is not the one imported",
        )
    if len(found) > 1:
        names = " and ".join(sorted(found))
        yield _fault(
            "runtime",
            f"{names} are installed together, and overwrite each other's files",
            f"pip uninstall -y {' '.join(sorted(found))}, then install one of them",
        )
        return
    for name, distribution in found.items():
        yield from _wheel(name, distribution)
    if (failure := _import_failure()) is not None:
        yield failure
    elif not found:
        yield _remark(
            "runtime",
            "onnxruntime can be imported, and no installed package owns it",
            "if that is not your own build: pip install --force-reinstall onnxruntime",
        )


def _installed_runtimes() -> tuple[
    dict[str, importlib.metadata.Distribution], list[importlib.metadata.Distribution]
]:
    """Return the runtimes of the first folder that has one, by name, and those of later folders.

    In one folder they overwrite each other; a later one is only hidden, as the runtime of a machine
    is by one carried along in PYTHONPATH.
    """
    found: dict[Path, dict[str, importlib.metadata.Distribution]] = {}
    for name, distribution in installed_packages():
        if _RUNTIME.match(name):
            folder = Path(str(distribution.locate_file(""))).resolve()
            found.setdefault(folder, {}).setdefault(name, distribution)
    used, *others = found.values() or ({},)
    return used, [distribution for other in others for distribution in other.values()]


def _wheel(name: str, distribution: importlib.metadata.Distribution) -> Iterator[Finding]:
    version = distribution.version
    title = f"{name} {version}"
    if _numbers(version) < OLDEST_RUNTIME:
        oldest = ".".join(map(str, OLDEST_RUNTIME))
        yield _fault(
            "runtime",
            f"{title} is too old: {oldest} is the oldest that works",
            f'pip install -U "{name}>={oldest}"',
        )
        return
    if (damaged := _first_damage(distribution)) is not None:
        yield _fault(
            "runtime",
            f"{title} is damaged: {damaged}",
            f"pip install --force-reinstall --no-deps {name}=={version}",
        )
        return
    yield _ok("runtime", f"{title}, every file as it was packed")
    if _numbers(version) < (1, 24):
        yield _remark(
            "runtime",
            f"{title} cannot say in advance which node runs where; it is proven by a profile",
            f'where you can choose: pip install -U "{name}>=1.24"',
        )


def _first_damage(distribution: importlib.metadata.Distribution) -> str | None:
    """Return the fault of the first file that differs from the wheel's record."""
    for file in distribution.files or ():
        if file.hash is None or file.hash.mode != "sha256":  # compiled afterwards, or the record
            continue
        path = Path(str(distribution.locate_file(file)))
        try:
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").digest()
        except OSError as error:
            return f"{file}: {error.strerror}"
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            return f"{file} was changed"
    return None


def _import_failure() -> Finding | None:
    """Return the failure of the runtime's import in another process; None if it succeeds."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", "import onnxruntime; onnxruntime.InferenceSession"],
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            timeout=_IMPORT_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return _fault("runtime", "its import does not come to an end", "install it anew")
    if run.returncode == 0:
        return None
    last = (run.stderr.strip().splitlines() or [""])[-1]
    if run.returncode < 0:
        name = signal.Signals(-run.returncode).name
        return _fault(
            "runtime",
            f"its import ends the process ({name}): the wheel is not for this CPU",
            "install another version of it, or a build for this board",
        )
    if "No module named 'onnxruntime'" in last:
        return _fault("runtime", "onnxruntime is not installed", "pip install onnxruntime")
    if "NumPy 1.x" in run.stderr or "numpy.core.multiarray" in run.stderr:
        return _fault(
            "runtime",
            "it was built for NumPy 1 and cannot work with the NumPy that is installed",
            'pip install "numpy<2", or onnxruntime 1.19 or newer',
        )
    return _fault(
        "runtime",
        f"it cannot be imported: {last}",
        "uninstall every package whose name begins with onnxruntime, then install one",
    )


# --- providers -----------------------------------------------------------------------------------


def _providers(asked: Sequence[Provider]) -> Iterator[Finding]:
    from resdeploy.machine.probe import probe_provider  # noqa: PLC0415 - imports the runtime

    for provider in asked:
        try:
            probed = probe_provider(provider)
        except ReportedError as error:
            yield _fault(provider.name, error.what, error.fix)
            continue
        if probed.starts:
            yield _ok(provider.name, f"{provider.ort_name} starts, and computes")
        else:
            yield _fault(provider.name, probed.why_not or "it does not start", probed.fix)


def _ok(subject: str, what: str) -> Finding:
    return Finding(subject=subject, verdict="ok", what=what)


def _remark(subject: str, what: str, fix: str | None = None) -> Finding:
    return Finding(subject=subject, verdict="remark", what=what, fix=fix)


def _fault(subject: str, what: str, fix: str | None) -> Finding:
    return Finding(subject=subject, verdict="fault", what=what, fix=fix)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
