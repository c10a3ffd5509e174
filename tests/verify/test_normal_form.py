"""The skeleton of a model: its numbers, its shapes, and what is refused by name."""

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
    np.testing.assert_array_equal(node.affine.weight, WEIGHTS["m"].T.astype(np.float32))
    np.testing.assert_array_equal(node.affine.bias, WEIGHTS["c"].astype(np.float32))


def test_alpha_and_beta_are_in_the_numbers():
    (node,) = skeleton_of(model("y = Gemm<alpha=2.0, beta=0.5>(x, m, c)", inputs=ROWS)).nodes
    np.testing.assert_array_equal(node.affine.weight, 2 * WEIGHTS["m"].T.astype(np.float32))
    np.testing.assert_array_equal(node.affine.bias, 0.5 * WEIGHTS["c"].astype(np.float32))


def test_a_product_that_others_read_keeps_its_bias_apart():
    body = "h = MatMul(x, m) a = Add(h, c) y = Mul(a, h)"
    first, second, product = skeleton_of(model(body, inputs=ROWS)).nodes
    assert (first.op, second.op, product.op) == ("Linear", "Linear", "Mul")
    assert not first.affine.bias.any()
    np.testing.assert_array_equal(second.affine.bias, WEIGHTS["c"].astype(np.float32))


def test_a_batchnorm_that_stays_is_a_layer_of_scale_and_shift():
    body = "r = Relu(x) y = BatchNormalization(r, gamma, beta, mean, var)"
    node = skeleton_of(model(body, inputs="float[N, 6, 8, 8] x")).nodes[-1]
    scale = WEIGHTS["gamma"].astype(np.float32) / np.sqrt(WEIGHTS["var"].astype(np.float32) + 1e-5)
    found, offset = node.numbers
    assert (node.op, found.values.shape) == ("ScaleShift", (1, 6, 1, 1))
    np.testing.assert_allclose(found.values.ravel(), scale, rtol=1e-6)
    shift = WEIGHTS["beta"] - WEIGHTS["mean"] * scale
    np.testing.assert_allclose(offset.values.ravel(), shift, atol=1e-6)
    assert (offset.magnitude >= np.abs(offset.values) - 1e-12).all()


def test_the_folded_weight_is_exact():
    body = "h = Conv(x, w, b) y = BatchNormalization(h, gamma, beta, mean, var)"
    (node,) = skeleton_of(model(body)).nodes
    gamma, var, w = (WEIGHTS[k].astype(np.float32).astype(float) for k in ("gamma", "var", "w"))
    scale = gamma / np.sqrt(var + float(np.float32(1e-5)))
    np.testing.assert_allclose(node.affine.weight, w * scale[:, None, None, None], rtol=1e-15)
    assert node.affine.dtype == "float32"
    unfolded = skeleton_of(model(body), fold=False)
    assert [n.op for n in unfolded.nodes] == ["Conv", "ScaleShift"]


def test_products_of_a_convolution_are_counted():
    def num_products(body, **weights):
        (node,) = skeleton_of(model(body, weights=weights)).nodes
        return node.affine.num_products

    assert num_products("y = Conv(x, w)") == 4 * 9
    grouped = RNG.normal(size=(6, 2, 3, 3))
    assert num_products("y = Conv<group=2>(x, v)", v=grouped) == 2 * 9
    transposed = RNG.normal(size=(4, 3, 2, 2))
    assert num_products("y = ConvTranspose<group=2>(x, v)", v=transposed) == 2 * 4


BRANCHES = (
    "y = If({}) <then_branch = a () => (p) {{ p = Relu(x) }},"
    " else_branch = b () => (q) {{ q = Abs(x) }}>"
)


def test_the_branch_that_a_constant_takes_is_the_network():
    for flag, op in ((1, "Relu"), (0, "Abs")):
        body = f"t = Constant<value = bool {{{flag}}}>() " + BRANCHES.format("t")
        assert [node.op for node in skeleton_of(model(body)).nodes] == [op]


