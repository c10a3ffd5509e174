"""The float64 evaluator against ONNX's own node tests and ONNX Runtime, operator by operator."""

import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.float64 import UnknownOperatorError, evaluate_float64
from resdeploy.graph.float64_corners import CORNERS
from resdeploy.graph.float64_operators import WRITTEN_OUT
from tests.support.float64_grid import (
    GRID,
    IMAGE,
    SMALL,
    TIES,
    Row,
    X,
    floats,
    in_runtime_or_none,
    ints,
    number,
    reals,
)

PAGE = Path(__file__).parents[2] / "docs" / "closed-world.md"
OPERATORS = sorted({row.op for row in GRID})


def outcome(model, feeds):
    """Return the outputs, or the refusal."""
    try:
        return list(evaluate_float64(model, feeds).values())
    except UnsupportedModelError as error:
        return error


# --- ONNX's own node tests ------------------------------------------------------------------------


def plain(value):
    """An array of any type that numpy has; None of others."""
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    value = np.asarray(value)
    is_numpy = value.dtype.isbuiltin == 1 and value.dtype.kind in "fiub"
    return value if is_numpy or value.dtype.name == "bfloat16" else None


@pytest.fixture(scope="module")
def node_tests():
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        return collect_testcases(None)


def test_onnx_node_tests_agree_in_float64(node_tests):
    judged, wrong = Counter(), []
    for case in node_tests:
        nodes = case.model.graph.node
        if len(nodes) != 1 or nodes[0].domain or nodes[0].op_type not in OPERATORS:
            continue
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        # A test of an operator that never changed asks for opset 1.
        model.opset_import[0].version = max(7, model.opset_import[0].version)
        for given, expected in case.data_sets:
            arrays = list(map(plain, given))
            if any(x is None for x in (*arrays, *map(plain, expected))):
                continue
            names = [value.name for value in model.graph.input]
            found = outcome(model, dict(zip(names, arrays, strict=True)))
            if isinstance(found, UnknownOperatorError):
                continue  # a corner
            judged[nodes[0].op_type] += 1
            digits = DIGITS.get(case.name, 9)
            if isinstance(found, Exception) or not all(
                agrees(y, plain(right), digits) for y, right in zip(found, expected, strict=True)
            ):
                wrong.append(case.name)
    assert wrong == []
    # ThresholdedRelu, Celu and the like have few tests; each has one at least.
    assert set(OPERATORS) == set(judged)


def agrees(y, expected, digits):
    """True if y is what was expected, but for its rounding to the type of that."""
    if y.shape != expected.shape:
        return False
    if y.dtype.kind != "f":
        return bool((y == expected).all())
    # Those of float64 have constants of float32 in them.
    rounding = {"float64": 1e-6, "float32": 1e-5, "float16": 4e-3, "bfloat16": 1.6e-2}
    rtol = max(rounding[expected.dtype.name], 10.0**-digits)
    return np.allclose(y, expected.astype(np.float64), rtol=rtol, atol=1e-6, equal_nan=True)


# What the test states, where it is not computed.
DIGITS = {"test_averagepool_2d_ceil_last_window_starts_on_pad": 3}


# --- ONNX Runtime ---------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_runtime_agrees_over_the_grid(operator):
    judged, wrong = 0, []
    for row in GRID:
        for name, model, feeds in row.models() if row.op == operator else ():
            expected = in_runtime_or_none(model, feeds)
            found = None if expected is None else outcome(model, feeds)
            if expected is None or isinstance(found, UnknownOperatorError):
                continue
            judged += 1
            if isinstance(found, Exception) or not all(map(is_close, found, expected.values())):
                wrong.append(name)
    assert wrong == []
    assert judged > 0


def is_close(y, expected):
    """True if y is what float32 made, but for roundings of the whole."""
    if y.shape != expected.shape or (y.dtype != expected.dtype and expected.dtype.kind != "f"):
        return False
    if expected.dtype.kind != "f":
        return bool((y == expected).all())
    size = np.abs(y).max(initial=0)
    return y.dtype == np.float64 and np.allclose(y, expected, rtol=1e-5, atol=2e-6 * size)


# --- no float32 inside ----------------------------------------------------------------------------

