"""Time of each layer of a run, from the runtime's own profile."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.bench.ceilings import peak_bytes_per_s, peak_macs_per_s
from resdeploy.errors import ResdeployError
from resdeploy.graph.affine_layer import AFFINE_OPERATORS, AffineLayer, read_layer
from resdeploy.schema.benchmarks import LayerTime, Profile
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.onnx_wire import OnnxNode, read_nodes, read_weight_shapes
from resdeploy.session.placement import kernel_events, read_events
from resdeploy.session.providers import PROVIDERS
from resdeploy.session.session import Session

__all__ = ["check_profile", "layer_times", "num_macs", "read_profile"]

# Not counted: the first runs, with work that is done once.
_NUM_WARMUP = 3

# Kernels that the runtime writes for a layout of its own carry this after the value they make, and
# those of integers this after the name of their node.
_LAYOUT_SUFFIX = re.compile("_nchwc$")
_INTEGER_SUFFIX = re.compile(r"_token_\d+$")

# Kernels of integers, and the model's operator.
_FLOAT_OPS = {
    "QLinearConv": "Conv",
    "QLinearMatMul": "MatMul",
    "QGemm": "Gemm",
    "ConvInteger": "Conv",
    "MatMulInteger": "MatMul",
}


def check_profile(spec: SessionSpec) -> None:
    """Raise ResdeployError for a provider whose profile has no times of layers."""
    able = [provider.name for provider in PROVIDERS.values() if provider.has_layer_times]
    if spec.provider not in able:
        raise ResdeployError(
            f"The layers cannot be timed on {spec.provider}: the runtime's profile holds the times "
            "at which kernels are started there, or one time for all of them.",
            fix=f"profile on {', '.join(able)}, or use the tools of the device's vendor",
        )


def read_profile(
    model: Path,
    spec: SessionSpec,
    feed: Mapping[str, np.ndarray],
    *,
    num_runs: int,
    num_threads: int,
) -> Profile:
    """Return the median time of each layer over `num_runs` runs, and the machine's ceilings.

    Raises:
        ResdeployError: the provider's profile holds no times of layers, or a layer is outside
            ONNX's specification.
        ProviderError: the profile cannot be read.
    """
    check_profile(spec)

    def run(session: Session) -> None:
        for _ in range(_NUM_WARMUP + num_runs):
            session.run(feed)

    def read(events: list[Any]) -> tuple[tuple[LayerTime, ...], int]:
        runs = _runs(events)[_NUM_WARMUP:]
        content = model.read_bytes()
        layers = layer_times(
            [kernels for _, kernels in runs], read_nodes(content), read_weight_shapes(content)
        )
        return layers, round(1e3 * statistics.median(duration for duration, _ in runs))

    layers, run_p50_ns = read_events(model, spec, run, read)
    return Profile(
        layers=layers,
        num_runs=num_runs,
        run_p50_ns=run_p50_ns,
        peak_macs_per_s=peak_macs_per_s(spec),
        peak_integer_macs_per_s=(
            peak_macs_per_s(spec, integer=True)
            if any(layer.is_integer and layer.num_macs for layer in layers)
            else None
        ),
        peak_bytes_per_s=peak_bytes_per_s(num_threads),
    )


def _runs(events: list[Any]) -> list[tuple[float, list[Mapping[str, Any]]]]:
    """Return each run's duration in microseconds with its kernels, in the order they began."""
    kernels = kernel_events(events)
    return [
        (run["dur"], [k for k in kernels if run["ts"] <= k["ts"] <= run["ts"] + run["dur"]])
        for run in events
        if run.get("name") == "model_run"
    ]


def layer_times(
    runs: Sequence[Sequence[Mapping[str, Any]]],
    nodes: Sequence[OnnxNode],
    weight_shapes: Mapping[str, tuple[int, ...]],
) -> tuple[LayerTime, ...]:
    """Return the median time of each kernel over `runs`, under the names of the model's `nodes`.

    Raises:
        ValueError: there are no runs, or they are not all of the same kernels.
    """
    names = [[kernel["name"] for kernel in run] for run in runs]
    if not runs or any(other != names[0] for other in names):
        raise ValueError("the runs are not of the same kernels")
    by_name = {node.name: node for node in nodes if node.name}
    maker = {output: node for node in nodes for output in node.outputs}
    layers = []
    for index, kernel in enumerate(runs[0]):
        args = kernel["args"]
        node = _node_of(kernel, by_name, maker)
        layer = None
        if node is not None and node.op == _model_op(kernel):
            layer = _affine(node, maker, weight_shapes)
        name = _runtime_name(kernel) if node is None else node.name or node.outputs[0]
        layers.append(
            LayerTime(
                name=name,
                op=args["op_name"],
                # The profile counts in whole microseconds.
                p50_ns=round(1e3 * statistics.median(run[index]["dur"] for run in runs)),
                num_macs=num_macs(args, layer),
                num_bytes=_num_bytes(args, layer),
            )
        )
    return tuple(layers)


