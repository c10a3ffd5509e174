"""Constant folding in float64, rounded once.

Before:  weight = Mul(direction, Div(length, ReduceL2(direction)));  y = Conv(x, weight)
After:   y = Conv(x, weight)        with a constant in float64, until `round_once`

Weights made of constants (weight_norm, spectral_norm, pruning, a BatchNorm written out) would be
rounded at each step, and once more when something is folded into them. So a constant that was
computed waits in float64, under a value that still has the type of the model; a fold reads all its
digits.

So are the axes of a reduction made constants, which torch's exporter sends through a Reshape. With
axes that are computed, onnxsim infers no shape of the result, and makes ones of what Shape returns.

Left to others, which compute each value in its own type
1. other values that are only moved about: there is nothing to round;
2. operators unknown to float64's evaluator;
3. what a value goes through on the way to or from an operator that is not of a closed list: a cast
   between types of floats or to integers (bits that are cut off, weights that were made coarse on
   purpose), rounding, comparisons. In float64 they are other functions.
"""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.editor import constant_tensor, is_op, why_it_varies
from resdeploy.graph.float64 import evaluate_float64
from resdeploy.schema.exports import PassReport

__all__ = ["compute_exactly", "is_exact", "round_once"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_MOVES = frozenset(
    {
        *("Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten"),
        *("Gather", "Identity", "Pad", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze"),
    }
)
# Continuous: in float64 they compute the same, with more digits.
_ARITHMETIC = frozenset(
    {
        *("Abs", "Add", "BatchNormalization", "Clip", "Conv", "Cos", "Div", "Einsum", "Erf", "Exp"),
        *("Gemm", "InstanceNormalization", "LayerNormalization", "Log", "MatMul", "Max", "Mean"),
        *("Min", "Mul", "Neg", "Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax"),
        *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu"),
        *("Sigmoid", "Sin", "Softmax", "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Where"),
    }
)
_DRAWS = ("Random", "Bernoulli", "Multinomial", "Dropout")


def compute_exactly(model: ir.Model) -> PassReport:
    """Make a constant of each float, and of axes, computed from constants alone, in place."""
    wanted = _computed_constants(model.graph)
    for value in wanted:
        value.dtype = value.dtype or ir.DataType.INT64  # axes, whose type nobody has to state
    try:
        values = _evaluate(model, [str(value.name) for value in wanted]) if wanted else {}
    except UnsupportedModelError:  # 2
        values = {}
    for value in wanted:
        if value.name not in values:
            continue
        dtype = ir.DataType.DOUBLE if value.dtype in _FLOATS else ir.DataType.INT64
        tensor = ir.tensor(values[value.name], dtype=dtype, name=value.name)
        constant = ir.Value(name=value.name, type=value.type, const_value=tensor)
        constant.shape = ir.Shape(tensor.shape.numpy())
        value.replace_all_uses_with(constant)
        value.name = f"{value.name}_computed"
        model.graph.initializers.add(constant)
    RemoveUnusedNodesPass()(model)
    return PassReport(name="compute_exactly", num_changed=len(values))


def is_exact(value: ir.Value) -> bool:
    """True if a constant has more digits than the type of its value."""
    return value.const_value is not None and value.dtype not in (None, value.const_value.dtype)


def round_once(model: ir.Model) -> None:
    """Round the constants of `compute_exactly` to the type of the model, in place."""
    for value in model.graph.initializers.values():
        if is_exact(value):
            assert value.dtype is not None
            rounded = constant_tensor(value).numpy().astype(value.dtype.numpy())
            value.const_value = ir.tensor(rounded, dtype=value.dtype, name=value.name)


def _computed_constants(graph: ir.Graph) -> list[ir.Value]:
    """Return the floats that arithmetic makes of constants, where others read them, and axes."""
    constant: dict[ir.Node, bool] = {}  # whether there is arithmetic in it
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        sources = [value.producer() for value in inputs if why_it_varies(value) is not None]
        is_plain = not any(
            attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()
        )
        if is_plain and not node.op_type.startswith(_DRAWS) and all(s in constant for s in sources):
            rounds = node.op_type not in _MOVES
            constant[node] = rounds or any(constant[s] for s in sources if s is not None)
    for node in _around_other_functions(constant):  # 3
        constant[node] = False
    return [
        value
        for node, rounds in constant.items()
        for value in node.outputs
        if ((rounds and value.dtype in _FLOATS) or _are_axes(value))
        and not value.is_graph_output()
        and any(reader not in constant for reader, _ in value.uses())
    ]


def _are_axes(value: ir.Value) -> bool:
    """True for the axes of a reduction that are computed."""
    return why_it_varies(value) is not None and any(
        reader.op_type.startswith("Reduce") and index == 1 for reader, index in value.uses()
    )


def _around_other_functions(constant: Mapping[ir.Node, bool]) -> set[ir.Node]:
    """Return the nodes that are other functions in float64, with all before and after them."""
    found = {node for node in constant if not _is_same_function(node)}
    after, before = set(found), set(found)
    for node in constant:
        if any(value is not None and value.producer() in after for value in node.inputs):
            after.add(node)
    for node in reversed(list(constant)):
        if any(reader in before for value in node.outputs for reader, _ in value.uses()):
            before.add(node)
    return after | before


def _is_same_function(node: ir.Node) -> bool:
    if is_op(node, "Cast"):
        source, target = node.inputs[0], node.outputs[0].dtype
        if source is not None and _is_python_number(source):
            return True
        dtype = None if source is None else source.dtype
        if dtype is None and source is not None and why_it_varies(source) is None:
            dtype = constant_tensor(source).dtype
        return dtype == target or (target in _FLOATS and dtype is not None and not _is_float(dtype))
    return is_op(node, *_ARITHMETIC, *_MOVES)


def _is_python_number(value: ir.Value) -> bool:
    """True for the number of a forward pass, which has the type that it meets and every digit."""
    node = value.producer()
    if node is None or not is_op(node, "Constant") or "value" not in node.attributes:
        return False
    return len(node.attributes["value"].as_tensor().shape) == 0


def _is_float(dtype: ir.DataType) -> bool:
    return dtype.is_floating_point()


def _evaluate(model: ir.Model, names: list[str]) -> dict[str, npt.NDArray[Any]]:
    """Return those values by name, computed in float64."""
    part = model.clone()
    outputs = [v for node in part.graph for v in node.outputs if v.name in names]
    part.graph.outputs.clear()
    part.graph.outputs.extend(outputs)
    RemoveUnusedNodesPass()(part)
    part.graph.inputs.clear()
    return dict(evaluate_float64(ir.to_proto(part), {}))
