"""The one import of ONNX Runtime, and the facts of its installation."""

import importlib.metadata
import importlib.util
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from resdeploy.errors import MissingExtraError, ProviderError


def _built_for_numpy_1() -> ProviderError | None:
    """Return the error for a runtime older than the installed NumPy; None if it is not."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        old = tuple(map(int, re.findall(r"\d+", version)[:2])) < (1, 19)
        if old and int(np.__version__.partition(".")[0]) >= 2:
            return ProviderError(
                f"{name} {version} was built for NumPy 1 and cannot work with {np.__version__}.",
                fix=f'pip install "numpy<2", or pip install -U "{name}>=1.19"',
            )
    return None


try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
except ImportError as _error:
    if isinstance(_error, ModuleNotFoundError) and _error.name == "onnxruntime":
        raise MissingExtraError("onnxruntime", extra="cpu") from _error
    if (_for_numpy_1 := _built_for_numpy_1()) is not None:
        raise _for_numpy_1 from _error
    # The folder is there and its content is not: one of two wheels that shared it was removed.
    raise ProviderError(
        f"The installed onnxruntime is damaged: {_error}.",
        fix="uninstall every package whose name begins with onnxruntime, then install one: "
        "onnxruntime or onnxruntime-gpu",
    ) from _error

__all__ = [
    "ORT_ERRORS",
    "captured_output",
    "cuda_version",
    "onnxruntime",
    "ort_state",
    "preload_libraries",
    "runtime_distribution",
    "runtime_title",
]

# ONNX Runtime's exceptions have no common base but Exception; a provider that finds no device is
# a RuntimeError, a refused option or input a ValueError.
ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(
        value
        for value in vars(ort_state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ),
)

# Distributions that put their files into the one folder `onnxruntime/`. Plugins such as
# onnxruntime-ep-openvino have a folder of their own, and are no trouble.
_RUNTIMES = (
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    *("onnxruntime-windowsml", "onnxruntime-training", "onnxruntime-rocm", "onnxruntime-migraphx"),
)


def runtime_distribution() -> str:
    """Return the name of the installed package that `onnxruntime` comes from.

    Raises:
        ProviderError: there are several; the last one installed has overwritten the others.
    """
    found = tuple(name for name in _RUNTIMES if _is_installed(name))
    if len(found) > 1:
        raise ProviderError(
            f"{' and '.join(found)} are installed together, and overwrite each other's files.",
            fix=f"pip uninstall -y {' '.join(found)}, then install one of them",
        )
    # A runtime built from source may come without the metadata of a package.
    return found[0] if found else "onnxruntime"


def cuda_version() -> str:
    """Return the CUDA version that the runtime was built with; "" if it does not say."""
    try:
        from onnxruntime.capi import build_and_package_info  # noqa: PLC0415 - not in every build
    except ImportError:
        return ""
    return getattr(build_and_package_info, "cuda_version", "") or ""


def runtime_title(runtime: str) -> str:
    """Return the name and the version of the runtime, for messages."""
    return f"{runtime} {onnxruntime.__version__}"


def preload_libraries() -> None:
    """Load the CUDA libraries that were installed as Python packages, where there are any.

    Quiet and best effort: a session may well start without, from libraries of the system.
    """
    nvidia = importlib.util.find_spec("nvidia")
    if nvidia is None and sys.platform != "win32":
        return
    if not hasattr(onnxruntime, "preload_dlls"):  # before 1.21
        return
    onnxruntime.preload_dlls()
    # It searches the runtime's own folder only; packages in another folder of sys.path need a hint,
    # one call for each folder.
    site_packages = Path(onnxruntime.__file__).parent.parent
    for root in map(Path, nvidia.submodule_search_locations or () if nvidia else ()):
        if root.parent == site_packages:
            continue
        for cuda in root.glob("cu[0-9]*"):
            onnxruntime.preload_dlls(cudnn=False, directory=str(cuda / "lib"))
        if (root / "cudnn").is_dir():
            onnxruntime.preload_dlls(cuda=False, directory=str(root / "cudnn" / "lib"))


def _is_installed(distribution: str) -> bool:
    """Test for a distribution whose files are those imported here.

    One in another folder of the search path is only hidden, not overwritten: that is how a GPU
    runtime carried along in PYTHONPATH stands before the CPU runtime of a machine.
    """
    imported = Path(onnxruntime.__file__).parent.resolve()
    return any(
        Path(str(found.locate_file("onnxruntime"))).resolve() == imported
        for found in importlib.metadata.distributions(name=distribution)
    )


@contextmanager
def captured_output() -> Iterator[SimpleNamespace]:
    """Hold back standard output and standard error, of Python and of C, of the whole process.

    The prints are in the result's `text` once the block has ended.
    """
    captured = SimpleNamespace(text="")
    from_python = io.StringIO()
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
        try:
            for descriptor, _ in saved:
                os.dup2(file.fileno(), descriptor)
            # Python's streams may lead elsewhere than to descriptors 1 and 2.
            with redirect_stdout(from_python), redirect_stderr(from_python):
                yield captured
        finally:
            for descriptor, copy in saved:
                os.dup2(copy, descriptor)
                os.close(copy)
            file.seek(0)
            from_c = file.read().decode(errors="replace")
            captured.text = f"{from_python.getvalue()}{from_c}".strip()
