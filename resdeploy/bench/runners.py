"""Runners, the runtimes of a benchmark: one table, one entry each.

A runner is activated once, in the timed process, and then infers (Polygraphy's words). Its module
is imported there and nowhere else, so that only torch's own runners need torch.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resdeploy.errors import EnvironmentLacksError, MissingExtraError, ResdeployError
from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.files import TensorSpec
from resdeploy.schema.sessions import Placement, SessionInfo

__all__ = ["RUNNERS", "Runner", "RunnerKind", "TorchForm", "activate", "find_runner"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runner:
    """A model that a runtime has loaded.

    Attributes:
        file: its file; None where a factory made it.
        info: its session.
        inputs: its inputs, whose first dimension is the batch.
        infer: from samples, as of `data.named_inputs`, to a call that runs once, host memory to
            host memory, and returns the outputs, each (N, ...).
        bind: from an input to a call that runs once through an I/O binding, with input and output
            in device memory; None where the runtime has none.
        errors: a block that translates the runtime's exceptions.
        prove: from an input to the placement of a run's kernels; None where it is not recorded.
        options: settings in force, in the runtime's own words.
    """

    file: Path | None
    info: SessionInfo
    inputs: tuple[TensorSpec, ...]
    infer: Callable[[NDArray[Any]], Callable[[], Sequence[NDArray[Any]]]]
    errors: Callable[[], AbstractContextManager[None]]
    bind: Callable[[NDArray[Any]], Callable[[], object]] | None = None
    prove: Callable[[NDArray[Any]], Placement | None] = lambda _: None
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchForm:
    """Settings of torch for a module; the defaults are torch's own.

    Attributes:
        exact: no TF32, which torch allows convolutions on CUDA by default.
        channels_last: images lie in memory with the channels last.
        half: float16 by autocast, operator by operator.
        compile: a mode of `torch.compile`; None for eager.
        cuda_graph: the launches of a run are recorded and replayed.
    """

    exact: bool = False
    channels_last: bool = False
    half: bool = False
    compile: str | None = None
    cuda_graph: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerKind:
    """An entry of the table.

    Attributes:
        name: as in `--against NAME:MODEL`.
        activate: the loader, "module:function", from a model and a `BenchSpec` to a `Runner`.
        package: its requirement besides ONNX Runtime.
        extra: the extra with that package, if any.
        form: of torch.
    """

    name: str
    activate: str
    package: str | None = None
    extra: str | None = None
    form: TorchForm | None = None


def _torch(name: str, **settings: Any) -> RunnerKind:
    return RunnerKind(
        name=name,
        activate="resdeploy.bench.torch_runner:activate",
        package="torch",
        extra="export",
        form=TorchForm(**settings),
    )


RUNNERS: Mapping[str, RunnerKind] = {
    kind.name: kind
    for kind in (
        RunnerKind(name="session", activate="resdeploy.bench.session_runner:activate"),
        # The runtime as its first example has it, without any option.
        RunnerKind(
            name="onnxruntime", activate="resdeploy.bench.session_runner:activate_by_default"
        ),
        RunnerKind(
            name="openvino",
            activate="resdeploy.bench.openvino_runner:activate",
            package="openvino",
        ),
        _torch("torch"),
        _torch("torch-exact", exact=True),
        _torch("torch-channels-last", channels_last=True),
        _torch("torch-channels-last-half", channels_last=True, half=True),
        _torch("torch-compile", compile="default"),
        _torch("torch-compile-max", compile="max-autotune"),
        _torch("torch-compile-max-half", compile="max-autotune", channels_last=True, half=True),
        _torch("torch-graph", cuda_graph=True),
        _torch("torch-graph-half", cuda_graph=True, channels_last=True, half=True),
    )
}


def find_runner(name: str) -> RunnerKind:
    """Return the entry of that name.

    Raises:
        ResdeployError: there is none.
    """
    if name not in RUNNERS:
        raise ResdeployError(
            f"There is no runner {name!r}.", fix=f"one of {', '.join(sorted(RUNNERS))}"
        )
    return RUNNERS[name]


def activate(model: Path | None, spec: BenchSpec) -> Runner:
    """Load `model` with the runner of `spec`, in this process.

    Raises:
        ResdeployError: the model cannot be read or cannot be run.
        EnvironmentLacksError: a package is not installed, or a provider or device does not start.
    """
    kind = find_runner(spec.runner.name)
    if kind.package is not None and importlib.util.find_spec(kind.package) is None:
        if kind.extra is not None:
            raise MissingExtraError(kind.package, extra=kind.extra)
        raise EnvironmentLacksError(
            f"The package {kind.package!r} is not installed.", fix=f"pip install {kind.package}"
        )
    module, _, function = kind.activate.partition(":")
    load: Callable[[Path | None, BenchSpec], Runner]
    load = getattr(importlib.import_module(module), function)
    return load(model, spec)
