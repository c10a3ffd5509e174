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


def constant_of(body, **settings):
    """Return the shift of the last operator."""
    return skeleton_of(model(body, inputs=ROWS, **settings)).nodes[-1].numbers[1]


@pytest.mark.parametrize(
    ("code", "kind"), [(16, "bfloat16"), (10, "float16"), (11, "float64"), (1, "float32")]
)
def test_a_cast_rounds_a_constant(code, kind):
    """Narrowed and widened again, it is not what it was."""
    body = f"n = Cast<to={code}>(gamma) g = Cast<to=1>(n) y = Add(x, g)"
    exact = WEIGHTS["gamma"].astype(np.float32)
    found = constant_of(body)
    np.testing.assert_array_equal(found.values.ravel(), exact.astype(kind).astype(np.float32))
    assert found.dtype == "float32"


def test_a_cast_to_whole_numbers_cuts_a_constant():
    found = constant_of("n = Cast<to=7>(gamma) g = Cast<to=1>(n) y = Add(x, g)")
    np.testing.assert_array_equal(found.values.ravel(), np.trunc(WEIGHTS["gamma"]))


def test_a_sixth_and_other_numbers_of_attributes():
    """1/6 is what torch computes with; the attribute holds its float32."""
    body = "y = HardSigmoid<alpha=0.16666667, beta=0.5>(x)"
    scale = skeleton_of(model(body, inputs=ROWS)).nodes[-1].numbers[0]
    assert scale.values.item() == 1 / 6
    body = body.replace("0.16666667", "0.2")
    scale = skeleton_of(model(body, inputs=ROWS)).nodes[-1].numbers[0]
    assert (scale.values.item(), scale.roundings) == (float(np.float32(0.2)), 1)
    (node,) = skeleton_of(model("y = LeakyRelu<alpha=0.3>(x)", inputs=ROWS)).nodes
    assert node.numbers[0].roundings == 1


def test_a_fold_leaves_the_types_of_constants_as_they_were():
    """It computes in float64; a number that is float32 in the file is judged as one."""
    body = (
        "h = Conv(x, w, b) z = BatchNormalization(h, gamma, beta, mean, var) r = Relu(z)"
        " k = Constant<value = {}[1] {{0.3}}>() y = Add(r, k)"
    )
    for kind, dtype in (("float", np.float32), ("double", np.float64)):
        proto = model(body.format(kind), inputs=IMAGE.replace("float", kind), dtype=dtype)
        layer, _, last = skeleton_of(proto).nodes
        assert layer.affine.dtype == last.numbers[1].dtype == np.dtype(dtype).name
        assert last.numbers[1].values.item() == dtype(0.3)


def test_a_half_precision_layer_is_judged_as_one():
    body = "h = Conv(x, w, b) y = BatchNormalization(h, gamma, beta, mean, var)"
    proto = model(body, inputs=IMAGE.replace("float", "float16"), dtype=np.float16)
    (node,) = skeleton_of(proto).nodes
    assert node.affine.dtype == "float16"


def test_terms_that_cancelled_in_a_bias_are_the_size_of_its_error():
    proto = model("y = Conv(x, w, b)")
    for tensor in proto.graph.initializer:
        tensor.name = {"w": "conv.weight", "b": "conv.bias"}[tensor.name]
    proto.graph.node[0].input[1:] = ["conv.weight", "conv.bias"]
    own = np.abs(WEIGHTS["b"].astype(np.float32))
    (node,) = skeleton_of(proto).nodes
    np.testing.assert_array_equal(node.affine.bias_magnitude, own)
    terms = np.array([7.0, 0, 7, 0, 7, 0])
    for name, magnitudes, expected in (
        ("conv", terms, np.maximum(own, terms)),
        ("other", terms, own),
        ("conv", terms[:5], own),
    ):
        (node,) = skeleton_of(proto, bias_magnitudes={name: magnitudes}).nodes
        np.testing.assert_array_equal(node.affine.bias_magnitude, expected)


def test_a_cast_to_the_claimed_type_is_none_and_a_narrower_one_is_refused():
    proto = model("h = Cast<to=1>(x) y = Cast<to=11>(h)", inputs="double[N, 6] x", dtype=np.float64)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    assert skeleton_of(proto, narrowest="float32").nodes == ()
    with pytest.raises(UnsupportedModelError, match="rounds to float32") as refused:
        skeleton_of(proto, narrowest="float64")
    assert refused.value.where == "h"