def num_macs(args: Mapping[str, Any], layer: AffineLayer | None = None) -> int:
    """Return the multiplications with addition that a kernel does; 0 if it is no product.

    Where the model's layer is not known, they follow from the shapes in the profile. It leaves out
    a weight that was packed, as all are that a kernel of integers reads; of a product, the columns
    of its first input say as much, and of a convolution nothing does.

    Args:
        args: the kernel's entry in the profile.
        layer: the model's, where it is known.
    """
    shapes = [next(iter(shape.values())) for shape in args["input_type_shape"]]
    outputs = math.prod(next(iter(args["output_type_shape"][0].values())))
    op = args["op_name"].removeprefix("Fused").removeprefix("Nhwc")
    if layer is None and op in ("Conv", "ConvTranspose") and len(shapes[1]) > 2:
        layer = read_layer(op, {}, shapes[1])
    if layer is not None and layer.op == "ConvTranspose":
        # Each input element goes to each weight of one filter.
        return int(math.prod(shapes[0]) * math.prod(layer.weight_shape[1:]))
    if layer is not None:
        return int(outputs * layer.num_products)
    match op:
        case "Gemm" if len(shapes) > 1 and len(shapes[1]) == 2:
            # M K * K N / (M N), whichever of them is transposed.
            return int(outputs * math.isqrt(math.prod(shapes[0] + shapes[1]) // outputs))
        case "MatMul" | "Gemm" | "QLinearMatMul" | "QGemm" | "MatMulInteger":
            return int(outputs * shapes[0][-1])
        case _:
            return 0


# --- from a kernel to the model's node -----------------------------------------------------------


def _node_of(
    kernel: Mapping[str, Any], by_name: Mapping[str, OnnxNode], maker: Mapping[str, OnnxNode]
) -> OnnxNode | None:
    """Return the model's node that a kernel computes; None if there is none, or it cannot be found.

    Kernels that the runtime made of several nodes, or for another layout, are named after the value
    they make. From there it goes up the graph, along first inputs, to the node with the kernel's
    operator.
    """
    name = _runtime_name(kernel)
    named = by_name.get(name) or by_name.get(_INTEGER_SUFFIX.sub("", name))
    if named is not None:
        return named
    op = _model_op(kernel)
    at = maker.get(_LAYOUT_SUFFIX.sub("", name))
    while at is not None and at.op != op:
        at = maker.get(at.inputs[0]) if at.inputs else None
    return at


def _model_op(kernel: Mapping[str, Any]) -> str:
    op = str(kernel["args"]["op_name"]).removeprefix("Fused").removeprefix("Nhwc")
    return _FLOAT_OPS.get(op, op)


def _runtime_name(kernel: Mapping[str, Any]) -> str:
    return str(kernel["name"].removesuffix("_kernel_time"))


def _affine(
    node: OnnxNode, maker: Mapping[str, OnnxNode], shapes: Mapping[str, tuple[int, ...]]
) -> AffineLayer | None:
    """Return a node as a layer, its weight read through a DequantizeLinear."""
    if node.op not in AFFINE_OPERATORS:
        return None
    value = node.inputs[1]
    made_by = maker.get(value)
    if made_by is not None and made_by.op == "DequantizeLinear":
        value = made_by.inputs[0]
    shape = shapes.get(value)
    if shape is None or (node.op == "MatMul" and len(shape) != 2):
        return None
    return read_layer(node.op, node.attributes, shape, where=node.name)


def _num_bytes(args: Mapping[str, Any], layer: AffineLayer | None) -> int:
    total = sum(int(args.get(x, 0)) for x in ("activation_size", "parameter_size", "output_size"))
    op = args["op_name"].removeprefix("Fused")
    if op in _FLOAT_OPS and layer is not None:
        return total + math.prod(layer.weight_shape)  # packed, and left out; a byte each
    if op == "Gemm":
        shapes = [next(iter(shape.items())) for shape in args["input_type_shape"]]
        dtype, left = shapes[0]
        if len(shapes) < 2 or len(shapes[1][1]) != 2:  # the packed weight, which is left out
            columns = next(iter(args["output_type_shape"][0].values()))[-1]
            total += left[-1] * columns * (8 if dtype == "double" else 4)
    return total
