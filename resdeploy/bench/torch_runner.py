"""Runner on torch: a checkpoint or a user's module, in one of several forms."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree

from resdeploy.bench.runners import Runner, TorchForm, find_runner
from resdeploy.errors import EnvironmentLacksError, ReportedError, ResdeployError
from resdeploy.export.signature import bind
from resdeploy.export.source import SourceModel, load_source
from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.files import InputSpec, TensorSpec
from resdeploy.schema.sessions import SessionInfo
from resdeploy.session.providers import find_provider
from resdeploy.training.checkpoint import CHECKPOINT_NAME

__all__ = ["activate"]

_IMAGE_RANK = 4


def activate(model: Path | None, spec: BenchSpec) -> Runner:
    """Load the source of `spec` and move it to the provider's device: the CPU, or the first GPU.

    Raises:
        ResdeployError: the source cannot be loaded, or its module does not run.
        EnvironmentLacksError: there is no CUDA device for the provider or the CUDA graph.
    """
    form = find_runner(spec.runner.name).form
    assert form is not None
    device = torch.device(find_provider(spec.session.provider).memory)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentLacksError("torch finds no CUDA device.", fix="use --provider cpu")
    if form.cuda_graph and device.type != "cuda":
        raise EnvironmentLacksError("A CUDA graph needs a CUDA device.", fix="use --provider cuda")
    if spec.session.num_threads is not None:
        torch.set_num_threads(spec.session.num_threads)
    if form.exact:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    # As a careful user would: the shape does not change, so that the search pays.
    torch.backends.cudnn.benchmark = True
    path = None if model is None else str(model)
    source = load_source(replace(spec.runner.source, path=path))
    with _errors(source.description):
        network = _Network(source.module, form, device, is_image=len(source.input_shape) == 3)
    return Runner(
        file=model / CHECKPOINT_NAME if model is not None and model.is_dir() else model,
        info=SessionInfo(
            spec=spec.session,
            runtime="torch",
            runtime_version=torch.__version__,
            active_providers=(str(device),),
            nodes_by_provider=None,
        ),
        inputs=_inputs(source),
        infer=network.infer,
        bind=network.bind,
        errors=lambda: _errors(source.description),
        options={
            "cudnn.allow_tf32": str(torch.backends.cudnn.allow_tf32),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "num_threads": str(torch.get_num_threads()),
        },
    )


@contextmanager
def _errors(description: str) -> Iterator[None]:
    """Translate any exception of a module, its compiler or its device."""
    try:
        yield
    except ReportedError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ResdeployError(
            f"torch cannot run this network: {type(error).__name__}: {first}", where=description
        ) from error


class _Network:
    """A module on its device, in one form."""

    def __init__(
        self, module: nn.Module, form: TorchForm, device: torch.device, *, is_image: bool
    ) -> None:
        self._form, self._device = form, device
        is_last = form.channels_last and is_image
        self._layout = torch.channels_last if is_last else torch.contiguous_format
        module = module.to(device=device, memory_format=self._layout)  # type: ignore[call-overload]
        self._module = module
        self._call: Callable[..., Any] = module
        if form.compile is not None:
            self._call = torch.compile(module, mode=form.compile)
        self._replay: Callable[..., Any] | None = None

    def infer(self, values: NDArray[Any]) -> Callable[[], list[NDArray[Any]]]:
        on_host, names = self._arguments(values)
        forward = self._forward(on_host, names)

        def once() -> list[NDArray[Any]]:
            leaves = _pytree.tree_leaves(forward(*map(self._moved, on_host)))
            return [y.cpu().numpy() for y in leaves if isinstance(y, torch.Tensor)]

        return once

    def bind(self, values: NDArray[Any]) -> Callable[[], object]:
        on_host, names = self._arguments(values)
        forward, on_device = self._forward(on_host, names), [*map(self._moved, on_host)]

        def once() -> None:
            forward(*on_device)
            if self._device.type == "cuda":
                torch.cuda.synchronize()

        return once

    def _arguments(self, values: NDArray[Any]) -> tuple[list[torch.Tensor], list[str]]:
        """Return the arguments of a call, and the names of those that are given by name, last."""
        args, kwargs = bind(self._module, values, torch.float32)
        return [*args, *kwargs.values()], [*kwargs]

    def _moved(self, x: torch.Tensor) -> torch.Tensor:
        is_image = x.ndim == _IMAGE_RANK
        layout = self._layout if is_image else torch.contiguous_format
        return x.to(self._device).contiguous(memory_format=layout)

    def _forward(
        self, examples: Sequence[torch.Tensor], names: Sequence[str]
    ) -> Callable[..., Any]:
        def plain(*inputs: torch.Tensor) -> Any:
            num = len(inputs) - len(names)
            half = self._form.half
            with torch.no_grad(), torch.autocast(self._device.type, torch.float16, enabled=half):
                return self._call(*inputs[:num], **dict(zip(names, inputs[num:], strict=True)))

        if not self._form.cuda_graph:
            return plain
        if self._replay is None:
            self._replay = _recorded(plain, [*map(self._moved, examples)])
        return self._replay


def _inputs(source: SourceModel) -> tuple[TensorSpec, ...]:
    inputs = source.inputs or (InputSpec(name="input", shape=source.input_shape),)
    return tuple(
        TensorSpec(name=one.name, dtype=one.dtype, shape=("N", *one.shape)) for one in inputs
    )


def _recorded(forward: Callable[..., Any], examples: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """Return `forward` recorded as a CUDA graph, which reads and writes the same memory each time.

    https://docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs"
    """
    held = [example.clone() for example in examples]
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # the first searches and allocations must not be recorded
            forward(*held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward(*held)

    def replay(*inputs: torch.Tensor) -> Any:
        for memory, x in zip(held, inputs, strict=True):
            memory.copy_(x)
        graph.replay()
        return output

    return replay