REFUSED = {
    "a branch by the input": (
        "s = ReduceSum<keepdims=0>(x) t = Greater(s, c0) " + BRANCHES.format("t"),
        "takes a branch by the values of the input",
    ),
    "a shape by the input": (
        "s = ReduceMax<keepdims=0>(x) i = Cast<to=7>(s) u = Reshape(i, one) y = Reshape(x, u)",
        "computed from the values of the input",
    ),
    "dropout that trains": (
        "t = Constant<value = bool {1}>() y = Dropout(x, , t)",
        "at random",
    ),
    "a mask": ("y, k = Dropout(x)", "tells which"),
    "noise": (
        "n = RandomNormalLike(x) y = Add(x, n)",
        "RandomNormalLike is not on the closed list",
    ),
    "a test for NaN": ("n = IsNaN(x) y = Where(n, c0, x)", "IsNaN is not on the closed list"),
    "a batchnorm that trains": (
        "y = BatchNormalization<training_mode=1>(x, g4, g4, g4, g4)",
        "training mode",
    ),
    "a loop": ("y = NonZero(x)", "NonZero is not on the closed list"),
    "rounding on the way": ("h = Cast<to=10>(x) y = Cast<to=1>(h)", "rounds to float16"),
    "an index beyond the end": ("y = Gather<axis=1>(x, nine)", "beyond the end"),
    "a size that is not whole": ("y = Reshape(x, seven)", "not known to be whole"),
    "an axis that a batch of one has": (
        "p = GlobalAveragePool(x) y = Squeeze(p)",
        "drops whatever axis has size one",
    ),
    "an open size cut short": (
        "y = Slice(x, none, one, none)",
        "cuts an open size",
    ),
}


@pytest.mark.parametrize(("body", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused_by_name(body, message):
    weights = {"c0": np.zeros(()), "g4": np.ones(4)}
    for name, value in {"nine": 9, "one": [1], "seven": [-1, 7], "none": [0]}.items():
        weights[name] = np.array(value)
    with pytest.raises(UnsupportedModelError, match=message):
        skeleton_of(model(body, weights=weights), narrowest="float32")


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


def test_a_conv_of_another_domain_is_refused():
    proto = model("y = Conv(x, w)")
    proto.graph.node[0].domain = "com.example"
    with pytest.raises(
        UnsupportedModelError, match=r"com\.example\.Conv is not on the closed list"
    ):
        skeleton_of(proto)


def test_a_function_in_an_operators_name_is_refused():
    proto = model("y = Relu(x)")
    proto.functions.append(
        parser.parse_function('<domain: "", opset_import: ["": 18]> Relu (a) => (b) { b = Abs(a) }')
    )
    with pytest.raises(UnsupportedModelError, match="name of an operator"):
        skeleton_of(proto)


def test_a_model_of_no_stated_opset_is_refused():
    proto = model("y = Relu(x)")
    del proto.opset_import[:]
    with pytest.raises(UnsupportedModelError, match="which opset"):
        skeleton_of(proto)


def test_open_sides_are_carried_to_the_outputs():
    body = "h = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w) y = Relu(h)"
    (shape,) = skeleton_of(model(body, inputs="float[N, 4, H, W] x")).shapes
    assert str(shape) == "(n0.0, 6, floor((n0.2+1)/2), floor((n0.3+1)/2))"


def test_inputs_of_other_sizes_are_other_networks():
    small, large = (model("y = Relu(x)", inputs=f"float[N, 4, 8, {k}] x") for k in (8, 9))
    result = align(skeleton_of(small), skeleton_of(large)).result
    assert not result.isomorphic


@pytest.mark.parametrize(("scale", "same"), [(1.0, False), (2.0, True)])
def test_two_conventions_of_resizing_are_one_where_no_open_side_becomes_one(scale, same):
    """pytorch_half_pixel reads the first value for an output of size one, half_pixel the middle."""
    found = [
        skeleton_of(
            model(
                f'y = Resize<mode="linear", coordinate_transformation_mode="{place}">(x, , s)',
                inputs="float[N, 4, H, 8] x",
                weights={"s": np.array([1, 1, scale, 2])},
            )
        )
        for place in ("half_pixel", "pytorch_half_pixel")
    ]
    assert align(*found).result.isomorphic == same
