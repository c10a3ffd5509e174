"""Sessions of ONNX Runtime, each proven to run on its provider.

ONNX Runtime falls back to the CPU rather than fail, silently, in three cases: the wheel was built
without the provider; a library of the provider is missing; the provider finds no device. Here the
provider list holds the requested provider alone, both kinds of fallback are off, and the opened
session must name that provider, node by node where the runtime records it.
"""

import dataclasses
import mmap
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resdeploy.errors import ProviderError, ReportedError, ResdeployError
from resdeploy.files import refuse_outside_weight
from resdeploy.schema.files import TensorSpec, numpy_name
from resdeploy.schema.sessions import SESSION_OPTIONS, SessionInfo, SessionSpec
from resdeploy.session.cuda_graph import RecordedRuns
from resdeploy.session.diagnosis import (
    model_error,
    not_onnx_error,
    not_started_error,
    operator_error,
    plain_text,
    reinstall,
    run_errors,
    stray_nodes_error,
)
from resdeploy.session.onnx_wire import external_weights
from resdeploy.session.placement_proof import Kernel, count_by_provider
from resdeploy.session.plugins import comes_as_plugin, plugin_device, require_plugin
from resdeploy.session.providers import PROVIDERS, Provider, find_provider
from resdeploy.session.runtime import (
    ORT_ERRORS,
    captured_output,
    onnxruntime,
    preload_libraries,
    runtime_distribution,
    runtime_title,
)

__all__ = [
    "Session",
    "input_specs",
    "open_session",
    "output_specs",
    "planned_kernels",
]

_GRAPH_LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@dataclass(frozen=True, slots=True)
class Session:
    """An ONNX Runtime session that is proven to run on its provider.

    `recorded` are its runs where it replays a CUDA graph.
    """

    ort: Any
    info: SessionInfo
    recorded: RecordedRuns | None = None

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for `inputs` by name.

        Raises:
            ResdeployError: the inputs are not those of the model.
            ProviderError: the provider failed while it ran.
        """
        with run_errors(self.info):
            if self.recorded is not None:
                outputs = self.recorded.run(inputs)
            else:
                outputs = self.ort.run(None, dict(inputs))
        return dict(zip((output.name for output in self.ort.get_outputs()), outputs, strict=True))


def open_session(
    model: Path | bytes,
    spec: SessionSpec,
    *,
    profile_prefix: Path | None = None,
    configure: Callable[[Any], None] | None = None,
) -> Session:
    """Open `model` on the provider of `spec`, and on no other.

    Meanwhile, standard output and standard error of this process are held back: the runtime prints
    there from C. The prints are dropped if the session starts, and are in the notes of the error if
    it does not.

    Args:
        model: an ONNX file or its bytes.
        spec: provider and options.
        profile_prefix: write a profile of every run to a file whose path begins with this. Times
            are then not those of an ordinary session.
        configure: sets further options on ONNX Runtime's `SessionOptions`.

    Raises:
        ResdeployError: the model is missing, or is not one that this runtime can read, or the
            spec is wrong.
        ProviderError: the provider did not start, or would leave nodes to another; nothing was
            run.
    """
    provider = find_provider(spec.provider)
    _check_spec(spec, provider)
    where = str(model) if isinstance(model, Path) else "a model in memory"
    if isinstance(model, Path) and not model.is_file():
        raise ResdeployError("There is no such model file.", where=where)
    runtime = runtime_distribution()
    if comes_as_plugin(provider):
        require_plugin(provider, runtime)
    elif provider.ort_name not in onnxruntime.get_available_providers():
        raise ProviderError(
            f"This onnxruntime was built without {provider.ort_name}.",
            where=runtime_title(runtime),
            fix=reinstall(provider, runtime),
        )
    content = _content(model)
    _check_weights(model, content, where=where)
    request = _Request(
        model=model,
        provider=provider,
        spec=spec,
        runtime=runtime,
        disabled=_optimizers_to_disable(content),
    )
    failure: Exception | None = None
    with captured_output() as captured:
        try:
            if provider.on_nvidia:
                preload_libraries()
            session = _create(request, profile_prefix=profile_prefix, configure=configure)
        except ORT_ERRORS as error:
            failure = error
    # Explained only here: the prints are known once the capture ends.
    if failure is not None:
        explained = _explain(failure, request, captured.text)
        explained.where = explained.where or where
        explained.add_note(f"{failure}\n{captured.text}".strip())
        raise explained from failure
    recorded = RecordedRuns(session, provider.memory) if spec.cuda_graph else None
    return Session(session, _proven_info(session, request), recorded)


def input_specs(session: Session) -> tuple[TensorSpec, ...]:
    """Return the model's inputs, in its order."""
    return tuple(map(_tensor_spec, session.ort.get_inputs()))