@pytest.mark.parametrize(
    ("narrowing", "message"),
    [
        ("n = Cast<to=10>(x) h = Cast<to=1>(n)", "Cast rounds its values"),
        ("n = CastLike(x, half) h = CastLike(n, x)", "CastLike may round"),
        (
            "k = Constant<value = float16[1] {1}>() n = CastLike(x, k) h = CastLike(n, x)",
            "CastLike may round",
        ),
        (
            (
                "t = Constant<value = bool {1}>() h = If(t) <"
                "then_branch = a () => (p) { n = Cast<to=10>(x) p = Cast<to=1>(n) },"
                " else_branch = b () => (q) { q = Abs(x) }>"
            ),
            "Cast rounds its values",
        ),
    ],
)
def test_a_rounding_before_a_batchnorm_is_refused(narrowing, message):
    """The fold in float64 would not see it."""
    body = narrowing + " y = BatchNormalization(h, g4, g4, g4, g4)"
    proto = model(body, weights={"g4": np.ones(4)})
    if "half" in narrowing:
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float16), "half"))
    with pytest.raises(UnsupportedModelError, match=message):
        skeleton_of(proto, narrowest="float32")
    skeleton_of(proto, narrowest="float16")


@pytest.mark.parametrize(
    ("body", "opset", "trains"),
    [
        ("y = Dropout(x)", 6, True),
        ("y = Dropout<is_test=1>(x)", 6, False),
        ("y = Dropout(x)", 7, False),
        ("y = BatchNormalization(x, g4, g4, g4, g4)", 6, True),
        ("y = BatchNormalization<is_test=1>(x, g4, g4, g4, g4)", 6, False),
        ("y = BatchNormalization<is_test=1, spatial=0>(x, g4, g4, g4, g4)", 6, True),
        ("y = BatchNormalization(x, g4, g4, g4, g4)", 7, False),
        ("y = BatchNormalization<spatial=0>(x, g4, g4, g4, g4)", 7, True),
    ],
)
def test_an_old_operator_trains_unless_it_is_told(body, opset, trains):
    proto = model(body, opset=opset, weights={"g4": np.ones(4)})
    if trains:
        with pytest.raises(UnsupportedModelError, match=r"at random|training mode"):
            skeleton_of(proto, fold=False)
    else:
        skeleton_of(proto, fold=False)


def test_an_attribute_that_no_operator_has_is_refused():
    why = r"Relu has no attribute 'alpha' in opset 18"
    with pytest.raises(UnsupportedModelError, match=why) as refused:
        skeleton_of(model("y = Relu<alpha=0.5>(x)"))
    assert refused.value.where == "y"


def test_random_numbers_of_constants_are_refused():
    body = "t = Constant<value = bool {1}>() d = Dropout(c, , t) y = Add(x, d)"
    with pytest.raises(UnsupportedModelError, match="draws at random"):
        skeleton_of(model(body, inputs="float[N, 5] x"))


def test_bounds_of_whole_numbers_are_no_real_numbers():
    body = "i = Cast<to=7>(x) j = Clip(i, low) y = Cast<to=1>(j)"
    with pytest.raises(UnsupportedModelError, match="no real number"):
        skeleton_of(model(body, weights={"low": np.array(0)}))


INNER = (
    "t = Constant<value = bool {{1}}>() y = If(t) <"
    "then_branch = a () => (p) <float[1] {name} = {{2.0}}> {{ p = Mul(x, {name}) }},"
    " else_branch = b () => (q) {{ q = Abs(x) }}>"
)


def test_a_branch_has_constants_of_its_own():
    (node,) = skeleton_of(model(INNER.format(name="k"))).nodes
    assert (node.op, node.numbers[0].values.item()) == ("ScaleShift", 2.0)


def test_a_branch_with_a_constant_of_an_outer_name_is_refused():
    proto = model("w2 = Neg(w) " + INNER.format(name="w"))
    with pytest.raises(UnsupportedModelError, match="an inner value of an outer name"):
        skeleton_of(proto, fold=False)


def test_a_branch_with_a_value_of_an_outer_name_is_refused():
    proto = model("p = Abs(x) " + INNER.format(name="k"))
    with pytest.raises(UnsupportedModelError, match="has an inner value of an outer name"):
        skeleton_of(proto, fold=False)
