"""Plugins, providers in packages of their own: search, registration, choice of a device.

A few distributions of the runtime have such a provider in themselves; no plugin is needed there.

A plugin is registered once in a process. That it is installed, and even that it loads, does not
mean that it runs here: it may offer no device, as OpenVINO's does on a CPU that is not Intel's.
"""

import importlib
import importlib.util
import platform
from typing import Any

from resdeploy.errors import ProviderError
from resdeploy.session.providers import Provider
from resdeploy.session.runtime import onnxruntime, runtime_title

__all__ = ["comes_as_plugin", "plugin_device", "require_plugin"]

# The first version in which a plugin's session works together with the record of its nodes.
_FIRST_RUNTIME = "1.24"


def comes_as_plugin(provider: Provider) -> bool:
    """Test for a provider that must be a plugin here: it is none of the runtime's own."""
    available = onnxruntime.get_available_providers()
    return bool(provider.plugin) and provider.ort_name not in available


def require_plugin(provider: Provider, runtime: str) -> None:
    """Check, without loading anything, that the plugin and a runtime that takes one are installed.

    Raises:
        ProviderError: one of them is missing.
    """
    if importlib.util.find_spec(provider.plugin) is None:
        raise ProviderError(
            f"{provider.ort_name} is a plugin, and its package "
            f"{provider.plugin.replace('_', '-')} is not installed.",
            where=runtime_title(runtime),
            fix=provider.install,
        )
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise ProviderError(
            "This onnxruntime is too old for providers that are plugins.",
            where=runtime_title(runtime),
            fix=f'pip install -U "{runtime}>={_FIRST_RUNTIME}"',
        )


def plugin_device(provider: Provider, runtime: str) -> Any:
    """Return the first device that the plugin offers, after registering the plugin where need be.

    Raises:
        ProviderError: the plugin offers none on this machine.
        Exception: one of the runtime's own, if the plugin's library does not load.
    """
    devices = _devices(provider)
    if not devices:
        path = _library_path(provider, runtime)
        try:
            onnxruntime.register_execution_provider_library(provider.ort_name, path)
        except Exception as error:
            # By an earlier session, and there is still no device.
            if "already registered" not in str(error):
                raise
        devices = _devices(provider)
    if not devices:
        raise ProviderError(
            f"{provider.ort_name} finds no device that it runs on: this machine has "
            f"{_hardware()}, and it takes {provider.devices} only.",
            where=runtime_title(runtime),
            fix=_other_way(provider, runtime),
        )
    return devices[0]


def _other_way(provider: Provider, runtime: str) -> str:
    cpu = "use another provider on this machine (cpu), or another machine"
    if provider.built_in is None or platform.machine() not in ("x86_64", "AMD64"):
        return cpu
    return (
        f"pip uninstall -y {runtime}, then pip install {provider.built_in}, which has the provider "
        f"in itself and takes any x86-64 CPU; or {cpu}"
    )


def _library_path(provider: Provider, runtime: str) -> str:
    try:
        return str(importlib.import_module(provider.plugin).get_library_path())
    except (ImportError, OSError) as error:
        raise ProviderError(
            f"The package {provider.plugin.replace('_', '-')} is damaged: {error}",
            where=runtime_title(runtime),
            fix=f"install it anew: {provider.install}",
        ) from error


def _devices(provider: Provider) -> list[Any]:
    kind = getattr(onnxruntime.OrtHardwareDeviceType, provider.device_kind)
    return [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name == provider.ort_name and device.device.type == kind
    ]


def _hardware() -> str:
    """Return the vendors of the processors that the runtime sees."""
    vendors = {
        f"{device.device.type.name} of {device.device.vendor or 'an unknown maker'}"
        for device in onnxruntime.get_ep_devices()
    }
    return " and ".join(sorted(f"a {vendor}" for vendor in vendors)) or "no known device"
