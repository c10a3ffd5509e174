"""An ONNX reference that the runtime computes as float64 does, and those that it does not."""

import functools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.float64 import UnknownOperatorError, to_float64
from resdeploy.verify.reference_agreement import refuse_disagreement
from resdeploy.verify.reference_file import load_reference
from tests.support.float64_grid import GRID, in_runtime, in_runtime_or_none

RNG = np.random.default_rng(0)
WEIGHTS = {"w": (8, 3, 3, 3), "b": (8,), "m": (8, 8), "v": (10, 8)}
BODY = """
    c = Conv<pads=[1,1,1,1]>(x, w, b) l = LeakyRelu<alpha=0.1>(c)
    p = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(l)
    t = Transpose<perm=[0,2,3,1]>(p) n = LayerNormalization<epsilon=0.00001>(t, b, b)
    q = MatMul(n, m) s = Softmax(q) e = Erf(s) k = Mul(e, n) r = ReduceMean<keepdims=0>(k, axes)
    y = Gemm<transB=1>(r, v)
"""


def network(body=BODY):
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N,3,12,12] x) => (float[N,10] y)'
        f"{{ {body} }}"
    )
    rng = np.random.default_rng(1)
    arrays = {k: rng.normal(size=shape).astype(np.float32) for k, shape in WEIGHTS.items()}
    for name, value in {**arrays, "axes": np.array([1, 2])}.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def judge(model, feeds, *, run=in_runtime):
    open_model = functools.partial(functools.partial, run)
    refuse_disagreement(model, to_float64(model), feeds, open_model)


FEEDS = {"x": RNG.normal(size=(1, 3, 12, 12)).astype(np.float32)}


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1, 1e4, 1e18])
def test_a_network_of_many_operators_agrees_at_any_scale(scale):
    judge(network(), {"x": FEEDS["x"] * np.float32(scale)})


@pytest.mark.parametrize("operator", sorted({row.op for row in GRID}))
def test_rounding_alone_never_refuses_an_operator(operator):
    for row in GRID:
        # A sample, as each takes several evaluations.
        for name, model, feeds in list(row.models())[::5] if row.op == operator else ():
            if in_runtime_or_none(model, feeds) is None:
                continue
            try:
                judge(model, feeds)
            except UnknownOperatorError:  # a corner
                continue
            except UnsupportedModelError as error:
                pytest.fail(f"{name}: {error}")


@pytest.mark.parametrize(
    ("operator", "before", "after"),
    [
        ("Conv", "pads=[1,1,1,1]", "pads=[2,0,1,1]"),
        ("LeakyRelu", "alpha=0.1", "alpha=0.1001"),
        ("AveragePool", "ceil_mode=1", "ceil_mode=1, count_include_pad=1, pads=[0,0,1,1]"),
        ("Transpose", "[0,2,3,1]", "[0,3,2,1]"),
        ("LayerNormalization", "0.00001", "0.0011"),
        ("Softmax", "s = Softmax(q)", "s = Softmax<axis=2>(q)"),
        ("Erf", "e = Erf(s)", "e = Tanh(s)"),
        ("ReduceMean", "ReduceMean", "ReduceL1"),
    ],
)
def test_the_operator_that_the_runtime_computes_otherwise_is_named(operator, before, after):
    other = network(BODY.replace(before, after))

    def run(model: bytes, inputs):
        exposed = onnx.ModelProto.FromString(model)
        del exposed.graph.node[:]
        exposed.graph.node.extend(other.graph.node)
        return in_runtime(exposed.SerializeToString(), inputs)

    with pytest.raises(UnsupportedModelError, match=f"disagree on operator {operator}:") as caught:
        judge(network(), FEEDS, run=run)
    assert "checkpoint" in caught.value.fix


# --- the file as a whole --------------------------------------------------------------------------

TAIL = "g = GlobalAveragePool(p) f = Flatten(g) y = Gemm<transB=1>(f, v)"
# Where onnx's own evaluator and the runtime once differed, the difference passed for noise.
ONCE_NOISE = {
    "AveragePool": "p = AveragePool<kernel_shape=[3,3], strides=[3,3], ceil_mode=1>(c)",
    "MaxPool": "p = MaxPool<kernel_shape=[3,3], pads=[0,0,1,1], ceil_mode=1>(c)",
    "LpPool": "p = LpPool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1], ceil_mode=1>(c)",
    "LRN": "p = LRN<size=5, alpha=1.0>(c)",
    "LpNormalization": "p = LpNormalization<axis=1, p=1>(c)",
    "Gelu": "p = Gelu(c)",
}


def load(tmp_path, body, run=in_runtime):
    path = tmp_path / "reference.onnx"
    model = network(f"c = Conv<pads=[1,1,1,1]>(x, w, b) {body} {TAIL}")
    model.opset_import[0].version = 20
    path.write_bytes(model.SerializeToString())
    open_model = functools.partial(functools.partial, run)
    return load_reference(path, num_inputs=10, open_model=open_model)[0]


@pytest.mark.parametrize("operator", ONCE_NOISE)
def test_the_noise_of_a_reference_is_that_of_float32(operator, tmp_path):
    golden = load(tmp_path, ONCE_NOISE[operator])
    sizes = np.linalg.norm(golden.reference, axis=1)
    assert (golden.noise_l2 < 20 * 2.0**-24 * sizes).all()
    assert (golden.noise_l2 > 0).all()


def test_a_runtime_that_differs_on_one_input_alone_is_found(tmp_path):
    odd = load(tmp_path, "p = Tanh(c)").inputs[7]

    def run(model: bytes, inputs):
        values = in_runtime(model, inputs)
        hit = (inputs["x"] == odd).all(axis=(1, 2, 3))
        if "p" in values:
            values["p"][hit] *= np.float32(1.001)
        values["y"][hit] *= np.float32(1.001)
        return values

    with pytest.raises(UnsupportedModelError, match="disagree on operator Tanh:"):
        load(tmp_path, "p = Tanh(c)", run)


def test_a_reference_with_a_corner_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"MaxPool \(auto_pad = SAME with dilations\)"):
        load(tmp_path, 'p = MaxPool<kernel_shape=[3,3], auto_pad="SAME_UPPER", dilations=[2,2]>(c)')
