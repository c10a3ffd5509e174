"""Two ways to write a network have one skeleton; two networks have two."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from resdeploy.errors import UnsupportedModelError
from resdeploy.verify.compare_structure import align
from resdeploy.verify.normal_form import skeleton_of

RNG = np.random.default_rng(0)
IMAGE = "float[N, 4, 8, 8] x"
WEIGHTS = {
    "w": RNG.normal(size=(6, 4, 3, 3)),
    "b": RNG.normal(size=6),
    "m": RNG.normal(size=(6, 5)),
    "mt": RNG.normal(size=(5, 6)),
    "c": RNG.normal(size=5),
    "gamma": RNG.uniform(0.5, 2, 6),
    "beta": RNG.normal(size=6),
    "mean": RNG.normal(size=6),
    "var": RNG.uniform(0.5, 2, 6),
}
WEIGHTS["mt"] = WEIGHTS["m"].T


def model(body, *, inputs=IMAGE, opset=18, weights=(), dtype=np.float32):
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]>\n'
        f"g ({inputs}) => (float[N, a] y) {{ {body} }}"
    )
    used = {name for node in proto.graph.node for name in node.input}
    for name, value in {**WEIGHTS, **dict(weights)}.items():
        if name in used:
            array = value if value.dtype.kind == "i" else value.astype(dtype)
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def same(first, second) -> bool:
    return align(skeleton_of(first), skeleton_of(second)).result.isomorphic


HEAD = "Flatten(p)"
EQUAL = {
    "defaults stated or not": (
        "y = Conv(x, w, b)",
        (
            "y = Conv<strides=[1,1], pads=[0,0,0,0], dilations=[1,1], group=1, kernel_shape=[3,3]>"
            "(x, w, b)"
        ),
    ),
    "auto_pad VALID": ("y = Conv(x, w)", 'y = Conv<auto_pad="VALID">(x, w)'),
    "identity and dropout": (
        "h = Relu(x) y = Conv(h, w)",
        "i = Identity(x) h = Relu(i) d = Dropout(h) y = Conv(d, w)",
    ),
    "global pooling": (
        "p = GlobalAveragePool(x) y = Flatten(p)",
        "a = Constant<value_ints=[2, 3]>() y = ReduceMean<keepdims=0>(x, a)",
    ),
    "a shape computed at run time": (
        "p = GlobalAveragePool(x) y = Flatten(p)",
        (
            "p = GlobalAveragePool(x) s = Shape<end=1>(x) m = Constant<value_ints=[-1]>()"
            " t = Concat<axis=0>(s, m) y = Reshape(p, t)"
        ),
    ),
    "order of a sum": (
        "a = Relu(x) b2 = Abs(x) y = Add(a, b2)",
        "a = Relu(x) b2 = Abs(x) y = Add(b2, a)",
    ),
    "batchnorm folded or not": (
        "h = Conv(x, w) r = BatchNormalization(h, gamma, beta, mean, var) y = Relu(r)",
        "h = Conv(x, w, b) y = Relu(h)",
    ),
    "a slice that names whole axes": (
        (
            "s = Constant<value_ints=[0, 0]>() e = Constant<value_ints=[9223372036854775807, 3]>()"
            " a = Constant<value_ints=[0, 2]>() y = Slice(x, s, e, a)"
        ),
        (
            "s = Constant<value_ints=[0]>() e = Constant<value_ints=[3]>()"
            " a = Constant<value_ints=[2]>() y = Slice(x, s, e, a)"
        ),
    ),
    "padding by axis or in full": (
        "p = Constant<value_ints=[0, 1, 0, 0, 0, 2, 0, 0]>() y = Pad(x, p)",
        (
            "p = Constant<value_ints=[1, 2]>() z = Constant<value_float=0.0>()"
            " a = Constant<value_ints=[1]>() y = Pad(x, p, z, a)"
        ),
    ),
    "a constant by way of an Identity": ("y = Conv(x, w)", "v = Identity(w) y = Conv(x, v)"),
}


@pytest.mark.parametrize(("first", "second"), EQUAL.values(), ids=EQUAL)
def test_one_network_written_in_two_ways(first, second):
    assert same(model(first), model(second))


DIFFERENT = {
    "padding": ("y = Conv<pads=[1,1,1,1]>(x, w)", "y = Conv(x, w)"),
    "stride": ("y = Conv<strides=[2,2]>(x, w)", "y = Conv(x, w)"),
    "dilation": ("y = Conv<dilations=[2,2]>(x, w)", "y = Conv(x, w)"),
    "ceil mode": (
        "y = MaxPool<kernel_shape=[2,2], ceil_mode=1>(x)",
        "y = MaxPool<kernel_shape=[2,2]>(x)",
    ),
    "counted padding": (
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)",
    ),
    "another padding of zeros": (
        "p = Constant<value_ints=[0, 1, 0, 0, 0, 2, 0, 0]>() y = Pad(x, p)",
        "p = Constant<value_ints=[0, 2, 0, 0, 0, 1, 0, 0]>() y = Pad(x, p)",
    ),
    "padding with ones": (
        (
            "p = Constant<value_ints=[0, 1, 0, 0, 0, 2, 0, 0]>() v = Constant<value_float=1.0>()"
            " y = Pad(x, p, v)"
        ),
        "p = Constant<value_ints=[0, 1, 0, 0, 0, 2, 0, 0]>() y = Pad(x, p)",
    ),
    "a missing relu": ("h = Relu(x) y = Conv(h, w)", "y = Conv(x, w)"),
    "mean over another axis": (
        "a = Constant<value_ints=[2, 3]>() y = ReduceMean(x, a)",
        "a = Constant<value_ints=[1, 3]>() y = ReduceMean(x, a)",
    ),
    "the bound of a clip": (
        "l = Constant<value_float=0.0>() u = Constant<value_float=6.0>() y = Clip(x, l, u)",
        "l = Constant<value_float=0.0>() u = Constant<value_float=5.0>() y = Clip(x, l, u)",
    ),
    "a transposition": (
        "y = Transpose<perm=[0, 1, 3, 2]>(x)",
        "y = Transpose<perm=[0, 1, 2, 3]>(x)",
    ),
    "another slice": (
        "s = Constant<value_ints=[0]>() e = Constant<value_ints=[3]>() y = Slice(x, s, e)",
        "s = Constant<value_ints=[0]>() e = Constant<value_ints=[2]>() y = Slice(x, s, e)",
    ),
    "an attribute of its own": ("y = LeakyRelu<alpha=0.1>(x)", "y = LeakyRelu<alpha=0.2>(x)"),
}


@pytest.mark.parametrize(("first", "second"), DIFFERENT.values(), ids=DIFFERENT)
def test_two_networks(first, second):
    assert not same(model(first), model(second))


ROWS = "float[N, 6] x"
LINEAR = {
    "gemm": "y = Gemm(x, m, c)",
    "gemm transposed": "y = Gemm<transB=1>(x, mt, c)",
    "matmul and add": "h = MatMul(x, m) y = Add(h, c)",
    "add and matmul": "h = MatMul(x, m) y = Add(c, h)",
}


@pytest.mark.parametrize("body", LINEAR.values(), ids=LINEAR)
def test_every_matrix_product_has_its_weight_by_rows(body):
    (node,) = skeleton_of(model(body, inputs=ROWS)).nodes
    assert node.op == "Linear"
    assert (node.reads, node.writes) == ("x", "y")
    np.testing.assert_array_equal(node.affine.weight, WEIGHTS["m"].T.astype(np.float32))
    np.testing.assert_array_equal(node.affine.bias, WEIGHTS["c"].astype(np.float32))


def test_alpha_and_beta_are_in_the_numbers():
    (node,) = skeleton_of(model("y = Gemm<alpha=2.0, beta=0.5>(x, m, c)", inputs=ROWS)).nodes
    np.testing.assert_array_equal(node.affine.weight, 2 * WEIGHTS["m"].T.astype(np.float32))
    np.testing.assert_array_equal(node.affine.bias, 0.5 * WEIGHTS["c"].astype(np.float32))


def test_a_product_that_others_read_keeps_its_bias_apart():
    body = "h = MatMul(x, m) a = Add(h, c) y = Mul(a, h)"
    assert [n.op for n in skeleton_of(model(body, inputs=ROWS)).nodes] == ["Linear", "Add", "Mul"]


def test_a_batchnorm_that_stays_is_a_layer_of_scale_and_shift():
    body = "r = Relu(x) y = BatchNormalization(r, gamma, beta, mean, var)"
    node = skeleton_of(model(body, inputs="float[N, 6, 8, 8] x")).nodes[-1]
    scale = WEIGHTS["gamma"].astype(np.float32) / np.sqrt(WEIGHTS["var"].astype(np.float32) + 1e-5)
    np.testing.assert_allclose(node.affine.weight, scale, rtol=1e-6)
    shift = WEIGHTS["beta"] - WEIGHTS["mean"] * scale
    np.testing.assert_allclose(node.affine.bias, shift, atol=1e-6)
    assert (node.affine.bias_magnitude >= np.abs(node.affine.bias) - 1e-12).all()


def test_the_folded_weight_is_exact():
    body = "h = Conv(x, w, b) y = BatchNormalization(h, gamma, beta, mean, var)"
    (node,) = skeleton_of(model(body)).nodes
    gamma, var, w = (WEIGHTS[k].astype(np.float32).astype(float) for k in ("gamma", "var", "w"))
    scale = gamma / np.sqrt(var + float(np.float32(1e-5)))
    np.testing.assert_allclose(node.affine.weight, w * scale[:, None, None, None], rtol=1e-15)
    assert node.affine.dtype == "float32"
    unfolded = skeleton_of(model(body), fold=False)
    assert [n.op for n in unfolded.nodes] == ["Conv", "BatchNormalization"]


def test_products_of_a_convolution_are_counted():
    def num_products(body, **weights):
        (node,) = skeleton_of(model(body, weights=weights)).nodes
        return node.affine.num_products

    assert num_products("y = Conv(x, w)") == 4 * 9
    grouped = RNG.normal(size=(6, 2, 3, 3))
    assert num_products("y = Conv<group=2>(x, v)", v=grouped) == 2 * 9
    transposed = RNG.normal(size=(4, 3, 2, 2))
    assert num_products("y = ConvTranspose<group=2>(x, v)", v=transposed) == 2 * 4


def test_control_flow_is_refused():
    body = (
        "t = Constant<value = bool {1}>() y = If(t) "
        "<then_branch = a () => (p) { p = Relu(x) }, else_branch = b () => (q) { q = Abs(x) }>"
    )
    with pytest.raises(UnsupportedModelError, match="branches"):
        skeleton_of(model(body))


def test_a_constant_output_is_refused():
    proto = model("y = Constant<value_floats=[1.0]>()")
    with pytest.raises(UnsupportedModelError, match="constant"):
        skeleton_of(proto)


def test_the_model_is_not_changed():
    proto = model("h = Conv(x, w, b) y = BatchNormalization(h, gamma, beta, mean, var)")
    before = onnx.ModelProto()
    before.CopyFrom(proto)
    skeleton_of(proto)
    assert proto == before


def test_a_conv_of_another_domain_is_no_layer():
    proto = model("y = Conv(x, w)")
    proto.graph.node[0].domain = "com.example"
    (node,) = skeleton_of(proto).nodes
    assert (node.op, node.affine) == ("com.example.Conv", None)
