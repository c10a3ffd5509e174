"""Operators into which ONNX Runtime fuses others: each is what it was made of, and no near one.

As in `test_rules.py`, the first two networks of a case are one, the others are not; here it is ONNX
Runtime that says so, in float32: nobody else knows these operators.
"""

import numpy as np
import onnxruntime as ort
import pytest
from networks_as_text import feeds_of, is_same, network

from resdeploy.errors import UnsupportedModelError
from resdeploy.verify.normal_form import skeleton_of

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(size=(6, 4, 3, 3)),
    "b": RNG.normal(size=6),
    "w4": RNG.normal(size=(4, 4, 3, 3)),
    "b4": RNG.normal(size=4),
    "c4": RNG.normal(size=(4, 1, 1)),
    "m": RNG.normal(size=(8, 5)),
    "k": RNG.normal(size=(8, 8)),
    "c5": RNG.normal(size=5),
    "g8": RNG.normal(size=8),
    "v8": RNG.normal(size=8),
    "u8": RNG.normal(size=8),
}
WEIGHTS |= {"mt": WEIGHTS["m"].T, "kt": WEIGHTS["k"].T}


def fused(name, operands="x, w, b", **attributes):
    """Return `y = FusedConv<...>(...)` and the like."""
    stated = ", ".join(
        f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}"
        for key, value in attributes.items()
    )
    return f"y = com.microsoft.{name}" + (f"<{stated}>" if stated else "") + f"({operands})"


def convolution(activation, *params, **attributes):
    if params:
        attributes["activation_params"] = list(params)
    return fused("FusedConv", activation=activation, **attributes)


CONV = "h = Conv(x, w, b) "
SAME = {"pads": [1, 1, 1, 1]}
ADDED = "h = Conv<pads=[1, 1, 1, 1]>(x, w4, b4) "
ROWS = "r = Reshape(x, %[-1, 8]) "
TURNED = "t = Transpose<perm=[0, 1, 3, 2]>(x) "
TWO = "r = Reshape(x, %[0, 32, 8]) a = Abs(r) "
SUM = TWO + "s = Add(r, a) "

