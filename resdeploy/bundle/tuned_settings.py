"""Settings in a bundle for this kind of machine, as `tune` found them."""

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
    """Return the model file and session for this machine: the defaults if nothing was tuned."""
    # Reading the environment starts the GPU's own tool: only if there are settings.
    if bundle.manifest.tuned:
        settings = settings_for(bundle.manifest, read_environment(), batch_size=batch_size)
        if settings is not None:
            return bundle.path / settings.model, settings.session
    return bundle.model, SessionSpec()


def target_of(environment: Environment) -> TunedTarget:
    """Return the kind of this machine, with the version of the loaded runtime."""
    names = ("machine", "cpu_model", "num_cpus_allowed", "gpu_names")
    kind = {name: getattr(environment, name) for name in names}
    return TunedTarget(**kind, runtime_version=onnxruntime.__version__)


def settings_for(
    manifest: Manifest, environment: Environment, *, batch_size: int | None = None
) -> TunedSettings | None:
    """Return the last settings for such a machine and this runtime.

    Settings for latency come before the rest; None for `batch_size` is any.
    """
    here = target_of(environment)
    found = [
        one for one in manifest.tuned if one.target == here and batch_size in (None, one.batch_size)
    ]
    by_latency = [one for one in found if one.objective == "latency"] or found
    return by_latency[-1] if by_latency else None
