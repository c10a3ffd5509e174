"""ONNX Runtime as quantisation needs it: a graph as it stands, tensors inside it, integer kernels.

N samples; those of several inputs are records with a field for each (`samples`).
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.bench.layer_times import layer_times
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.onnx_file import copy_of
from resdeploy.quant.samples import fields
from resdeploy.schema.quants import IntegerProof, IntegerTypes
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.batches import BATCH_SIZE, padded_batches, run_outputs, run_rows
from resdeploy.session.onnx_wire import read_nodes, read_weight_shapes
from resdeploy.session.placement import kernel_events, read_events
from resdeploy.session.providers import find_provider
from resdeploy.session.runtime import runtime_title
from resdeploy.session.session import Session, input_specs, open_session

__all__ = [
    *("Runner", "feed_of", "prove_integer", "runtime_name", "time_shares", "with_outputs"),
]

_FLOAT_LAYERS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "ConvTranspose"})
# Runs of which a profile is read.
_NUM_PROFILED = 6
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
        specs = input_specs(self._session)
        self._inputs = [spec.name for spec in specs]
        fixed = specs[0].shape[0] if specs[0].shape else None
        self._fixed = fixed if isinstance(fixed, int) else None

        self.batch_size = self._fixed or BATCH_SIZE

    def run(self, inputs: Array) -> dict[str, Array]:
        """Return the outputs for one batch of at most `batch_size` inputs, by name."""
        ((_, found),) = self.run_batches(inputs)
        return found

    def run_batches(self, inputs: Array) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Yield the inputs by name, in batches of (N, ...), and the outputs for each by name."""
        for batch, count in padded_batches(inputs, fixed=self._fixed):
            found = self._session.run(feed_of(self._inputs, batch))
            yield (
                feed_of(self._inputs, batch[:count]),
                {name: value[:count] if value.ndim else value for name, value in found.items()},
            )

    def run_outputs(self, inputs: Array) -> dict[str, Array]:
        """Return all outputs by name, (N, ...) each."""
        return run_outputs(
            lambda batch: self._session.run(feed_of(self._inputs, batch)), inputs, fixed=self._fixed
        )

    def run_rows(
        self, inputs: Array, also: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """Return the floating-point outputs side by side, (N, K); all batches share `also`."""
        rows_NK = run_rows(
            lambda batch: self._session.run({**feed_of(self._inputs, batch), **(also or {})}),
            inputs,
            fixed=self._fixed,
        )
        return rows_NK.astype(np.float64)


def feed_of(names: Sequence[str], samples: Array) -> dict[str, Array]:
    """Return samples as the inputs of a model by name; `names` are its inputs, in its order."""
    if samples.dtype.names is None:
        return {names[0]: samples}
    return {name: np.ascontiguousarray(values) for name, values in fields(samples).items()}


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
        if not any(_contains(node.name, name) for name in kept_float)
    ]
    operators = Counter(node.op_type for node in graph.node)
    return IntegerProof(
        runtime=runtime_name(),
        operators=dict(sorted(operators.items())),
        left_in_float=tuple(left),
    )


def time_shares(model: onnx.ModelProto, samples: Array, names: Collection[str]) -> dict[str, float]:
    """Return the part of a model's time that nodes take here, by name, from the runtime's profile.

    Medians of a few runs of one batch of `samples`; 0 of nodes that the runtime made others of.
    """
    content = model.SerializeToString()

    def run(session: Session) -> None:
        given = input_specs(session)
        fixed = given[0].shape[0] if given[0].shape else None
        batches = padded_batches(samples, fixed=fixed if isinstance(fixed, int) else None)
        feed = feed_of([spec.name for spec in given], next(batches)[0])
        for _ in range(_NUM_PROFILED):
            session.run(feed)

    def read(events: list[Any]) -> dict[str, float]:
        kernels = kernel_events(events)
        num = len(kernels) // _NUM_PROFILED
        runs = [kernels[start : start + num] for start in range(num, len(kernels), num)]
        layers = layer_times(runs, read_nodes(content), read_weight_shapes(content))
        total = sum(layer.p50_ns for layer in layers) or 1
        shares = dict.fromkeys(names, 0.0)
        for layer in layers:
            if layer.name in shares:
                shares[layer.name] += layer.p50_ns / total
        return shares

    return read_events(content, SessionSpec(), run, read)


def _contains(kernel: str, name: str) -> bool:
    """True if a kernel's name is that of a node, or one that the runtime made of it."""
    return re.search(rf"(?<![A-Za-z0-9.]){re.escape(name)}(?![A-Za-z0-9.])", kernel) is not None


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