CASES = {
    "relu": (convolution("Relu"), CONV + "y = Relu(h)", convolution("Tanh"), CONV + "y = Abs(h)"),
    "tanh": (convolution("Tanh"), CONV + "y = Tanh(h)", convolution("Sigmoid")),
    "sigmoid": (convolution("Sigmoid"), CONV + "y = Sigmoid(h)", convolution("Tanh")),
    "clip": (
        convolution("Clip", -0.5, 2.0),
        CONV + "y = Clip(h, $-0.5, $2.0)",
        convolution("Clip", -0.5, 1.0),
        convolution("Clip", 0.5, 2.0),
    ),
    "leaky relu": (
        convolution("LeakyRelu", 0.125),
        CONV + "y = LeakyRelu<alpha=0.125>(h)",
        convolution("LeakyRelu", 0.25),
    ),
    "hard sigmoid": (
        convolution("HardSigmoid", 0.25, 0.5),
        CONV + "y = HardSigmoid<alpha=0.25, beta=0.5>(h)",
        convolution("HardSigmoid", 0.25, 0.25),
        convolution("HardSigmoid", 0.5, 0.5),
    ),
    "a window": (
        convolution("Relu", pads=[1, 0, 1, 2], strides=[2, 1], dilations=[1, 2]),
        "h = Conv<pads=[1, 0, 1, 2], strides=[2, 1], dilations=[1, 2]>(x, w, b) y = Relu(h)",
        convolution("Relu", pads=[0, 1, 2, 1], strides=[2, 1], dilations=[1, 2]),
    ),
    "a sum": (
        fused("FusedConv", "x, w4, b4, x", activation="Relu", **SAME),
        ADDED + "s = Add(h, x) y = Relu(s)",
        ADDED + "s = Relu(h) y = Add(s, x)",
        fused("FusedConv", "x, w4, b4", activation="Relu", **SAME),
    ),
    "a sum without a bias": (
        fused("FusedConv", "x, w4, , x", **SAME),
        "h = Conv<pads=[1, 1, 1, 1]>(x, w4) y = Add(x, h)",
        ADDED + "y = Add(h, x)",
    ),
    "a matrix": (
        ROWS + fused("FusedGemm", "r, mt, c5", activation="Relu", transB=1, alpha=0.5, beta=2.0),
        ROWS + "h = Gemm<transB=1, alpha=0.5, beta=2.0>(r, mt, c5) y = Relu(h)",
        ROWS + fused("FusedGemm", "r, mt, c5", activation="Relu", transB=1, alpha=0.5),
        ROWS + fused("FusedGemm", "r, mt, c5", activation="Tanh", transB=1, alpha=0.5, beta=2.0),
    ),
    "a matrix and a slope": (
        ROWS + fused("FusedGemm", "r, m, c5", activation="LeakyRelu", activation_alpha=0.125),
        ROWS + "h = Gemm(r, m, c5) y = LeakyRelu<alpha=0.125>(h)",
        ROWS + fused("FusedGemm", "r, m, c5", activation="LeakyRelu", activation_alpha=0.25),
        ROWS + fused("FusedGemm", "r, m", activation="LeakyRelu", activation_alpha=0.125),
    ),
    "a matrix and a hard sigmoid": (
        ROWS
        + fused(
            "FusedGemm",
            "r, m",
            activation="HardSigmoid",
            activation_alpha=0.25,
            activation_beta=0.5,
        ),
        ROWS + "h = Gemm(r, m) y = HardSigmoid<alpha=0.25, beta=0.5>(h)",
        ROWS
        + fused(
            "FusedGemm",
            "r, m",
            activation="HardSigmoid",
            activation_alpha=0.5,
            activation_beta=0.25,
        ),
    ),
    "a scaled product": (
        fused("FusedMatMul", "x, x", alpha=0.25, transB=1),
        TURNED + "h = MatMul(x, t) y = Mul(h, $0.25)",
        fused("FusedMatMul", "x, x", alpha=0.25, transA=1),
        fused("FusedMatMul", "x, x", alpha=0.5, transB=1),
    ),
    "a transposed first factor": (
        fused("FusedMatMul", "x, x", transA=1),
        TURNED + "y = MatMul(t, x)",
        fused("FusedMatMul", "x, x"),
    ),
    "a transposed constant": (
        fused("FusedMatMul", "x, mt", transB=1, alpha=2.0),
        "h = MatMul(x, m) y = Mul(h, $2.0)",
        fused("FusedMatMul", "x, mt", transB=1),
    ),
    "a constant first factor": (
        fused("FusedMatMul", "k, x", transA=1),
        "y = MatMul(kt, x)",
        fused("FusedMatMul", "k, x"),
    ),
    "gelu": (fused("Gelu", "x"), "y = Gelu(x)", fused("FastGelu", "x"), fused("QuickGelu", "x")),
    "gelu of a sum": (
        fused("BiasGelu", "x, g8"),
        "h = Add(x, g8) y = Gelu(h)",
        fused("BiasGelu", "x, v8"),
        fused("Gelu", "x"),
    ),
    "gelu by tanh": (
        fused("FastGelu", "x, g8"),
        'h = Add(x, g8) y = Gelu<approximate="tanh">(h)',
        fused("FastGelu", "x, v8"),
        fused("BiasGelu", "x, g8"),
    ),
    "gelu by a sigmoid": (
        fused("QuickGelu", "x"),
        "q = Mul(x, $1.702) s = Sigmoid(q) y = Mul(x, s)",
        fused("QuickGelu", "x", alpha=1.0),
    ),
    "a normalised sum": (
        TWO + fused("SkipLayerNormalization", "r, a, g8, v8", epsilon=0.5),
        SUM + "y = LayerNormalization<epsilon=0.5>(s, g8, v8)",
        TWO + fused("SkipLayerNormalization", "r, a, g8, v8", epsilon=0.25),
        TWO + fused("SkipLayerNormalization", "r, a, v8, g8", epsilon=0.5),
        TWO + fused("SkipLayerNormalization", "r, a, g8", epsilon=0.5),
    ),
    "a normalised sum with a bias": (
        TWO + fused("SkipLayerNormalization", "r, a, g8, v8, u8", epsilon=0.5),
        SUM + "z = Add(s, u8) y = LayerNormalization<epsilon=0.5>(z, g8, v8)",
        TWO + fused("SkipLayerNormalization", "r, a, g8, v8", epsilon=0.5),
    ),
    "the sum itself": (
        TWO
        + "n, , , s = com.microsoft.SkipLayerNormalization<epsilon=0.5>(r, a, g8, v8, u8)"
        + " y = Sub(n, s)",
        SUM + "z = Add(s, u8) n = LayerNormalization<epsilon=0.5>(z, g8, v8) y = Sub(n, z)",
        SUM + "z = Add(s, u8) n = LayerNormalization<epsilon=0.5>(z, g8, v8) y = Sub(n, s)",
    ),
    "the usual epsilon": (
        TWO + "q = Mul(r, $0.0001) " + fused("SkipLayerNormalization", "q, q, g8, v8"),
        TWO + "q = Mul(r, $0.0001) s = Add(q, q) y = LayerNormalization<epsilon=1e-12>(s, g8, v8)",
        TWO + "q = Mul(r, $0.0001) s = Add(q, q) y = LayerNormalization(s, g8, v8)",
    ),
}