# Smooth where they are not flat; the others move values, or compare them.
SMOOTH = [
    Row("Gelu", reals(4, 5), approximate=("none", "tanh")),
    *(Row(op, reals(4, 5)) for op in ("Erf", "Sigmoid", "Tanh", "Softplus", "Mish", "HardSwish")),
    *(Row(op, reals(4, 5)) for op in ("Exp", "Sin", "Elu", "Selu", "Celu", "Softsign", "Relu")),
    Row("Softmax", SMALL),
    Row("LogSoftmax", SMALL),
    Row("LRN", X, size=3, alpha=0.3),
    Row("LpNormalization", SMALL),
    Row("BatchNormalization", X, reals(4), reals(4), reals(4), np.abs(reals(4))),
    Row("InstanceNormalization", X, reals(4), reals(4)),
    Row("LayerNormalization", X, reals(13), reals(13)),
    Row("GroupNormalization", X, reals(2), reals(2), num_groups=2, opsets=[18]),
    Row("GroupNormalization", X, reals(4), reals(4), num_groups=2, opsets=[21]),
    Row("Conv", X, reals(3, 4, 3, 3), reals(3)),
    Row("ConvTranspose", X, reals(4, 3, 3, 3), reals(3)),
    Row("Gemm", reals(3, 4), reals(4, 5), reals(5), alpha=0.3, beta=0.7),
    Row("MatMul", reals(3, 4), reals(4, 5)),
    Row("Einsum", reals(3, 4), reals(4, 5), equation="ij,jk->ik"),
    *(Row(op, X, kernel_shape=[3, 3]) for op in ("AveragePool", "LpPool", "MaxPool")),
    *(Row(op, X, axes=[1]) for op in ("ReduceMean", "ReduceL2", "ReduceLogSumExp")),
    Row("CumSum", SMALL, number(1, np.int64)),
    *(Row(op, reals(3, 4), reals(3, 4)) for op in ("Add", "Mul", "Mean", "Max")),
    *(Row("Resize", IMAGE, None, None, ints(1, 2, 9, 9), mode=m) for m in ("linear", "cubic")),
    Row("Cast", SMALL, to=onnx.TensorProto.FLOAT),
    Row("CastLike", SMALL, reals(1)),
]


@pytest.mark.parametrize("row", SMOOTH, ids=lambda row: row.op)
def test_nothing_is_rounded_to_float32_on_the_way(row):
    """A step of 1e-7 in the inputs is a difference quotient, not a jump of float32."""
    row.opsets = [opset for opset in row.opsets if "Reduce" not in row.op or opset < 18][-1:]
    for name, model, feeds in row.models():
        directions = {k: np.random.default_rng(1).normal(size=x.shape) for k, x in feeds.items()}

        def moved(step, model=model, feeds=feeds, directions=directions):
            return outcome(
                model,
                {
                    k: x + step * directions[k] if x.dtype.kind == "f" else x
                    for k, x in feeds.items()
                },
            )[0]

        start = moved(0.0)
        once, twice = ((moved(step) - start) / step for step in (1e-7, 2e-7))
        assert np.abs(once - twice).max() < 1e-3 * np.abs(once).max(), name


# --- corners --------------------------------------------------------------------------------------

