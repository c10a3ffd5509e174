"""Diagnosis of a failed session: ONNX Runtime's messages as errors of resdeploy.

Its messages carry codes, paths of the machine it was built on and C++ signatures, and name the one
missing library, if at all, in a log.
"""

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resdeploy.errors import ProviderError, ResdeployError
from resdeploy.schema.sessions import SessionInfo
from resdeploy.session.providers import Provider, find_provider
from resdeploy.session.runtime import ORT_ERRORS, cuda_version, ort_state, runtime_title

__all__ = [
    "model_error",
    "not_started_error",
    "operator_error",
    "plain_text",
    "reinstall",
    "run_errors",
    "stray_nodes_error",
]

_NVIDIA_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
# Its first branch that runs each CUDA major version.
_DRIVER_BRANCHES = {"12": "R525", "13": "R580"}


@contextmanager
def run_errors(info: SessionInfo) -> Iterator[None]:
    """Translate the exceptions of a running session.

    Raises:
        ResdeployError: the inputs are not those of the model.
        ProviderError: the provider failed while it ran.
    """
    try:
        yield
    except (ValueError, ort_state.InvalidArgument) as error:
        raise ResdeployError(
            f"The model does not take these inputs: {plain_text(error)}",
            fix="give float32 arrays of the shapes that the model states",
        ) from error
    except ORT_ERRORS as error:
        provider = find_provider(info.spec.provider)
        text = str(error)
        missing = _missing_library(text)
        if "cudnn" in text.lower() and isinstance(error, ort_state.NotImplemented):
            missing = missing or "cuDNN"
        why = plain_text(error) if missing is None else f"{missing} is missing."
        what = f"{provider.ort_name} failed while it ran: {why}"
        fix = None if missing is None else provider.install
        if "no kernel image" in text.lower() or "NoKernelImageForDevice" in text:
            what = "This onnxruntime holds no code for this model of GPU."
            fix = "use a build of onnxruntime for this GPU, or another provider"
        raise ProviderError(
            what, where=f"{info.runtime} {info.runtime_version}", fix=fix
        ) from error


def not_onnx_error(where: str | None = None) -> ResdeployError:
    """Return the error for bytes that are no model."""
    fix = "give a .onnx file, whole and unchanged"
    return ResdeployError("This is not an ONNX model.", where=where, fix=fix)


def model_error(error: Exception, runtime: str) -> ResdeployError | None:
    """Return the fault of the model; None if the error is not about the model."""
    text = str(error)
    if isinstance(error, ort_state.InvalidProtobuf | ort_state.NoModel) or "No graph was" in text:
        return not_onnx_error()
    if match := re.search(r"IR version: (\d+), max supported IR version: (\d+)", text):
        return ResdeployError(
            f"The model has ONNX IR version {match[1]}; this runtime reads up to {match[2]}.",
            fix=f"pip install -U {runtime}, or export for an older runtime",
        )
    beyond = r"Opset (\d+) is under development.*? domain (\S+) is till(?: opset (\d+))?"
    if match := re.search(beyond, text, re.S):
        return ResdeployError(
            f"The model has opset {match[1]} of {match[2]}; this runtime knows up to "
            f"{match[3] or 'an older one'}.",
            fix=f"pip install -U {runtime}, or export with a lower --opset",
        )
    if "xternal data" in text or "external_data" in text:
        found = re.search(r'does not exist: "([^"]+)"', text)
        file = f" {Path(found[1]).name!r}" if found else ""
        return ResdeployError(
            f"The file{file} with the model's weights is missing, or not as the model says.",
            fix="keep the weight file in the folder of the model, under the name it was saved with",
        )
    if isinstance(error, ort_state.InvalidGraph | ort_state.NoSuchFile):
        return ResdeployError(f"ONNX Runtime cannot read this model: {plain_text(error)}")
    return None