def case(body):
    return network(body, WEIGHTS, inputs="float[N, 4, 8, 8] x", real="float")


def run(model):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    content = model.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feeds = {name: x.astype(np.float32) for name, x in feeds_of(model, 3).items()}
    return session.run(None, feeds)[0]


def are_equal(first, second):
    one, two = run(first), run(second)
    return one.shape == two.shape and np.allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("first", "second", "others"), [(a, b, c) for a, b, *c in CASES.values()],
                         ids=CASES)  # fmt: skip
def test_a_fused_operator_is_what_it_was_made_of(first, second, others):
    first, second, *others = map(case, (first, second, *others))
    assert is_same(first, second)
    assert are_equal(first, second)
    for other in others:
        assert not is_same(first, other)
        assert not are_equal(first, other), "the near miss must be another network"


REFUSED = {
    "a constant added": (fused("FusedConv", "x, w, b, c4"), "adds a constant"),
    "a row added": (
        "p = GlobalAveragePool(x) " + fused("FusedConv", "x, w4, b4, p", **SAME),
        "adds a value of another shape",
    ),
    "an unknown activation": (convolution("Softplus"), "ends in the activation 'Softplus'"),
    "bounds without numbers": (convolution("Clip"), "ends in the activation 'Clip'"),
    "a slope without a number": (convolution("LeakyRelu"), "ends in the activation"),
    "one number of two": (convolution("HardSigmoid", 0.5), "ends in the activation"),
    "a batch that turns": (fused("FusedMatMul", "x, x", transBatchA=1), "transposes its batch"),
    "another batch that turns": (
        fused("FusedMatMul", "x, x", transBatchB=1),
        "transposes its batch",
    ),
    "a bias of the input": (fused("BiasGelu", "x, x"), "adds a value"),
    "a mean told": (
        TWO + "n, s = com.microsoft.SkipLayerNormalization(r, a, g8) y = Add(n, s)",
        "tells its mean",
    ),
    "a root told": (
        TWO + "n, , s = com.microsoft.SkipLayerNormalization(r, a, g8) y = Add(n, s)",
        "tells its mean",
    ),
    "a skip for every input": (
        TWO + "q = ReduceMax(r, %[1]) " + fused("SkipLayerNormalization", "r, q, g8"),
        "broadcasts its skip",
    ),
    "another operator": (fused("Inverse", "x"), "is not on the closed list"),
}


@pytest.mark.parametrize(("body", "message"), REFUSED.values(), ids=REFUSED)
def test_a_corner_of_a_fused_operator_is_refused_by_name(body, message):
    with pytest.raises(UnsupportedModelError, match=rf"\w {message}"):
        skeleton_of(case(body))
