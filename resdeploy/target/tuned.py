"""The settings in a bundle that are for this machine, if `tune` was run on one like it."""

from pathlib import Path

from resdeploy.bundle import Bundle
from resdeploy.schema.bundles import Manifest
from resdeploy.schema.machines import Environment
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.tunings import TunedSettings
from resdeploy.target.environment import read_environment
from resdeploy.target.runtime import onnxruntime

__all__ = ["fastest_way", "settings_for"]


def fastest_way(bundle: Bundle, *, batch_size: int | None = None) -> tuple[Path, SessionSpec]:
    """Return the file to open on this machine, and how: the defaults where nothing was tuned."""
    settings = settings_for(bundle.manifest, read_environment(), batch_size=batch_size)
    if settings is None:
        return bundle.model, SessionSpec()
    return bundle.path / settings.model, settings.session


def settings_for(
    manifest: Manifest, environment: Environment, *, batch_size: int | None = None
) -> TunedSettings | None:
    """Return the settings that were found last on such a machine, with this runtime.

    The same processor with as many CPUs allowed, the same GPUs, the same ONNX Runtime: a thread
    more or another kernel, and the fastest way may be another one. What was tuned for latency comes
    before the rest.

    Args:
        manifest: of the bundle.
        environment: of this machine.
        batch_size: only settings that were found with so many samples a run; None for any.
    """
    here = (
        environment.machine,
        environment.cpu_model,
        environment.num_cpus_allowed,
        environment.gpu_names,
        onnxruntime.__version__,
    )
    found = [
        one
        for one in manifest.tuned
        if batch_size in (None, one.batch_size)
        and here
        == (
            one.machine,
            one.cpu_model,
            one.num_cpus_allowed,
            one.gpu_names,
            one.runtime_version,
        )
    ]
    by_latency = [one for one in found if one.objective == "latency"] or found
    return by_latency[-1] if by_latency else None