def operator_error(error: Exception, provider: Provider, runtime: str) -> ProviderError | None:
    """Return the error for an operator without a kernel here; None if that is not the case."""
    text = str(error)
    if match := re.search(r"implementation for (\w+)\((-?\d+)\) node with name '(.*?)'", text):
        at = f" (node {match[3]!r})" if match[3] else ""
        return ProviderError(
            f"{provider.ort_name} has no kernel for {match[1]} of opset {match[2]} on the types "
            f"that this model gives it{at}.",
            where=runtime_title(runtime),
            fix=f"export in float32 (resdeploy export), pip install -U {runtime}, "
            "or use another provider",
        )
    if match := re.search(r"([\w.]+):(\w+)\(-?\d+\) is not a registered function/op", text):
        return ProviderError(
            f"This onnxruntime has no operator {match[2]} of the domain {match[1]}.",
            where=runtime_title(runtime),
            fix=f"export the model without it, or pip install -U {runtime}",
        )
    return None


def stray_nodes_error(stray: list[str], provider: Provider) -> ProviderError:
    """Return the error for nodes that another provider would run; `stray` names them."""
    shown = ", ".join(stray[:5]) + (f" and {len(stray) - 5} more" if len(stray) > 5 else "")
    return ProviderError(
        f"{provider.ort_name} cannot run every node of this model: "
        f"{shown or 'this onnxruntime is too old to say which'}.",
        fix="simplify the model (resdeploy export), or use another provider",
    )


def not_started_error(
    error: Exception, provider: Provider, runtime: str, output: str
) -> ProviderError:
    """Return the error for a provider that did not start, with the missing libraries.

    They follow from the exception and the prints of the runtime, or from the loader.
    """
    library = _missing_library(f"{output}\n{error}") or _missing_library(_load_failure(provider))
    driver = _NVIDIA_DRIVERS.get(sys.platform) if provider.on_nvidia else None
    causes, fixes = [], []
    if library is not None and library != driver:
        causes.append(f"{library} is missing")
        fixes.append(provider.install)
    if driver is not None and _loader_error(driver):
        causes.append(f"the NVIDIA driver ({driver}) is missing")
        fixes.insert(0, f"install {_driver_wanted()}")
    if not causes:
        causes.append(plain_text(error))
        fixes.append(
            f"check the device, and that it has {_driver_wanted()}"
            if provider.on_nvidia
            else f"install it anew: {provider.install}"
        )
    return ProviderError(
        f"{provider.ort_name} did not start: {', and '.join(causes)}.",
        where=runtime_title(runtime),
        fix=", then ".join(fixes),
    )


def _missing_library(text: str) -> str | None:
    """Return the file name of the missing library in a loader's message."""
    match = re.search(r"([\w.+-]+\.so[.\d]*): cannot open shared object file", text)
    match = match or re.search(r'depends on "([\w.+-]+\.dll)" which is missing', text)
    return match[1] if match else None


def _load_failure(provider: Provider) -> str:
    """Return the loader's message for the provider's own library; "" if it loads."""
    if provider.library is None:
        return ""
    name = f"{provider.library}.dll" if sys.platform == "win32" else f"lib{provider.library}.so"
    return _loader_error(str(Path(ort_state.__file__).with_name(name)))


def _loader_error(library: str) -> str:
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return ""


def _driver_wanted() -> str:
    cuda_major = cuda_version().partition(".")[0]
    branch = _DRIVER_BRANCHES.get(cuda_major)
    return "the NVIDIA driver" + (f", {branch} or newer for CUDA {cuda_major}" if branch else "")


def plain_text(error: Exception) -> str:
    """Return a message of ONNX Runtime without its codes, source paths and C++ signatures."""
    # These go on with the name of the host.
    if match := re.search(r"CUDA failure \d+: [^;]+", str(error)):
        return match[0].strip()
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"^\S+\.(?:cc|h|cpp):\d+ .*?\)(?: const)? (?=[A-Z])", "", text, flags=re.S)
    return " ".join(text.split())


def reinstall(provider: Provider, runtime: str) -> str:
    """Return the commands that replace the installed runtime by one with `provider`."""
    # Installing a second runtime over the first is the accident that runtime_distribution finds.
    return f"pip uninstall -y {runtime}, then {provider.install}"