def output_specs(session: Session) -> tuple[TensorSpec, ...]:
    """Return the model's outputs, in its order."""
    return tuple(map(_tensor_spec, session.ort.get_outputs()))


def planned_kernels(ort_session: Any) -> tuple[Kernel, ...] | None:
    """Return the graph's nodes with their providers; None if not recorded.

    The nodes are those of the graph after its basic optimisations, where providers are assigned.
    """
    if not _records_placement():
        return None
    return tuple(
        Kernel(name=node.name, op=node.op_type, provider=subgraph.ep_name)
        for subgraph in ort_session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    )


# --- making the session --------------------------------------------------------------------------


# Optimisations that change the function of a model: their first version of the runtime, and the
# operator without which they do nothing. None is fixed in any version yet.
# MatMul_BatchNormalization_Fusion (since microsoft/onnxruntime#17915) walks through any Reshape or
# Transpose without asking where the channels went.
_WRONG_OPTIMIZERS = {"MatMul_BatchNormalization_Fusion": ((1, 16), b"BatchNormalization")}


def _optimizers_to_disable(content: bytes | mmap.mmap) -> tuple[str, ...]:
    """Return the optimisations of this runtime that could change the function of a model."""
    version = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])
    return tuple(
        name
        for name, (since, operator) in _WRONG_OPTIMIZERS.items()
        # An operator's name stands in an ONNX file as it is.
        if version >= since and content.find(operator) >= 0
    )


def _content(model: Path | bytes) -> bytes | mmap.mmap:
    """Return the bytes of a model, mapped where it is a file."""
    if isinstance(model, bytes):
        return model
    with model.open("rb") as file:
        if model.stat().st_size == 0:  # which cannot be mapped, and is no model
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _check_weights(model: Path | bytes, content: bytes | mmap.mmap, *, where: str) -> None:
    """Raise ResdeployError for weights in files outside the folder of a model, or not ONNX.

    Old runtimes, 1.18 among them, read any file that the model names.
    """
    path = model if isinstance(model, Path) else None
    # Its own format, told apart as it does, holds all of its weights.
    if path.suffix == ".ort" if path else content[4:8] == b"ORTM":
        return
    try:
        for name, location in external_weights(content):
            refuse_outside_weight(name, location, model=path)
    except ValueError as error:
        raise not_onnx_error(where) from error


