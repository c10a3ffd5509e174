"""The settings in a bundle that are for this machine, if `tune` was run on one like it."""

from pathlib import Path

from resdeploy.bundle.folder import BundleFolder
from resdeploy.machine.environment import read_environment
from resdeploy.schema.bundles import Manifest
from resdeploy.schema.machines import Environment
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.tunings import TunedSettings, TunedTarget
from resdeploy.session.runtime import onnxruntime

__all__ = ["fastest_way", "settings_for", "target_of"]


def fastest_way(bundle: BundleFolder, *, batch_size: int | None = None) -> tuple[Path, SessionSpec]:
    """Return the file to open on this machine, and how: the defaults where nothing was tuned."""
    # The machine is looked at, which starts the GPU's own tool, only if it matters.
    settings = (
        settings_for(bundle.manifest, read_environment(), batch_size=batch_size)
        if bundle.manifest.tuned
        else None
    )
    if settings is None:
        return bundle.model, SessionSpec()
    return bundle.path / settings.model, settings.session


def target_of(environment: Environment) -> TunedTarget:
    """Return the kind of machine that this is, with the runtime that is loaded."""
    return TunedTarget(
        machine=environment.machine,
        cpu_model=environment.cpu_model,
        num_cpus_allowed=environment.num_cpus_allowed,
        gpu_names=environment.gpu_names,
        runtime_version=onnxruntime.__version__,
    )


def settings_for(
    manifest: Manifest, environment: Environment, *, batch_size: int | None = None
) -> TunedSettings | None:
    """Return the settings that were found last on such a machine, with this runtime.

    What was tuned for latency comes before the rest.

    Args:
        manifest: of the bundle.
        environment: of this machine.
        batch_size: only settings that were found with so many samples a run; None for any.
    """
    here = target_of(environment)
    found = [
        one for one in manifest.tuned if one.target == here and batch_size in (None, one.batch_size)
    ]
    by_latency = [one for one in found if one.objective == "latency"] or found
    return by_latency[-1] if by_latency else None
