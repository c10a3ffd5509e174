"""Runner on OpenVINO without ONNX Runtime, in the arithmetic that it chooses itself.

The shape and the hint are those of `benchmark_app -hint latency`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.bench.runners import Runner
from resdeploy.data.named_inputs import by_name
from resdeploy.errors import ResdeployError
from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.files import TensorSpec
from resdeploy.schema.sessions import SessionInfo

__all__ = ["activate"]

_SAID = ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS")


def activate(model: Path | None, spec: BenchSpec) -> Runner:
    """Compile `model` for the CPU, with the batch that `spec` asks for.

    Raises:
        ResdeployError: OpenVINO cannot read or compile the model.
    """
    import openvino  # noqa: PLC0415 - no dependency

    if model is None or not model.is_file():
        raise ResdeployError("There is no such model file.", where=str(model))
    with _errors(model):
        core = openvino.Core()
        read = core.read_model(model)
        asked = {one.name: one.shape for one in spec.inputs}
        shapes = {}
        for entry in read.inputs:
            sizes = asked.get(entry.any_name) or (asked.get("") if len(read.inputs) == 1 else None)
            sizes = sizes or tuple(size.get_length() for size in list(entry.partial_shape)[1:])
            shapes[entry.any_name] = (spec.batch_size, *sizes)
        read.reshape({name: list(shape) for name, shape in shapes.items()})
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if spec.session.num_threads is not None:
            settings["INFERENCE_NUM_THREADS"] = spec.session.num_threads
        compiled = core.compile_model(read, "CPU", settings)
        request = compiled.create_infer_request()

    def infer(values: NDArray[Any]) -> Callable[[], list[NDArray[Any]]]:
        feed = by_name(values, [*shapes])
        return lambda: list(request.infer(feed).values())

    return Runner(
        file=model,
        info=SessionInfo(
            spec=spec.session,
            runtime="openvino",
            runtime_version=openvino.__version__,
            active_providers=("CPU",),
            nodes_by_provider=None,
        ),
        inputs=tuple(
            TensorSpec(
                name=entry.any_name,
                dtype=str(np.dtype(entry.element_type.to_dtype())),
                shape=("N", *shapes[entry.any_name][1:]),
            )
            for entry in read.inputs
        ),
        infer=infer,
        errors=lambda: _errors(model),
        options={name: str(compiled.get_property(name)) for name in _SAID},
    )


@contextmanager
def _errors(model: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip().splitlines()[-1]
        raise ResdeployError(f"OpenVINO cannot run this model: {text}", where=str(model)) from error
