"""Runners on ONNX Runtime: resdeploy's session, and one by the runtime's defaults."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resdeploy.bench.runners import Runner
from resdeploy.data.input_kinds import KINDS
from resdeploy.data.named_inputs import by_name
from resdeploy.errors import ProviderError, ResdeployError
from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.sessions import Placement, SessionInfo
from resdeploy.session import providers
from resdeploy.session.diagnosis import plain_text, run_errors
from resdeploy.session.placement import read_placement
from resdeploy.session.runtime import (
    ORT_ERRORS,
    onnxruntime,
    preload_libraries,
    runtime_distribution,
)
from resdeploy.session.session import Session, input_specs, open_session

__all__ = ["activate", "activate_by_default", "replace_options"]


def activate(model: Path | None, spec: BenchSpec) -> Runner:
    """Open a session, proven to run on its provider.

    Raises:
        ResdeployError: the model cannot be read, or has inputs that cannot be drawn.
        ProviderError: the provider did not start.
    """
    assert model is not None
    if spec.runner.options:
        replace_options(spec.session.provider, spec.runner.options)
    session = open_session(model, spec.session)
    return dataclasses.replace(
        _runner(model, session), prove=functools.partial(_prove, model, session)
    )


def activate_by_default(model: Path | None, spec: BenchSpec) -> Runner:
    """Open a session as ONNX Runtime's first example does: a provider's name and nothing else.

    Raises:
        ResdeployError: the model cannot be read, or has inputs that cannot be drawn.
        ProviderError: the runtime ran on another provider.
    """
    provider = providers.find_provider(spec.session.provider)
    if provider.on_nvidia:
        preload_libraries()
    try:
        ort = onnxruntime.InferenceSession(str(model), providers=[provider.ort_name])
    except ORT_ERRORS as error:
        raise ResdeployError(
            f"ONNX Runtime cannot open this model: {plain_text(error)}", where=str(model)
        ) from error
    active = tuple(ort.get_providers())
    if active[0] != provider.ort_name:
        raise ProviderError(f"The session runs on {active[0]}, not on {provider.ort_name}.")
    info = SessionInfo(
        spec=spec.session,
        runtime=runtime_distribution(),
        runtime_version=onnxruntime.__version__,
        active_providers=active,
        nodes_by_provider=None,
    )
    assert model is not None
    return _runner(model, Session(ort, info))


def replace_options(provider: str, options: Mapping[str, str]) -> None:
    """Replace resdeploy's own choice of a provider's options, in later sessions of this process.

    For benchmarks of that choice alone.
    """
    chosen = providers.find_provider(provider)
    replaced = dataclasses.replace(chosen, options=lambda spec: {**chosen.options(spec), **options})
    providers.PROVIDERS = {**providers.PROVIDERS, provider: replaced}


def _runner(model: Path, session: Session) -> Runner:
    ort = session.ort
    inputs = input_specs(session)
    names = [tensor.name for tensor in inputs]
    for tensor in inputs:
        if tensor.dtype not in KINDS:
            raise ResdeployError(
                f"The input {tensor.name!r} is {tensor.dtype}; a model that takes numbers, bools "
                "or pixels can be timed.",
                where=str(model),
            )
    if not inputs:
        raise ResdeployError("The model has no inputs.", where=str(model))
    in_force = ort.get_provider_options().get(ort.get_providers()[0], {})

    def infer(values: NDArray[Any]) -> Callable[[], list[NDArray[Any]]]:
        feed = by_name(values, names)
        if session.recorded is not None:
            return functools.partial(session.recorded.run, feed)
        return functools.partial(ort.run, None, feed)

    return Runner(
        file=model,
        info=session.info,
        inputs=inputs,
        infer=infer,
        bind=functools.partial(_bind, session, names),
        errors=functools.partial(run_errors, session.info),
        options={str(name): str(value) for name, value in in_force.items()},
    )


def _bind(session: Session, names: Sequence[str], values: NDArray[Any]) -> Callable[[], object]:
    """Return a call that runs through an I/O binding, or replays the recorded graph, which has one.

    Input and output lie in the memory of the provider.
    """
    ort, recorded = session.ort, session.recorded
    if recorded is not None:
        return functools.partial(recorded.launch, recorded.recorded(by_name(values, names)))
    device = providers.find_provider(session.info.spec.provider).memory
    binding = ort.io_binding()
    for name, array in by_name(values, names).items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
        binding.bind_ortvalue_input(name, value)
    for output in ort.get_outputs():
        binding.bind_output(output.name, device, 0)
    return functools.partial(ort.run_with_iobinding, binding)


def _prove(model: Path, session: Session, values: NDArray[Any]) -> Placement:
    placement = read_placement(model, session, values)
    if not placement.passed:
        raise ProviderError(
            f"The model did not run on {session.info.spec.provider} alone: "
            f"{'; '.join(placement.reasons)}.",
            where=str(model),
            fix="simplify the model (resdeploy export), or use another provider",
        )
    return placement
