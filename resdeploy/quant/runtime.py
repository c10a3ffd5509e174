"""ONNX Runtime as quantisation needs it: a graph as it stands, tensors inside it, integer kernels.

N samples.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.onnx_file import copy_of, fed_inputs
from resdeploy.schema.quants import IntegerProof, IntegerTypes
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.batches import BATCH_SIZE, padded_batches, run_rows
from resdeploy.session.providers import find_provider
from resdeploy.session.runtime import runtime_title
from resdeploy.session.session import input_specs, open_session

__all__ = ["Runner", "input_of", "prove_integer", "runtime_name", "with_outputs"]

_FLOAT_LAYERS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "ConvTranspose"})
# Lets x86 fuse int8 activations, as ARM does by itself.
_FUSE_SIGNED = "session.qdqisint8allowed"


def runtime_name() -> str:
    """Return the runtime that the numbers come from."""
    return f"{runtime_title('onnxruntime')}, {find_provider(SessionSpec().provider).ort_name}"


class Runner:
    """A model in a session on the CPU, fed in batches it takes."""

    def __init__(self, model: onnx.ModelProto, *, optimize: bool, signed: bool = False) -> None:
        """Open a session.

        `optimize` uses the runtime's fused and integer kernels; without, each node computes in
        float32. `signed` fuses int8 activations too.
        """
        self._session = open_session(
            model.SerializeToString(),
            SessionSpec(graph_level="all" if optimize else "disabled"),
            configure=_configure(signed=signed),
        )
        first = input_specs(self._session)[0]
        self._input = first.name
        self._fixed = first.shape[0] if isinstance(first.shape[0], int) else None

        self.batch_size = self._fixed or BATCH_SIZE

    def run(self, inputs: Array) -> dict[str, Array]:
        """Return the outputs for one batch of at most `batch_size` inputs, by name."""
        ((_, found),) = self.run_batches(inputs)
        return found

    def run_batches(self, inputs: Array) -> Iterator[tuple[Array, dict[str, Array]]]:
        """Yield each batch of inputs (N, ...) with its outputs by name."""
        for batch, count in padded_batches(inputs, fixed=self._fixed):
            found = self._session.run({self._input: batch})
            yield (
                batch[:count],
                {name: value[:count] if value.ndim else value for name, value in found.items()},
            )

    def run_rows(
        self, inputs: Array, also: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """Return the floating-point outputs side by side, (N, K); all batches share `also`."""
        rows_NK = run_rows(
            lambda batch: self._session.run({self._input: batch, **(also or {})}),
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


def prove_integer(
    quantized: onnx.ModelProto, *, types: IntegerTypes, kept_float: Collection[str] = ()
) -> IntegerProof:
    """Return the operators of the graph that the runtime makes, and the layers left in float.

    QuantizeLinear and DequantizeLinear around a layer are a wish. Where the runtime finds no kernel
    for the types at hand, it computes in float32 between them, as slowly as before and without a
    word: on x86, int8 activations leave every second convolution of a ResNet and all of its
    residual additions that way; here signed `types` are fused as ARM's runtime fuses them. Layers
    named in `kept_float` were to stay in float.
    """
    graph = _optimized_graph(quantized, signed=types != "u8s8")
    constants = {tensor.name for tensor in graph.initializer}
    left = [
        f"{node.name or node.output[0]} ({node.op_type})"
        for node in graph.node
        # A sum with a constant is no residual addition.
        if node.op_type in _FLOAT_LAYERS
        or (node.op_type == "Add" and constants.isdisjoint(node.input))
        # A fused node has the name of the layer it began with, or one that contains it.
        if not any(name in node.name for name in kept_float)
    ]
    operators = Counter(node.op_type for node in graph.node)
    return IntegerProof(
        runtime=runtime_name(),
        operators=dict(sorted(operators.items())),
        left_in_float=tuple(left),
    )


def _optimized_graph(model: onnx.ModelProto, *, signed: bool) -> onnx.GraphProto:
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
