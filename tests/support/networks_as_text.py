"""Networks written as ONNX text, compared by their normal forms and by what they compute."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper, parser

from resdeploy.graph.float64 import evaluate_float64
from resdeploy.verify.compare_structure import align
from resdeploy.verify.normal_form import skeleton_of
from resdeploy.verify.weights import judge_static

_LITERAL = re.compile(r"([%$])(\[[^\]]*\]|-?[\d.e-]+)")


def network(
    body: str,
    weights: Mapping[str, np.ndarray],
    *,
    inputs: str,
    opset: int = 20,
    real: str = "double",
):
    """Return a model; `%[1, 2]` is a constant of integers, `$0.5` one of type `real`."""
    literals: dict[str, np.ndarray] = {}
    kind = {"double": np.float64, "float": np.float32}[real]

    def name_of(match: re.Match[str]) -> str:
        dtype = np.int64 if match[1] == "%" else kind
        literals[f"literal{len(literals)}"] = np.array(eval(match[2]), dtype)
        return f"literal{len(literals) - 1}"

    text = _LITERAL.sub(name_of, body)
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>\n'
        f"g ({inputs}) => ({real}[n_out] y) {{ {text} }}"
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    used = {name for node in proto.graph.node for name in node.input}
    for name, value in {**weights, **literals}.items():
        if name in used:
            array = np.asarray(value)
            array = array.astype(kind) if array.dtype.kind == "f" else array
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def is_same(first: onnx.ModelProto, second: onnx.ModelProto) -> bool:
    """True if both have one normal form and, to half a float32 ulp, the same numbers."""
    alignment = align(skeleton_of(first), skeleton_of(second))
    if not alignment.result.isomorphic:
        return False
    return judge_static(alignment.pairs, is_exact=False, dtype="float32").passed


def feeds_of(model: onnx.ModelProto, batch: int, side: int = 8) -> dict[str, np.ndarray]:
    """Return seeded inputs, the open sizes set."""
    rng = np.random.default_rng(batch)
    feeds = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [d.dim_value or (batch if k == 0 else side) for k, d in enumerate(dims)]
        feeds[value.name] = rng.normal(size=shape)
    return feeds


def outputs(model: onnx.ModelProto, batch: int, side: int = 8) -> np.ndarray:
    """Return what `model` computes in float64 of seeded inputs, its open sizes set."""
    return evaluate_float64(model, feeds_of(model, batch, side))["y"]


def are_equal(first: onnx.ModelProto, second: onnx.ModelProto, batch: int, rtol=1e-9) -> bool:
    """True if both compute the same in float64."""
    one, two = outputs(first, batch), outputs(second, batch)
    if one.shape != two.shape:
        return False
    # Where everything cancels, what is left of values near one is their rounding.
    size = np.max(np.abs(one[np.isfinite(one)]), initial=1e-3)
    return bool(np.allclose(one, two, rtol=rtol, atol=rtol * size, equal_nan=True))


def shape_for(model: onnx.ModelProto, batch: int) -> tuple[int, ...]:
    """Return the shape that the normal form of `model` gives its output, its batch set."""
    (shape,) = skeleton_of(model).shapes
    text = str(tuple(shape)).replace("n0.0", str(batch))
    return tuple(eval(text, {"floor": math.floor}))


def check_rule(
    first: onnx.ModelProto, second: onnx.ModelProto, others: Sequence[onnx.ModelProto]
) -> None:
    """Assert that two networks are one, by form and by value, and the others are not."""
    assert is_same(first, second)
    assert all(are_equal(first, second, batch) for batch in (1, 3, 33))
    assert shape_for(first, 3) == outputs(first, 3).shape
    for other in others:
        assert not is_same(first, other)
        assert not are_equal(first, other, 3), "the near miss must be another network"
