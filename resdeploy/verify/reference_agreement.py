"""An ONNX reference, node by node: the float64 evaluator against the runtime, on its own values.

Each node is computed in float64 on what the runtime had there, so that errors do not add up, and
the first node that differs by more than float32 explains is named. With one rounding for each of n
terms, in any order, and some more in the function itself,

    |y - y64| <= (n + 16) u (|y64| + s),        u = 2^-24,

with s the derivative along relative changes of the inputs (a backward error of (n + 16) u in each
of them). Kernels approximate exp, erf and the like to some u of their range, not of each value: so
|y64| + s is never taken below its mean over the tensor. Operators that only move, compare or round
values have no error at all.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.float64 import Evaluate, float64_evaluator
from resdeploy.verify.precision import UNIT_ROUNDOFF
from resdeploy.verify.run_layers import expose

__all__ = ["refuse_disagreement"]

# Of the functions of a mathematical library, and of those made of several operations.
_ROUNDINGS = 16
_STEP = 2.0**-24
_DIRECTIONS = 2

_EXACT = frozenset(
    {
        *("Abs", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "DepthToSpace"),
        *("Dropout", "Expand", "Flatten", "Floor", "Gather", "GlobalMaxPool", "Identity", "Max"),
        *("MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Round"),
        *("Sign", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose"),
        *("Unsqueeze", "Where"),
    }
)
_ELEMENTWISE = frozenset(
    {
        *("Add", "BatchNormalization", "Cast", "CastLike", "Celu", "Cos", "Div", "Elu", "Erf"),
        *("Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mean", "Mish", "Mul"),
        *("PRelu", "Pow", "Range", "Reciprocal", "Selu", "Sigmoid", "Sin", "Softplus"),
        *("Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu"),
    }
)


# Of the inputs, how many are values and not numbers that say what to do.
_NUM_MOVED = {"Range": 0, "Resize": 1, "Upsample": 1}


def refuse_disagreement(
    model: onnx.ModelProto,
    doubled: onnx.ModelProto,
    feeds: Mapping[str, Array],
    open_model: Callable[[bytes], Evaluate],
) -> None:
    """Raise where the evaluator and the runtime compute a node differently.

    Args:
        model: the reference.
        doubled: the same by `to_float64`.
        feeds: its inputs by name.
        open_model: opens a serialised model in the runtime, without optimisations.

    Raises:
        UnsupportedModelError: names the first node on which they disagree.
    """
    names = [name for node in doubled.graph.node for name in node.output if name]
    found = open_model(expose(model, names))(feeds)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in doubled.graph.initializer}
    values.update({**feeds, **found})
    for node in doubled.graph.node:
        read = {key: values[key] for key in _reads(node) if key in values}
        evaluate = float64_evaluator(_alone(node, doubled, read))
        exact = evaluate(read)
        spread = {} if node.op_type in _EXACT else _spread(evaluate, node, read, exact)
        for key, right in exact.items():
            excess = _excess(values[key], right, spread.get(key), _num_terms(node, read, right))
            if excess > 1:
                raise UnsupportedModelError(
                    f"The evaluator and the runtime disagree on operator {node.op_type}: by "
                    f"{excess:.2g} times what the rounding of its arithmetic explains.",
                    where=f"the node {node.name or key!r} of the reference",
                    fix="verify against the checkpoint, or a reference without this operator",
                )


def _excess(y: Array, exact: Array, spread: Array | None, num_terms: int) -> float:
    """Return the largest difference, in units of what rounding explains."""
    if y.shape != exact.shape:
        return math.inf
    if exact.dtype.kind != "f":
        return 0.0 if np.array_equal(y, exact) else math.inf
    # Infinities agree, and so does what float32 cannot hold.
    unit = UNIT_ROUNDOFF.get(y.dtype.name, UNIT_ROUNDOFF["float32"])  # type: ignore[call-overload]
    wide, largest = y.astype(np.float64), float(np.finfo(y.dtype).max)
    same = (wide == exact) | (np.isnan(wide) & np.isnan(exact))
    same |= np.isinf(wide) & (np.sign(wide) * exact >= largest)
    if same.all():
        return 0.0
    bound = unit * np.abs(exact)
    if spread is not None:
        scale = np.abs(exact) + spread
        typical = np.mean(scale, where=np.isfinite(scale))
        bound = (num_terms + _ROUNDINGS) * unit * np.maximum(scale, typical)
    # Below the normal numbers the error is absolute.
    tiny = (num_terms + _ROUNDINGS) * float(np.finfo(y.dtype).smallest_subnormal)
    with np.errstate(invalid="ignore"):
        excess = np.abs(wide - exact)[~same] / (np.broadcast_to(bound, y.shape)[~same] + tiny)
    return float(np.nan_to_num(excess, nan=math.inf).max())


def _spread(
    evaluate: Evaluate,
    node: onnx.NodeProto,
    read: Mapping[str, Array],
    exact: Mapping[str, Array],
) -> dict[str, Array]:
    """Return by output how far it moves for each relative change of its inputs."""
    signs = np.random.default_rng(0)
    fixed = set(node.input[_NUM_MOVED.get(node.op_type, len(node.input)) :])
    squares: dict[str, Array] = {}
    for _ in range(_DIRECTIONS):
        moved = {
            name: x
            if x.dtype.kind != "f" or name in fixed
            else x * (1 + _STEP * signs.choice([-1.0, 1.0], x.shape))
            for name, x in read.items()
        }
        for name, y in evaluate(moved).items():
            if y.dtype.kind == "f" and y.shape == exact[name].shape:
                with np.errstate(invalid="ignore", over="ignore"):
                    step = np.nan_to_num((y - exact[name]) / _STEP, posinf=0, neginf=0)
                squares[name] = squares.get(name, np.zeros(())) + step**2
    return {name: np.sqrt(square) for name, square in squares.items()}


def _num_terms(node: onnx.NodeProto, read: Mapping[str, Array], y: Array) -> int:
    """Return how many terms are added up in a value of y, or more."""
    inputs = [read[name] for name in node.input if name in read]
    if node.op_type in _EXACT | _ELEMENTWISE or not inputs:
        return len(inputs)
    if node.op_type in ("Conv", "ConvTranspose"):
        outputs = 0 if node.op_type == "Conv" else 1
        return int(inputs[1].size // inputs[1].shape[outputs])
    if node.op_type in ("Gemm", "MatMul"):
        return int(max(inputs[0].shape[-2:], default=1))
    if node.op_type in ("Resize", "Upsample"):
        return 4 * int(max(inputs[0].shape))  # taps, of places rounded in units of the last one
    rows = y.shape[0] if y.ndim else 1
    return max(int(x.size // max(1, rows)) for x in inputs)


def _alone(
    node: onnx.NodeProto, model: onnx.ModelProto, read: Mapping[str, Array]
) -> onnx.ModelProto:
    """Return a model of one node, which is fed all that it reads."""
    inputs = [
        onnx.helper.make_tensor_value_info(
            name,
            onnx.TensorProto.DOUBLE
            if x.dtype.kind == "f"
            else onnx.helper.np_dtype_to_tensor_dtype(x.dtype),
            None,
        )
        for name, x in read.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "node", inputs, outputs)
    return onnx.helper.make_model(
        graph, opset_imports=model.opset_import, functions=model.functions
    )


def _reads(node: onnx.NodeProto) -> Sequence[str]:
    """Return the names that a node reads, also in graphs inside it."""
    inner: Iterable[onnx.NodeProto] = (
        child for attribute in node.attribute for child in attribute.g.node
    )
    names = [name for name in node.input if name]
    return list(dict.fromkeys([*names, *(name for child in inner for name in _reads(child))]))
