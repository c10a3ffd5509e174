"""ONNX Runtime as quantisation needs it: a graph as it stands, tensors inside it, integer kernels.

N samples.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.onnx_file import copy_of, fed_inputs
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.batches import BATCH_SIZE, padded_batches, run_rows
from resdeploy.session.providers import find_provider
from resdeploy.session.runtime import runtime_title
from resdeploy.session.session import input_specs, open_session

__all__ = ["Runner", "input_of", "optimized_graph", "runtime_name", "with_outputs"]


# The further inputs of a model, the same for every batch.
_NOTHING: Mapping[str, Array] = MappingProxyType({})
# Lets x86 fuse int8 activations, as ARM does by itself.
_FUSE_SIGNED = "session.qdqisint8allowed"


def runtime_name() -> str:
    """Return the runtime that the numbers come from."""
    return f"{runtime_title('onnxruntime')}, {find_provider(SessionSpec().provider).ort_name}"


class Runner:
    """A model in a session on the CPU, fed in batches it takes."""

    def __init__(self, model: onnx.ModelProto, *, optimize: bool, signed: bool = False) -> None:
        """Open a session.

        Args:
            model: with one input.
            optimize: use the runtime's fused and integer kernels; without, each node computes
                in float32.
            signed: fuse int8 activations too.
        """
        self._session = open_session(
            model.SerializeToString(),
            SessionSpec(graph_level="all" if optimize else "disabled"),
            configure=_configure(signed=signed),
        )
        first = input_specs(self._session)[0]
        self._input = first.name
        self._fixed = first.shape[0] if isinstance(first.shape[0], int) else None

    def run(self, inputs: Array, also: Mapping[str, Array] = _NOTHING) -> dict[str, Array]:
        """Return the outputs for one batch of at most `batch_size` inputs, by name."""
        ((_, found),) = self.run_batches(inputs, also)
        return found

    @property
    def batch_size(self) -> int:
        """The number of inputs of one batch."""
        return self._fixed or BATCH_SIZE

    def run_batches(
        self, inputs: Array, also: Mapping[str, Array] = _NOTHING
    ) -> Iterator[tuple[Array, dict[str, Array]]]:
        """Yield each batch of inputs (N, ...) with its outputs by name."""
        for batch, count in padded_batches(inputs, fixed=self._fixed):
            found = self._session.run({self._input: batch, **also})
            yield (
                batch[:count],
                {name: value[:count] if value.ndim else value for name, value in found.items()},
            )

    def run_rows(self, inputs: Array, also: Mapping[str, Array] = _NOTHING) -> NDArray[np.float64]:
        """Return the floating-point outputs side by side, (N, K)."""
        rows_NK = run_rows(
            lambda batch: self._session.run({self._input: batch, **also}),
            inputs,
            fixed=self._fixed,
        )
        return rows_NK.astype(np.float64)


def input_of(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Return the one input of a model.

    Raises:
        ResdeployError: it has several.
    """
    given = fed_inputs(model)
    if len(given) != 1:
        raise ResdeployError(f"The model has {len(given)} inputs; quantize knows models of one.")
    return given[0]


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy whose outputs are these tensors, and nothing else."""
    copy = copy_of(model)
    del copy.graph.output[:]
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    return copy


def optimized_graph(model: onnx.ModelProto, *, signed: bool) -> onnx.GraphProto:
    """Return the graph that the runtime makes of a model, and runs."""
    with tempfile.TemporaryDirectory(prefix="resdeploy-quant-") as folder:
        path = Path(folder) / "optimized.onnx"
        # Integer kernels are chosen at this level; the next renames float nodes for their layout.
        spec = SessionSpec(graph_level="extended")
        open_session(model.SerializeToString(), spec, configure=_configure(signed=signed, out=path))
        return onnx.load_model(path).graph


def _configure(*, signed: bool, out: Path | None = None) -> Callable[[Any], None]:
    """Return the setter of quantisation's own options; the runtime's graph goes to `out`."""

    def configure(options: Any) -> None:
        # Otherwise the session keeps the largest batch's tensors for good.
        options.enable_cpu_mem_arena = False
        if signed:
            options.add_session_config_entry(_FUSE_SIGNED, "1")
        if out is not None:
            options.optimized_model_filepath = str(out)

    return configure