NAN = floats(1, np.nan, 2)
HALF = {"kernel_shape": [3, 3], "dilations": [2, 2], "auto_pad": "SAME_UPPER"}
UP = {"opsets": [13], "constants": (1, 2, 3)}
# By operator, a call in each of its corners, in the order of the table.
REFUSED = (
    *(Row(op, X, **HALF, opsets=[22]) for op in ("AveragePool", "LpPool", "MaxPool")),
    Row("MaxPool", X, kernel_shape=[2, 2], outputs=2),
    Row("ConvTranspose", X, reals(4, 1, 2, 2), auto_pad=("SAME_UPPER", "SAME_LOWER")),
    Row("ConvTranspose", X, reals(4, 1, 2, 2), strides=[2, 2], output_shape=[26, 26]),
    Row("BatchNormalization", X, *(reals(4) for _ in "1234"), training_mode=1, opsets=[14, 15]),
    Row("BatchNormalization", X, *(reals(4) for _ in "1234"), spatial=0, opsets=[7]),
    Row("LayerNormalization", SMALL, reals(4), stash_type=10),
    Row("GroupNormalization", X, reals(4), reals(4), num_groups=2, stash_type=10, opsets=[21]),
    Row("Dropout", SMALL, number(0.5), number(1, np.bool_), opsets=[12, 13, 22]),
    Row("Dropout", SMALL, outputs=2, opsets=[7, 10]),
    *(Row(op, NAN, axis=0) for op in ("ArgMax", "ArgMin")),
    Row("Clip", floats(1, 2), number(np.nan), opsets=[11, 12, 13]),
    Row("MaxPool", NAN[None, None], kernel_shape=[2]),
    *(Row(op, NAN) for op in ("ReduceMax", "ReduceMin")),
    Row("TopK", NAN, ints(2), outputs=2, opsets=[10, 11]),
    Row("Clip", floats(1, np.inf), number(0), opsets=[11, 12, 13]),
    Row("TopK", TIES, ints(2), sorted=0, outputs=2, opsets=[11]),
    Row("ReduceMean", reals(2, 0, 3)),
    *(Row(op, ints(1, 2)) for op in ("ReduceLogSumExp", "ReduceSumSquare")),
    Row("Cast", floats(1), to=onnx.TensorProto.FLOAT8E4M3FN, opsets=[19]),
    Row("CastLike", floats(1), np.array(["text"]), opsets=[15]),
    Row("Cast", floats(1, 300, np.nan), to=(onnx.TensorProto.INT8, onnx.TensorProto.UINT64)),
    Row("CastLike", floats(1, -1), number(1, np.uint8)),
    Row("Div", ints(1, 2), ints(1, 0)),
    Row("Pow", ints(1, 2), ints(-1), opsets=[12, 13, 15]),
    Row("Range", *map(number, (0, 0.3, 0.1))),
    Row(
        *("Resize", IMAGE, floats(0, 0, 0.2, 0.3, 1, 1, 0.8, 0.9), None, ints(1, 2, 3, 4)),
        coordinate_transformation_mode="tf_crop_and_resize",
        **UP,
    ),
    Row("Resize", IMAGE, None, floats(1, 1, 2, 2.6), **UP),
    Row("Upsample", IMAGE, floats(1, 1, 2, 2.6), opsets=[9]),
    Row(
        *("Resize", IMAGE, None, floats(1, 1, 0.77, 0.77)),
        coordinate_transformation_mode="align_corners",
        mode="linear",
        **UP,
    ),
    Row("Resize", IMAGE, floats(1, 1, 0.5, 0.5), opsets=[10]),
    Row(
        *("Resize", IMAGE, None, None, ints(8, 7)),
        axes=[-2, -1],
        keep_aspect_ratio_policy=("not_larger", "not_smaller"),
        opsets=[18, 19],
    ),
    Row("Resize", IMAGE, None, None, ints(1, 2, 2, 3), nearest_mode="floor", **UP),
    Row("Upsample", reals(1, 1, 10), floats(1, 1, 1.2), opsets=[9]),
)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.op)
def test_a_corner_is_refused_by_name(row):
    for name, model, feeds in row.models():
        error = outcome(model, feeds)
        assert isinstance(error, UnknownOperatorError), name
        assert re.match(rf"{row.op} \(.+\) is no reference in float64: .+\.$", error.what), (
            error.what
        )
        assert "o0" in error.where


def test_every_corner_of_every_operator_is_tried():
    tried = set()
    for row in REFUSED:
        for _, model, feeds in row.models():
            tried.add(tuple(re.findall(r"(\w+) \((.+)\) is no", outcome(model, feeds).what)[0]))
    assert tried == {(op, corner.name) for corner in CORNERS for op in corner.operators}


def test_operators_before_opset_7_are_refused():
    model = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["": 6]> g (float[2] x, float[2] b) => (float[2] y)'
        "{ y = Add(x, b) }"
    )
    with pytest.raises(UnknownOperatorError, match="opset 6 are not known"):
        evaluate_float64(model, {"x": floats(1, 2), "b": floats(1, 2)})


# --- the page -------------------------------------------------------------------------------------


def test_the_page_has_the_operators_their_conditions_and_their_corners():
    section = PAGE.read_text(encoding="utf-8").partition("## Operators in float64")[2]
    rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    expected = []
    for operator in OPERATORS:
        names = "; ".join(c.name for c in CORNERS if operator in c.operators) or "none"
        written = WRITTEN_OUT.get(operator)
        how = "onnx's evaluator" if written is None else written.__doc__.strip().rstrip(".")
        expected.append(f"| `{operator}` | {how} | {names} |")
    assert rows == expected, "\n".join(expected)
