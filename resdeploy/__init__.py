"""From a trained ResNet to a model you can prove on the device.

The library, one function for each thing to do: `import resdeploy` costs a millisecond, and a name
brings what it needs when it is first used, torch only where a network is.

ONNX Runtime reads `ORT_DISABLE_TELEMETRY` once, at its import. It is set here, whatever it was:
every module of resdeploy runs after this one, and child processes inherit it.
"""

import os
import sys

# Type checkers take this for True; importing it would take eight times as long as all the rest.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from resdeploy.api.bench import bench
    from resdeploy.api.bundle import Bundle, bundle
    from resdeploy.api.check import check
    from resdeploy.api.evaluate import evaluate
    from resdeploy.api.export import export
    from resdeploy.api.fold import fold_batchnorm
    from resdeploy.api.load import load
    from resdeploy.api.predict import predict
    from resdeploy.api.quantize import quantize
    from resdeploy.api.ship import ship
    from resdeploy.api.train import train
    from resdeploy.api.tune import tune
    from resdeploy.api.verify import verify
    from resdeploy.errors import (
        BundleError,
        EnvironmentLacksError,
        MissingExtraError,
        ProviderError,
        ReportedError,
        ResdeployError,
        UnsupportedModelError,
    )
    from resdeploy.export.source import SourceModel as Model
    from resdeploy.schema.sessions import SessionSpec

__all__ = [
    "Bundle",
    "BundleError",
    "EnvironmentLacksError",
    "MissingExtraError",
    "Model",
    "ProviderError",
    "ReportedError",
    "ResdeployError",
    "SessionSpec",
    "UnsupportedModelError",
    "__version__",
    "bench",
    "bundle",
    "check",
    "evaluate",
    "export",
    "fold_batchnorm",
    "load",
    "predict",
    "quantize",
    "ship",
    "train",
    "tune",
    "verify",
]

__version__ = "0.1.0"

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# Where a name is, if not under its own name in `errors` or `api`.
_ELSEWHERE = {
    "Bundle": ("api.bundle", "Bundle"),
    "Model": ("export.source", "SourceModel"),
    "SessionSpec": ("schema.sessions", "SessionSpec"),
    "fold_batchnorm": ("api.fold", "fold_batchnorm"),
}


# Not for type checkers, which would then believe in every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 - an import of nothing else needs it

        room = "errors" if name.endswith("Error") else f"api.{name}"
        room, name_there = _ELSEWHERE.get(name, (room, name))
        value: object = getattr(import_module(f"{__name__}.{room}"), name_there)
        globals()[name] = value  # the next use finds it at once
        return value


class _Library(type(sys)):  # type: ignore[misc]
    """The package, whose verbs are not replaced by the rooms of the same names.

    The import system binds a submodule in its package: `resdeploy/export/`, once imported, would be
    `resdeploy.export`. `from resdeploy.export import …` finds the room in `sys.modules` still.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, type(sys))):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Library


def __dir__() -> list[str]:
    return sorted(__all__)
