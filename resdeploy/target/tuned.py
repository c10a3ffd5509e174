"""The settings in a bundle that are for this machine, if `tune` was run on one like it."""

from resdeploy.schema import Environment, Manifest, TunedSettings
from resdeploy.target.runtime import onnxruntime

__all__ = ["settings_for"]


def settings_for(
    manifest: Manifest, environment: Environment, *, batch_size: int = 1
) -> TunedSettings | None:
    """Return the last settings that were found on such a machine, with this runtime.

    The same processor with as many CPUs allowed, the same GPUs, the same ONNX Runtime: a thread
    more or another kernel, and the fastest way may be another one. Those that were tuned for this
    batch size come first, and of those what was tuned for latency.
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
        if here
        == (
            one.machine,
            one.cpu_model,
            one.num_cpus_allowed,
            one.gpu_names,
            one.runtime_version,
        )
    ]
    preferred = [one for one in found if one.batch_size == batch_size] or found
    by_latency = [one for one in preferred if one.objective == "latency"] or preferred
    return by_latency[-1] if by_latency else None
