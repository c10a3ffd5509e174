"""Probe of this machine: the runtime, the providers that really start, the CPU's features.

The providers that a runtime lists are those it was built with. Here a tiny model is opened on each
and run once, so that a missing library, driver or device shows, by name.
"""

import base64
from collections.abc import Callable

import numpy as np

from resdeploy.errors import EnvironmentLacksError, ReportedError
from resdeploy.machine.environment import read_cpu_features, read_environment
from resdeploy.machine.system import installed_packages
from resdeploy.schema.machines import ProbeReport, ProviderProbe
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.providers import PROVIDERS, Provider
from resdeploy.session.runtime import captured_output, onnxruntime, runtime_distribution
from resdeploy.session.session import open_session

__all__ = ["TINY_MODEL", "probe", "probe_provider", "starting_providers"]

# y = Relu(Conv(x, w)) on float32 (1, 1, 4, 4), w = 1: IR version 7 and opset 13, which every
# runtime reads. A convolution, because cuDNN is looked for only at the first of them.
TINY_MODEL = base64.b64decode(
    "CAc6eAoRCgF4CgF3EgFjIgRDb252OgAKDgoBYxIBeSIEUmVsdToAEgR0aW55KhMIAQgBCAEIARABIgQA"
    "AIA/QgF3WhsKAXgSFgoUCAESEAoCCAEKAggBCgIIBAoCCARiGwoBeRIWChQIARIQCgIIAQoCCAEKAggE"
    "CgIIBEIECgAQDQ=="
)

_INPUT = np.arange(-8, 8, dtype=np.float32).reshape(1, 1, 4, 4)


def _names(is_meant: Callable[[Provider], object]) -> str:
    return ", ".join(provider.name for provider in PROVIDERS.values() if is_meant(provider))


# Functions that an older runtime lacks, with their first version.
_NEEDED = (
    ("get_provider_graph_assignment_info", "1.24", "the record of which node is on which provider"),
    (
        "register_execution_provider_library",
        "1.23",
        f"providers that are plugins ({_names(lambda one: one.plugin)})",
    ),
    (
        "preload_dlls",
        "1.21",
        f"loading CUDA's libraries from Python packages ({_names(lambda one: one.on_nvidia)})",
    ),
)


def probe() -> ProbeReport:
    """Return the runtime and the providers of this machine.

    Raises:
        EnvironmentLacksError: there is no runtime, or two that overwrite each other.
    """
    runtime = runtime_distribution()
    available = tuple(onnxruntime.get_available_providers())
    ours = {provider.ort_name for provider in PROVIDERS.values()}
    return ProbeReport(
        environment=read_environment(),
        runtime=runtime,
        runtime_version=onnxruntime.__version__,
        available_providers=available,
        providers=(
            *(probe_provider(provider) for provider in PROVIDERS.values()),
            *(_probe_other(name) for name in available if name not in ours),
        ),
        plugins=_plugins(),
        cpu_features=read_cpu_features(),
        lacks=tuple(
            f"{what} (from {since} on)"
            for name, since, what in _NEEDED
            if not hasattr(onnxruntime, name) and not hasattr(onnxruntime.InferenceSession, name)
        ),
    )


def probe_provider(provider: Provider) -> ProviderProbe:
    """Return the result of a tiny model on a provider of resdeploy's table."""
    why_not: ReportedError | None = None
    try:
        with captured_output():
            session = open_session(TINY_MODEL, SessionSpec(provider=provider.name))
            (found,) = session.run({"x": _INPUT}).values()
        if not np.array_equal(found, np.maximum(_INPUT, 0)):
            why_not = EnvironmentLacksError(
                f"{provider.ort_name} starts, and computes something else than it should.",
                fix="do not use it here; verify says more about a model of yours",
            )
    except ReportedError as error:
        why_not = error
    return ProviderProbe(
        provider=provider.name,
        ort_name=provider.ort_name,
        starts=why_not is None,
        why_not=None if why_not is None else why_not.what,
        fix=None if why_not is None else why_not.fix,
    )


def starting_providers() -> tuple[str, ...]:
    """Return the short names of the providers that really start here, in the table's order."""
    return tuple(name for name, provider in PROVIDERS.items() if probe_provider(provider).starts)


def _probe_other(ort_name: str) -> ProviderProbe:
    """Return the result of the tiny model on a provider without settings here."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    why_not: str | None = "its session runs on another provider"
    with captured_output():
        try:
            session = onnxruntime.InferenceSession(
                TINY_MODEL, options, providers=[ort_name], enable_fallback=0
            )
            if session.get_providers()[0] == ort_name:
                session.run(None, {"x": _INPUT})
                why_not = None
        except Exception:  # the runtime's errors have no common base
            why_not = "it did not start, or does not take a convolution"
    return ProviderProbe(
        provider=ort_name, ort_name=ort_name, starts=why_not is None, why_not=why_not
    )


def _plugins() -> dict[str, str]:
    found = {
        name: distribution.version
        for name, distribution in installed_packages()
        if name.startswith("onnxruntime-ep-") or name == "onnxruntime-qnn"
    }
    return dict(sorted(found.items()))
