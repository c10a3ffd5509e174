"""ONNX Runtime as quantisation needs it: a graph as it stands, tensors inside it, integer kernels.

N samples.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError

__all__ = ["BATCH_SIZE", "Runner", "input_of", "optimized_graph", "runtime_name", "with_outputs"]

Array = NDArray[Any]

# What a model takes besides its one input, the same for every batch.
_NOTHING: Mapping[str, Array] = MappingProxyType({})
# Enough to keep the kernels busy; every intermediate tensor of a batch is in memory at once.
BATCH_SIZE = 8
_LEVEL = onnxruntime.GraphOptimizationLevel
# Lets x86 fuse int8 activations, as ARM does by itself.
_FUSE_SIGNED = "session.qdqisint8allowed"


def runtime_name() -> str:
    """Return the runtime that the numbers come from."""
    return f"onnxruntime {onnxruntime.__version__}, CPUExecutionProvider"


class Runner:
    """A model in a session on the CPU, fed in batches it takes."""

    def __init__(self, model: onnx.ModelProto, *, optimize: bool, signed: bool = False) -> None:
        """Open a session.

        Args:
            model: with one input.
            optimize: use the runtime's fused and integer kernels; without, each node computes in
                float32 what it stands for.
            signed: fuse int8 activations too.
        """
        options = _options(optimize=optimize, signed=signed)
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0]
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Array, also: Mapping[str, Array] = _NOTHING) -> dict[str, Array]:
        """Return the outputs for one batch of at most `BATCH_SIZE` inputs, by name."""
        fixed = self._input.shape[0]
        missing = fixed - len(inputs) if isinstance(fixed, int) else 0
        if missing > 0:
            inputs = np.concatenate([inputs, np.repeat(inputs[-1:], missing, axis=0)])
        found = self._session.run(None, {self._input.name: inputs, **also})
        kept = len(inputs) - max(0, missing)
        return {
            name: value[:kept] if value.ndim else value
            for name, value in zip(self.outputs, found, strict=True)
        }

    @property
    def batch_size(self) -> int:
        """How many inputs to give at a time."""
        fixed = self._input.shape[0]
        return fixed if isinstance(fixed, int) else BATCH_SIZE

    def run_batches(
        self, inputs: Array, also: Mapping[str, Array] = _NOTHING
    ) -> Iterator[tuple[Array, dict[str, Array]]]:
        """Yield each batch of inputs (N, ...) with its outputs by name."""
        for start in range(0, len(inputs), self.batch_size):
            batch = inputs[start : start + self.batch_size]
            yield batch, self.run(batch, also)

    def run_rows(self, inputs: Array, also: Mapping[str, Array] = _NOTHING) -> NDArray[np.float64]:
        """Return all outputs side by side, (N, K)."""
        rows = [
            np.concatenate([found[name].reshape(len(batch), -1) for name in self.outputs], axis=1)
            for batch, found in self.run_batches(inputs, also)
        ]
        return np.concatenate(rows).astype(np.float64)


def input_of(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Return the one input of a model.

    Raises:
        ResdeployError: it has several.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    given: list[onnx.ValueInfoProto] = [
        value for value in model.graph.input if value.name not in constants
    ]
    if len(given) != 1:
        raise ResdeployError(f"The model has {len(given)} inputs; quantize knows models of one.")
    return given[0]


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy whose outputs are these tensors, and nothing else."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    return copy


def optimized_graph(model: onnx.ModelProto, *, signed: bool) -> onnx.GraphProto:
    """Return the graph that the runtime makes of a model: what it will run."""
    with tempfile.TemporaryDirectory(prefix="resdeploy-quant-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = _options(optimize=True, signed=signed)
        # Integer kernels are chosen at this level; the next renames float nodes for their layout.
        options.graph_optimization_level = _LEVEL.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return onnx.load_model(path).graph


def _options(*, optimize: bool, signed: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = _LEVEL.ORT_ENABLE_ALL if optimize else _LEVEL.ORT_DISABLE_ALL
    options.graph_optimization_level = level
    # Otherwise the session keeps the largest batch's tensors for good.
    options.enable_cpu_mem_arena = False
    if signed:
        options.add_session_config_entry(_FUSE_SIGNED, "1")
    return options