def _check_spec(spec: SessionSpec, provider: Provider) -> None:
    """Raise ResdeployError if a number is out of range, or an option does nothing here."""
    if spec.num_threads is not None and spec.num_threads < 1:
        raise ResdeployError(
            f"The number of threads is {spec.num_threads}.", fix="ask for at least 1"
        )
    for name, option in SESSION_OPTIONS.items():
        without = dataclasses.replace(spec, **{name: option.default})
        if not option.must_apply or without == spec:
            continue
        takers = [p.name for p in PROVIDERS.values() if p.options(spec) != p.options(without)]
        if provider.name not in takers:
            raise ResdeployError(
                f"{option.flag} does nothing on {provider.name}.",
                fix=f"leave it out, or use --provider {' or '.join(takers)}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A session to be made, and the runtime that makes it."""

    model: Path | bytes
    provider: Provider
    spec: SessionSpec
    runtime: str
    disabled: tuple[str, ...]


def _create(
    request: _Request,
    *,
    allow_cpu_nodes: bool = False,
    profile_prefix: Path | None = None,
    configure: Callable[[Any], None] | None = None,
) -> Any:
    model, provider, spec = request.model, request.provider, request.spec
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; warnings are about optimisations that did not apply
    options.graph_optimization_level = _GRAPH_LEVELS[spec.graph_level]
    if spec.num_threads is not None:
        options.intra_op_num_threads = spec.num_threads
    if not spec.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _records_placement():
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not (provider.is_fallback or allow_cpu_nodes):
        # The only switch that also catches a provider whose libraries are missing.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    if configure is not None:
        configure(options)
    providers: list[tuple[str, dict[str, str]]] | None = [
        (provider.ort_name, {**provider.built_in_options, **provider.options(spec)})
    ]
    if comes_as_plugin(provider):
        device = plugin_device(provider, request.runtime)
        options.add_provider_for_devices([device], provider.options(spec))
        providers = None  # a list would take the place of the device
    return onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model,
        options,
        providers=providers,
        disabled_optimizers=list(request.disabled),
        # Without it a failure, now or in a later run, makes the session anew on the CPU.
        enable_fallback=0,
    )


def _proven_info(session: Any, request: _Request) -> SessionInfo:
    """Return the session's own account of its placement, once that is the requested one."""
    provider, spec = request.provider, request.spec
    active = tuple(session.get_providers())
    if active[0] != provider.ort_name:
        raise ProviderError(
            f"The session runs on {active[0]}, not on {provider.ort_name}.",
            where=runtime_title(request.runtime),
            fix=reinstall(provider, request.runtime),
        )
    if comes_as_plugin(provider):
        _check_options(session, provider, spec)
    planned = planned_kernels(session)
    if stray := _elsewhere(planned or (), provider):
        raise stray_nodes_error(stray, provider)
    return SessionInfo(
        spec=spec,
        runtime=request.runtime,
        runtime_version=onnxruntime.__version__,
        active_providers=active,
        nodes_by_provider=None if planned is None else count_by_provider(planned),
        disabled_optimizers=request.disabled,
    )


def _check_options(session: Any, provider: Provider, spec: SessionSpec) -> None:
    """Raise ProviderError unless the session reports the options it was given.

    Their effect it does not report: that, only the numbers show.
    """
    asked = provider.options(spec)
    found = session.get_provider_options().get(provider.ort_name, {})
    lost = sorted(name for name, value in asked.items() if found.get(name) != value)
    if lost:
        raise ProviderError(
            f"{provider.ort_name} did not take the option {', '.join(lost)}.",
            where=f"{asked} was asked for",
            fix=f"pip install -U {provider.plugin.replace('_', '-')}",
        )


def _records_placement() -> bool:
    return hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")


def _elsewhere(kernels: Iterable[Kernel], provider: Provider) -> list[str]:
    return [str(kernel) for kernel in kernels if kernel.provider != provider.ort_name]


# --- explanations of failures ---------------------------------------------------------------------


def _explain(error: Exception, request: _Request, output: str) -> ReportedError:
    """Return the error to raise for an exception of ONNX Runtime and its prints."""
    provider, runtime = request.provider, request.runtime
    about_model = model_error(error, runtime) or operator_error(error, provider, runtime)
    if about_model is not None:
        return about_model
    if provider.is_fallback:
        return ResdeployError(f"ONNX Runtime cannot run this model: {plain_text(error)}")
    if "explicitly disabled by the user" in str(error):
        # Either the provider did not start, or it cannot run every node. Only a session that may
        # use the CPU can tell, and name the nodes: one is made for that, and nothing is run.
        with captured_output():
            session = _create(request, allow_cpu_nodes=True)
        if session.get_providers()[0] == provider.ort_name:
            return stray_nodes_error(_elsewhere(planned_kernels(session) or (), provider), provider)
    return not_started_error(error, provider, runtime, output)


def _tensor_spec(value: Any) -> TensorSpec:
    return TensorSpec(
        name=value.name,
        dtype=numpy_name(value.type),
        # A dynamic dimension need not have a name.
        shape=tuple("?" if dimension is None else dimension for dimension in value.shape),
    )
