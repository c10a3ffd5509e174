"""Folding in ONNX graphs: what is folded computes the same, and the rest is refused with a reason.

Each fold is judged in float64 (see `check`); the numbers of the conditions are those of the module.
"""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import (
    BN,
    NONE_BELOW,
    TYPES,
    add_integers,
    batchnorms,
    check,
    feeds,
    fold,
    names_of_initializers,
    network,
    normal,
    refusal,
    statistics,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.graph.float64 import evaluate_float64

# --- the grid ------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 9, 14, 18, 22])
@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_convolutions(op, group, bias, opset):
    weight = (8, 4 // group, 3, 3) if op == "Conv" else (4, 8 // group, 3, 3)
    body = f"y = {op} <group = {group}, strides = [2, 1], pads = [1, 0, 1, 1]> (x, w{bias}) {BN}"
    weights = {"w": normal(*weight), **statistics(8)} | ({"b": normal(8)} if bias else {})
    result = check(network(body, weights, opset=opset, ir_version=10 if opset > 21 else 8))
    assert [node.op_type for node in result.graph.node] == [op]
    assert set(names_of_initializers(result)) == {"b" if bias else "w_bias", "w"}


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_convolutions_of_one_and_three_dimensions(op, group, dims):
    weight = (6, 4 // group) if op == "Conv" else (4, 6 // group)
    sizes, axes = ", 4" * dims, ", c" * dims
    check(
        network(
            f"y = {op} <group = {group}> (x, w) {BN}",
            {"w": normal(*weight, *[3] * dims), **statistics(6)},
            inputs=f"float[2, 4{sizes}] x",
            outputs=f"float[a, b{axes}] z",
        )
    )


@pytest.mark.parametrize(
    ("op", "dtype"),  # ONNX Runtime has no Conv in double on the CPU
    [
        *[("Conv", "float16"), ("Gemm", "float16"), ("MatMul", "float16")],
        *[("Gemm", "double"), ("MatMul", "double")],
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_other_types(op, bias, dtype):
    square = ", 3, 3" if op == "Conv" else ""
    line = "product = MatMul (x, w) y = Add (product, b)" if op == "MatMul" and bias else (
        f"y = {op} (x, w{', b' if bias and op != 'MatMul' else ''})"
    )  # fmt: skip
    shape = (6, 4, 1, 1) if op == "Conv" else (4, 6)
    weights = {"w": normal(*shape), **statistics(6)} | ({"b": normal(6)} if bias else {})
    model = network(
        f"{line} {BN}",
        weights,
        inputs=f"{dtype}[2, 4{square}] x",
        outputs=f"{dtype}[a, b{', c, d' if op == 'Conv' else ''}] z",
        dtype=TYPES[dtype],
    )
    check(model, dtype=dtype)


@pytest.mark.parametrize("bias", [(), (1,), (6,), (1, 6), (3, 1), (3, 6), (1, 1), None])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.3, -1.7)])
def test_gemm(alpha, beta, trans_b, bias):
    line = (
        f"y = Gemm <alpha = {alpha}, beta = {beta}, transB = {trans_b}> "
        f"(x, w{'' if bias is None else ', b'})"
    )
    weights = {"w": normal(*((6, 4) if trans_b else (4, 6))), **statistics(6)}
    weights |= {} if bias is None else {"b": normal(*bias)}
    model = network(f"{line} {BN}", weights, inputs="float[3, 4] x", outputs="float[a, b] z")
    result = check(model)
    attributes = {a.name: a.f for a in result.graph.node[0].attribute if a.name != "transB"}
    assert attributes["alpha"] == pytest.approx(alpha)
    assert attributes["beta"] == 1


def test_gemm_of_a_transposed_left_operand():
    check(
        network(
            f"y = Gemm <transA = 1> (x, w, b) {BN}",
            {"w": normal(4, 6), "b": normal(6), **statistics(6)},
            inputs="float[4, 3] x",
            outputs="float[a, b] z",
        )
    )


@pytest.mark.parametrize("bias", [(), (1,), (6,), (1, 6), (3, 1), (3, 6)])
@pytest.mark.parametrize("operands", ["product, b", "b, product"])
@pytest.mark.parametrize("opset", [7, 18])
def test_matmul_and_add(operands, bias, opset):
    model = network(
        f"product = MatMul (x, w) y = Add ({operands}) {BN}",
        {"w": normal(4, 6), "b": normal(*bias), **statistics(6)},
        inputs="float[3, 4] x",
        outputs="float[a, b] z",
        opset=opset,
    )
    assert [node.op_type for node in check(model).graph.node] == ["MatMul", "Add"]


@pytest.mark.parametrize("opset", [7, 11, 18])
def test_a_matmul_alone_becomes_a_gemm(opset):
    model = network(
        f"y = MatMul (x, w) {BN}",
        {"w": normal(4, 6), **statistics(6)},
        inputs="float[3, 4] x",
        outputs="float[a, b] z",
        opset=opset,
    )
    assert [node.op_type for node in check(model).graph.node] == ["Gemm"]


def test_the_rank_of_a_matmul_is_inferred_where_the_model_does_not_state_it():
    model = network(
        f"flat = Flatten (x) r = Relu (flat) y = MatMul (r, w) {BN}",
        {"w": normal(100, 6), **statistics(6)},
        outputs="float[a, b] z",
    )
    check(model)


# --- types and numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [np.float32, np.float16])
def test_mixed_types_come_out_as_the_type_of_the_layer(parameters):
    stats = {name: value.astype(parameters) for name, value in statistics(6).items()}
    weights = {"w": normal(6, 4, 1, 1).astype(np.float16), **stats}
    model = network(
        f"y = Conv (x, w) {BN}",
        weights,
        inputs="float16[2, 4, 3, 3] x",
        outputs="float16[a, b, c, d] z",
        dtype=None,
    )
    result, report = fold(model)
    assert len(report.folded) == 1
    assert {t.data_type for t in result.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_bfloat16_weights_are_the_nearest_to_the_exact_ones():
    stats = {k: v.astype(ml_dtypes.bfloat16) for k, v in statistics(6).items()}
    weight = normal(6, 4, 1, 1).astype(ml_dtypes.bfloat16)
    model = network(
        f"y = Conv (x, w) {BN}",
        {"w": weight, **stats},
        inputs="bfloat16[2, 4, 3, 3] x",
        outputs="bfloat16[a, b, c, d] z",
        opset=22,
        ir_version=10,
        dtype=None,
    )
    result, report = fold(model)
    assert report.folded[0].max_ulp <= 0.5001
    gamma, var = stats["gamma"].astype(np.float64), stats["var"].astype(np.float64)
    scale = gamma / np.sqrt(var + float(np.float32(1e-5)))
    exact = weight.astype(np.float64) * scale.reshape(-1, 1, 1, 1)
    found = numpy_helper.to_array(result.graph.initializer[0])
    assert found.tobytes() == exact.astype(ml_dtypes.bfloat16).tobytes()


@pytest.mark.parametrize(("attribute", "eps"), [("", 1e-5), ("<epsilon = 0.001>", 1e-3)])
def test_epsilon_is_the_float32_number(attribute, eps):
    """With var = 0 the scale is 1 / sqrt(eps), so that a float64 1e-5 would show."""
    stats = statistics(1) | {"var": np.zeros(1), "gamma": np.ones(1)}
    model = network(
        f"y = Conv (x, w) z = BatchNormalization {attribute} (y, gamma, beta, mean, var)",
        {"w": np.ones((1, 4, 1, 1)), **stats},
        inputs="double[2, 4, 5, 5] x",
        outputs="double[a, b, c, d] z",
        dtype=np.float64,
    )
    result, _ = fold(model)
    expected = np.float64(1 / np.sqrt(np.longdouble(np.float32(eps))))
    assert numpy_helper.to_array(result.graph.initializer[0]).ravel()[0] == expected
    assert expected != 1 / np.sqrt(eps)


def test_subnormal_weights_that_change_no_output_become_zero_and_are_counted():
    stats = statistics(2) | {"gamma": np.array([1e-39, 1.0]), "beta": np.array([0.3, 0.0])}
    stats["mean"] = np.zeros(2)
    model = network(f"y = Conv (x, w) {BN}", {"w": normal(2, 4, 1, 1), **stats})
    result, report = fold(model)
    assert report.folded[0].num_flushed == 4
    weight = numpy_helper.to_array(result.graph.initializer[0])
    assert not weight[0].any()
    assert weight[1].all()


@pytest.mark.parametrize("where", ["before", "after", "in a product", "in a branch"])
def test_refuses_subnormal_weights_that_a_large_constant_may_make_matter(where):  # 5
    stats = statistics(2) | {"gamma": np.array([1e-39, 1.0]), "beta": np.array([0.3, 0.0])}
    large = 1e38 * np.ones((4 if where == "before" else 2, 1, 1))
    body = {
        "before": f"v = Mul (x, k) y = Conv (v, w) {BN}",
        "after": f"y = Conv (x, w) {BN.replace('z =', 'u =')} z = Mul (u, k)",
        "in a product": f"y = Conv (x, w) {BN.replace('z =', 'u =')} z = Conv (u, m)",
        "in a branch": (
            f"y = Conv (x, w) {BN.replace('z =', 'u =')} "
            "yes = Constant <value = bool {1}> () z = If (yes) <then_branch = t () => "
            "(float[a, b, c, d] p) { p = Mul (u, k) }, else_branch = e () => "
            "(float[a, b, c, d] q) { q = Relu (u) }>"
        ),
    }[where]
    weights = {"w": normal(2, 4, 1, 1), "k": large, "m": 1e38 * np.ones((2, 2, 1, 1)), **stats}
    model = network(body, {k: v for k, v in weights.items() if f"{k})" in body or k in stats})
    if where != "in a product":
        weights.pop("m")
    _, report = fold(model)
    assert report.folded == ()
    assert "channel 0 underflows float32" in report.refused[0].reason


def two_batchnorms() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    first = {f"first_{k}": v for k, v in statistics(6, seed=2).items()}
    values = {"w": normal(6, 4, 3, 3), "b": normal(6), **first, **statistics(6)}
    body = (
        "u = Conv (x, w, b) "
        "y = BatchNormalization (u, first_gamma, first_beta, first_mean, first_var)" + BN
    )
    return network(body, values), values


def test_two_batchnorms_are_rounded_once():
    """Folded one after the other, the weights would be rounded twice: up to 1 ulp, not 0.5."""
    model, values = two_batchnorms()
    result = check(model, folded=2)
    v = {name: value.astype(np.float32).astype(np.longdouble) for name, value in values.items()}
    eps = np.longdouble(np.float32(1e-5))
    scale = v["first_gamma"] / np.sqrt(v["first_var"] + eps) * v["gamma"] / np.sqrt(v["var"] + eps)
    exact = v["w"] * scale.reshape(-1, 1, 1, 1)
    found = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}["w"]
    assert np.mean(found == exact.astype(np.float32)) == 1


def test_distances_of_a_bias_by_row_count():
    """Of the weights and the first row of the bias, none is rounded, nor is a subnormal lost."""
    bias = np.array([[1e-9, 1e-40], [0.1, 0], [0.2, 0]])
    stats = {"gamma": np.ones(2), "beta": np.zeros(2), "mean": np.array([1e-9, 0])}
    model = network(
        "y = Gemm (x, w, b) z = BatchNormalization <epsilon = 0.0> (y, gamma, beta, mean, var)",
        {"w": np.ones((4, 2)), "b": bias, **stats, "var": np.ones(2)},
        inputs="float[3, 4] x",
        outputs="float[a, b] z",
    )
    _, report = fold(model)
    (site,) = report.folded
    assert 0 < site.max_ulp <= 0.5
    assert site.num_flushed == 0


@pytest.mark.parametrize("producer", ["Gemm", "MatMul", "ConvTranspose"])
def test_three_batchnorms_after_other_layers(producer):
    weights = {"w": normal(4, 6) if producer != "ConvTranspose" else normal(4, 6, 3, 3)}
    body = f"u0 = {producer} (x, w) "
    for k in range(3):
        weights |= statistics(6, prefix=f"p{k}_", seed=k)
        name = "z" if k == 2 else f"u{k + 1}"
        body += f"{name} = BatchNormalization (u{k}, p{k}_gamma, p{k}_beta, p{k}_mean, p{k}_var) "
    square = ", 5, 5" if producer == "ConvTranspose" else ""
    more = ", c, d" if producer == "ConvTranspose" else ""
    model = network(body, weights, inputs=f"float[3, 4{square}] x", outputs=f"float[a, b{more}] z")
    check(model, folded=3)


# --- what lies between, and where constants come from --------------------------------------------


@pytest.mark.parametrize(
    "between",
    [
        "y = Identity (u)",
        "y = Dropout (u)",
        "y, mask = Dropout (u)",
        "v = Identity (u) y = Dropout (v, ratio, training)",
        "y = Dropout (u, , training)",
    ],
)
def test_steps_over_what_does_nothing_at_inference(between):
    weights = {"w": normal(6, 4, 3, 3), **statistics(6)}
    model = network(f"u = Conv (x, w) {between} {BN}", weights)
    if "training" in between:
        model.graph.initializer.append(numpy_helper.from_array(np.array(False), "training"))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "ratio"))
        if "ratio" not in between:
            del model.graph.initializer[-1]
    check(model)


def test_dropout_before_opset_12():
    weights = {"w": normal(6, 4, 3, 3), **statistics(6)}
    body = f"u = Conv (x, w) y = Dropout <ratio = 0.5> (u) {BN}"
    check(network(body, weights, opset=10))


def test_constant_nodes_are_constants():
    constants = " ".join(
        f"{name} = Constant <value_floats = [{', '.join(f'{v:.6f}' for v in values)}]> ()"
        for name, values in statistics(2).items()
    )
    body = (
        "w = Constant <value = float[2, 4, 1, 1] {1, -2, 3, 4, 5, -6, 7, 8}> () "
        f"{constants} y = Conv (x, w) {BN}"
    )
    result = check(network(body, {}))
    assert [node.op_type for node in result.graph.node] == ["Conv"]


def test_in_a_file_too_old_for_plain_initializers_constants_stay_nodes():
    body = (
        "w = Constant <value = float[1, 4, 1, 1] {1, -2, 3, 4}> () "
        "gamma = Constant <value = float[1] {2}> () beta = Constant <value = float[1] {3}> () "
        "mean = Constant <value = float[1] {4}> () var = Constant <value = float[1] {5}> () "
        f"y = Conv (x, w) {BN}"
    )
    result = check(network(body, {}, opset=8, ir_version=3))
    assert [node.op_type for node in result.graph.node] == ["Constant", "Constant", "Conv"]


def test_an_empty_optional_bias():
    """A peer's fold stops with an error at a Conv whose bias is there, with an empty name."""
    model = network(f"y = Conv (x, w) {BN}", {"w": normal(6, 4, 3, 3), **statistics(6)})
    model.graph.node[0].input.append("")
    result = check(model)
    assert list(result.graph.node[0].input) == ["x", "w", "w_bias"]


@pytest.mark.parametrize("taken", ["w_bias", "w_weight", "y_weight", "z_weight", "y_bias"])
def test_names_collide_with_nothing(taken):
    """Peers invent `<output>_weight` and `<weight>_bias`, taken or not, and write broken files."""
    weights = {"w": normal(6, 4, 3, 3), taken: normal(1), **statistics(6)}
    body = f"scaled = Mul (x, {taken}) y = Conv (scaled, w) {BN}"
    result = check(network(body, weights))
    names = names_of_initializers(result)
    assert len(set(names)) == len(names) == 3


def test_names_collide_with_none_of_a_branch():
    """A branch sees the names of the graph around it, and must not give one of them again."""
    text = branches("w_bias = Neg (u) then_z = Relu (w_bias)", f"y = Conv (x, w) {BN}")
    model = conv_bn(text.replace("z = BatchN", "u = BatchN"), **CHOICE)
    assert "w_bias" not in names_of_initializers(check(model))


def test_the_product_before_a_new_bias_has_a_name_of_its_own():
    model = network(
        f"u = MatMul (x, w) y = Transpose <perm = [0, 2, 1]> (u) {BN} u_product = Neg (x)",
        {"w": normal(4, 6), **statistics(6)},
        inputs="float[2, 5, 4] x",
        outputs="float[a, b, c] z, float[a, c, d] u_product",
    )
    check(model)


def test_a_bias_is_named_after_its_weight():
    model = network(f"y = Conv (x, w) {BN}", {"w": normal(6, 4, 3, 3), **statistics(6)})
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "layer1.conv.weight"
    assert set(names_of_initializers(check(model))) == {"layer1.conv.weight", "layer1.conv.bias"}


def test_shared_weights_are_cloned():
    weights = {"w": normal(4, 4, 1, 1), "b": normal(4), **statistics(4)}
    body = (
        "u = Conv (x, w, b) y = Conv (u, w, b) t = BatchNormalization (y, gamma, beta, mean, b2) "
        "z = Relu (t)"
    )
    weights["b2"] = weights.pop("var")
    model = network(body, weights)
    result = check(model)
    assert set(names_of_initializers(result)) == {"w", "b", "w_1", "b_1"}
    kept = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    assert kept["w"].tobytes() == weights["w"].astype(np.float32).tobytes()


def test_a_siamese_pair_is_folded_once_each():
    """A peer folds a layer that is called twice twice over."""
    body = (
        f"u = Conv (x, w) p = BatchNormalization (u, gamma, beta, mean, var) y = Conv (x2, w) {BN}"
    )
    weights = {"w": normal(6, 4, 3, 3), **statistics(6)}
    model = network(
        body,
        weights,
        inputs="float[2, 4, 5, 5] x, float[2, 4, 5, 5] x2",
        outputs="float[a, b, c, d] p, float[a, b, c, d] z",
    )
    check(model, folded=2)


def test_a_bias_that_is_also_a_statistic():
    weights = {"w": normal(6, 4, 3, 3), **statistics(6)}
    result = check(network(f"y = Conv (x, w, mean) {BN}", weights))
    assert set(names_of_initializers(result)) == {"w", "mean"}


def test_constants_that_others_read_stay():
    weights = {"w": normal(6, 4, 3, 3), **statistics(6)}
    body = f"y = Conv (x, w) {BN} s = Sqrt (var)"
    model = network(body, weights, outputs="float[a, b, c, d] z, float[e] s")
    assert "var" in names_of_initializers(check(model))


def test_a_parameter_that_is_an_output_stays():
    model = conv_bn(f"y = Conv (x, w) {BN}", outputs="float[a, b, c, d] z, float[4] var")
    assert "var" in names_of_initializers(check(model))


def test_a_weight_that_is_an_output_is_cloned():
    model = conv_bn(f"y = Conv (x, w) {BN}", outputs="float[a, b, c, d] z, float[4, 4, 1, 1] w")
    assert set(names_of_initializers(check(model))) == {"w", "w_1", "w_bias"}


# --- graphs inside graphs ------------------------------------------------------------------------


def branches(inside: str, before: str = "") -> str:
    return (
        f"{before} z = If (chosen) <then_branch = yes () => (float[a, b, c, d] then_z) "
        f"{{ {inside} }}, "
        "else_branch = no () => (float[a, b, c, d] else_z) { else_z = Identity (x) }>"
    )


CHOICE = {"inputs": "float[2, 4, 5, 5] x, bool chosen"}


def test_a_branch_is_folded_with_the_constants_of_the_graph_around_it():
    inside = "y = Conv (x, w) then_z = BatchNormalization (y, gamma, beta, mean, var)"
    model = network(branches(inside), {"w": normal(4, 4, 1, 1), **statistics(4)}, **CHOICE)
    check(model)


def test_a_branch_gets_its_own_weights_where_they_are_shared():
    inside = "y = Conv (x, w) then_z = BatchNormalization (y, gamma, beta, mean, var)"
    before = "outer = Conv (x, w)"
    model = network(
        branches(inside, before),
        {"w": normal(4, 4, 1, 1), **statistics(4)},
        inputs=CHOICE["inputs"],
        outputs="float[a, b, c, d] z, float[a, b, c, d] outer",
    )
    check(model)


def test_a_loop_body_is_folded():
    body = (
        "count = Constant <value = int64 {3}> () yes = Constant <value = bool {1}> () "
        "z = Loop (count, yes, x) <body = step (int64 i, bool go, float[2, 4, 5, 5] state) => "
        "(bool go_on, float[2, 4, 5, 5] next) { go_on = Identity (go) y = Conv (state, w) "
        "next = BatchNormalization (y, gamma, beta, mean, var) }>"
    )
    weights = {"w": 0.3 * normal(4, 4, 1, 1), **statistics(4)}
    check(network(body, weights))


FUNCTION = """
<domain: "local", opset_import: ["": 18]>
block (a) => (c) {
    w = Constant <value = float[1, 4, 1, 1] {1, -2, 3, 4}> ()
    g = Constant <value = float[1] {2}> () s = Constant <value = float[1] {3}> ()
    m = Constant <value = float[1] {4}> () v = Constant <value = float[1] {5}> ()
    y = Conv (a, w)
    c = BatchNormalization (y, g, s, m, v)
}
"""


def test_a_local_function_is_folded():
    model = network("z = local.block (x)", {}, functions=FUNCTION)
    result = check(model)
    (function,) = result.functions
    assert [n.op_type for n in function.node] == ["Constant", "Constant", "Conv"]


def test_a_frozen_batchnorm_in_a_local_function_is_folded():
    """No shapes are inferred there: those of a layer follow from its weight."""
    function = """
<domain: "local", opset_import: ["": 18]>
block (a) => (c) {
    w = Constant <value = float[4, 2, 1, 1] {1, -2, 3, 4, 5, -6, 7, 8}> ()
    s = Constant <value = float[2, 1, 1] {2, -3}> ()
    t = Constant <value = float[2, 1, 1] {0.5, 4}> ()
    y = ConvTranspose (a, w)
    m = Mul (y, s)
    c = Add (m, t)
}
"""
    result = check(network("z = local.block (x)", {}, functions=function))
    (function,) = result.functions
    assert [n.op_type for n in function.node][-1] == "ConvTranspose"


def in_function(line: str, argument: str) -> onnx.ModelProto:
    """The function with another line in the place of its Conv, and one attribute of it."""
    function = FUNCTION.replace("block (a)", "block <e> (a)").replace("y = Conv (a, w)", line)
    return network(f"z = local.block <e = {argument}> (x)", {}, functions=function)


def test_refuses_a_layer_whose_attributes_the_caller_chooses():
    _, report = fold(in_function("y = Conv <group: int = @e> (a, w)", "1"))
    reason = "group of `y` (Conv) is chosen by the caller of the function"
    assert reason in report.refused[0].reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('y = Conv <auto_pad = "SAME"> (a, w)', "`y` (Conv) is not to be read"),
        ('y = Conv <auto_pad = "SAME"> (a, w)', "unknown auto_pad 'SAME'"),
        ("u = Conv (a, w) y = Cast <to: int = @e> (u)", "to of `y` (Cast) is chosen by the caller"),
        ("u = Conv (a, w) y = Sin (u)", "the number of axes of its input is not known"),
    ],
)
def test_refuses_in_a_function(line, reason):
    _, report = fold(in_function(line, "1"))
    assert reason in report.refused[0].reason


def test_refuses_what_the_caller_of_a_function_chooses():
    function = FUNCTION.replace("block (a)", "block <e> (a)").replace(
        "(y, g, s, m, v)", "<epsilon: float = @e> (y, g, s, m, v)"
    )
    model = network("z = local.block <e = 0.5> (x)", {}, functions=function)
    _, report = fold(model)
    assert "chosen by the caller of the function" in report.refused[0].reason


# --- refusals, by the numbers of the module's docstring ------------------------------------------


def conv_bn(body: str, channels: int = 4, **more) -> onnx.ModelProto:
    weights = {"w": normal(channels, 4, 1, 1), **statistics(channels)}
    return network(body, weights, **more)


OUTPUTS = "float[a,b,c,d] z, float[a,b,c,d] "
TWICE = "its input, `y` (Conv), is read 2 times"
ADDED = "p = MatMul (x, w) y = Add (p, b)"
TRAINING = "z, m, v = BatchNormalization <training_mode = 1> (y, gamma, beta, mean, var)"


@pytest.mark.parametrize(
    ("body", "more", "reason"),
    [
        # Peers fold it, as if its stored statistics were those of the batch.
        (f"y = Conv (x, w) {TRAINING}", {}, "statistics of the batch (it is in training mode)"),
        (
            f"y = Conv (x, w) {BN} r = Relu (y)",
            {"outputs": OUTPUTS + "r"},
            f"{TWICE}; {NONE_BELOW}",
        ),
        (
            f"y = Conv (x, w) {BN} r = Add (y, z)",
            {"outputs": "float[a,b,c,d] r"},
            f"{TWICE}: it is the residual stream; {NONE_BELOW}",
        ),
        (f"y = Conv (x, w) {BN}", {"outputs": OUTPUTS + "y"}, "`y` (Conv), is also an output"),
        (
            f"u = Conv (x, w) y = Identity (u) {BN} r = Relu (u)",
            {"outputs": OUTPUTS + "r"},
            "its input, `u` (Conv), is read 2 times; ",
        ),
        (
            f"u = Conv (x, w) y = Dropout (u, , t) {BN}",
            {"inputs": "float[2, 4, 5, 5] x, bool t"},
            "whether `y` (Dropout) drops values is an input of the model",
        ),
    ],
)
def test_refuses_after_a_convolution(body, more, reason):  # 1, 3
    assert reason in refusal(conv_bn(body, **more))


@pytest.mark.parametrize(
    ("body", "weight", "x", "outputs", "reason"),
    [
        # This is no residual stream.
        (f"{ADDED} {BN} r = Relu (p)", (4, 6), "3, 4", "float[a, b] r", "is read 2 times; "),
        (f"{ADDED} {BN}", (4, 6), "3, 4", "float[a, b] p", "`p` (MatMul), is also an output"),
        (
            f"n = Neg (b) p = MatMul (x, w) y = Add (p, n) {BN}",
            (4, 6),
            "3, 4",
            "",
            "sum of values of different shapes",
        ),
        (f"y = MatMul (x, w) {BN}", (2, 4, 5), "2, 5, 4", "", "`y` (MatMul) is no matrix"),
        # Where L == C the sizes match and the fold would be silently wrong.
        (
            f"y = MatMul (x, w) {BN}",
            (4, 4),
            "2, 4, 4",
            "",
            "rank-3 value, but it normalises another",
        ),
        (f"{ADDED} {BN}", (4, 4), "2, 4, 4", "", "rank-3"),
        (
            f"y = MatMul (w, x) {BN}",
            (4, 4),
            "4, 4",
            "",
            "has its features on axis 0 of a rank-2 value",
        ),
    ],
)
def test_refuses_after_a_matmul(body, weight, x, outputs, reason):  # 3, 4
    rank = x.count(",") + 1
    model = network(
        body,
        {"w": normal(*weight), "b": normal(weight[-1]), **statistics(weight[-1])},
        inputs=f"float[{x}] x",
        outputs=", ".join(filter(None, [f"float[{', '.join('abc'[:rank])}] z", outputs])),
    )
    assert reason in refusal(model)


def test_refuses_a_batchnorm_of_training_mode_with_one_output():  # 1
    model = conv_bn(
        "y = Conv (x, w) z = BatchNormalization <training_mode = 1> (y, gamma, beta, mean, var)"
    )
    assert "training mode" in refusal_without_checker(model)


@pytest.mark.parametrize("opset", [7, 9])
def test_refuses_a_batchnorm_whose_further_outputs_say_training(opset):  # 1
    model = conv_bn(
        "y = Conv (x, w) z, m, v, sm, sv = BatchNormalization (y, gamma, beta, mean, var)",
        opset=opset,
    )
    assert "training mode" in refusal(model)


def test_refuses_statistics_per_pixel():  # 1
    stats = {k: v.reshape(4, 1, 1) * np.ones((4, 5, 5)) for k, v in statistics(4).items()}
    model = network(
        "y = Conv (x, w) z = BatchNormalization <spatial = 0> (y, gamma, beta, mean, var)",
        {"w": normal(4, 4, 1, 1), **stats},
        opset=7,
    )
    assert "spatial" in refusal_without_checker(model)


def refusal_without_checker(model: onnx.ModelProto) -> str:
    (site,) = fold_batchnorm(ir.from_proto(model)).refused
    return site.reason


def test_refuses_an_opset_in_which_it_meant_something_else():  # 1
    model = conv_bn(f"y = Conv (x, w) {BN}", opset=6)
    assert "before opset 7" in refusal_without_checker(model)


def test_refuses_an_input_without_an_axis_of_channels():  # 1
    model = network(
        BN.replace("(y", "(x"), statistics(4), inputs="float[4] x", outputs="float[a] z"
    )
    assert "no axis of channels" in refusal_without_checker(model)


def test_refuses_parameters_of_different_shapes():  # 5
    model = conv_bn(f"y = Conv (x, w) {BN.replace('beta', 'one')}")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    assert "not of one shape (C,)" in refusal_without_checker(model)


@pytest.mark.parametrize("name", ["gamma", "beta", "mean", "var"])
def test_refuses_parameters_computed_at_run_time(name):  # 2
    line = BN.replace(name, f"{name}_now")
    model = conv_bn(f"{name}_now = Abs ({name}) y = Conv (x, w) {line}")
    assert f"`{name}_now` is computed at run time" in refusal(model)


@pytest.mark.parametrize("name", ["gamma", "var"])
def test_refuses_parameters_that_a_caller_may_replace(name):  # 2
    """Peers freeze the default value of an initializer that is also an input."""
    model = conv_bn(f"y = Conv (x, w) {BN}", inputs=f"float[2, 4, 5, 5] x, float[4] {name}")
    assert "whose default value a caller may replace" in refusal(model)


def test_refuses_two_batchnorms_of_one_value():  # 3
    model = conv_bn(
        f"y = Conv (x, w) {BN} z2 = BatchNormalization (y, beta, gamma, mean, var)",
        outputs="float[a,b,c,d] z, float[a,b,c,d] z2",
    )
    _, report = fold(model)
    assert ["read 2 times" in site.reason for site in report.refused] == [True, True]


def test_refuses_a_value_that_a_branch_reads():  # 3
    inside = "then_z = Relu (y)"
    text = branches(inside, "y = Conv (x, w) bn = BatchNormalization (y, gamma, beta, mean, var)")
    model = conv_bn(text, inputs=CHOICE["inputs"], outputs="float[a,b,c,d] z, float[a,b,c,d] bn")
    assert "is read 2 times" in refusal(model)


def test_refuses_a_bias_that_a_branch_adds():  # 3
    inside = "y = Add (p, b) then_z = BatchNormalization (y, gamma, beta, mean, var)"
    text = branches(inside, "p = MatMul (x, w)").replace("[a, b, c, d]", "[a, b]")
    model = network(
        text,
        {"w": normal(4, 4), "b": normal(4), **statistics(4)},
        inputs="float[3, 4] x, bool chosen",
        outputs="float[a, b] z",
    )
    _, report = fold(model)
    assert "`p` (MatMul), is computed in another graph" in report.refused[0].reason


def test_refuses_a_layer_outside_the_branch():  # 3
    inside = "then_z = BatchNormalization (y, gamma, beta, mean, var)"
    model = conv_bn(branches(inside, "y = Conv (x, w)"), **CHOICE)
    _, report = fold(model)
    assert "in another graph" in report.refused[0].reason


def test_refuses_the_model_input():  # 3
    model = network("z = BatchNormalization (x, gamma, beta, mean, var)", statistics(4))
    reason = "its input is the model's input `x`, not the output of a layer"
    assert refusal(model) == f"{reason}; {NONE_BELOW}"


@pytest.mark.parametrize(
    "between",
    [
        "y = Relu (u)",
        "y = MaxPool <kernel_shape = [2, 2]> (u)",  # some scales are negative
        "y = Pad (u, pads)",
        "q = QuantizeLinear (u, scale, zero) y = DequantizeLinear (q, scale, zero)",
        "y = Softmax (u)",
    ],
)
def test_refuses_what_lies_between(between):  # 3
    model = network(
        f"u = Conv (x, w) {between} {BN}",
        {"w": normal(4, 4, 1, 1), **statistics(4), "scale": np.full((), 0.1)},
    )
    add_integers(model, pads=[0, 0, 1, 1, 0, 0, 1, 1])
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(0), "zero"))
    operator = between.split(" (")[0].split(" <")[0].split("= ")[-1]
    if "Dequantize" in between:
        operator = "DequantizeLinear"
    assert refusal(model) == (
        f"its input comes from `y` ({operator}), not from a convolution or linear layer; "
        f"{NONE_BELOW}"
    )


def test_refuses_an_operator_of_another_domain():  # 3
    function = FUNCTION.replace("block", "Conv")
    model = network(f"y = local.Conv (x) {BN}", statistics(1), functions=function)
    _, report = fold(model)
    assert "comes from `y` (Conv)" in report.refused[0].reason


def test_refuses_a_dropout_that_drops():  # 3
    model = conv_bn(f"u = Conv (x, w) y = Dropout (u, , training) {BN}")
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "training"))
    assert "`y` (Dropout) is in training mode" in refusal(model)


def test_refuses_a_dropout_whose_mask_is_used():  # 3
    model = conv_bn(
        f"u = Conv (x, w) y, mask = Dropout (u) {BN}",
        outputs="float[a,b,c,d] z, bool[a,b,c,d] mask",
    )
    assert "mask" in refusal(model)


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_refuses_weights_computed_at_run_time(what):  # 4
    weights = {"w": normal(4, 4, 1, 1), "b": normal(4), **statistics(4)}
    arguments = {"weight": "x, now, b", "bias": "x, w, now"}[what]
    source = {"weight": "w", "bias": "b"}[what]
    model = network(f"now = Neg ({source}) y = Conv ({arguments}) {BN}", weights)
    assert refusal(model) == f"the {what} of `y` (Conv) is computed at run time; {NONE_BELOW}"


@pytest.mark.parametrize(("what", "name"), [("weight", "w"), ("bias", "b")])
def test_refuses_weights_that_a_caller_may_replace(what, name):  # 4
    weights = {"w": normal(4, 4, 1, 1), "b": normal(4), **statistics(4)}
    shape = "4, 4, 1, 1" if name == "w" else "4"
    model = network(
        f"y = Conv (x, w, b) {BN}", weights, inputs=f"float[2, 4, 5, 5] x, float[{shape}] {name}"
    )
    reason = refusal(model)
    assert reason.startswith(f"the {what} of `y` (Conv) is an input of the model")


def test_refuses_a_quantised_weight():  # 4
    model = network(
        f"w = DequantizeLinear (q, scale) y = Conv (x, w) {BN}",
        {"scale": np.full((), 0.1), **statistics(4)},
    )
    model.graph.initializer.append(
        numpy_helper.from_array(np.arange(16, dtype=np.uint8).reshape(4, 4, 1, 1), "q")
    )
    assert "computed at run time" in refusal(model)


@pytest.mark.parametrize(
    ("between", "shape"),
    [
        ("y = Transpose <perm = [1, 0]> (u)", "float[a, b] z"),
        ("y = Reshape (u, shape)", "float[a, b, c] z"),
    ],
)
def test_refuses_a_matmul_whose_channels_were_moved(between, shape):  # 3
    """ONNX Runtime walks through Transpose and Reshape and folds into the wrong axis."""
    model = network(
        f"u = MatMul (x, w) {between} {BN}",
        {"w": normal(4, 4), **statistics(4)},
        inputs="float[4, 4] x",
        outputs=shape,
    )
    if "Reshape" in between:
        add_integers(model, shape=[1, 4, 4])
    assert "`u` (MatMul) has its features on the last axis" in refusal(model)


@pytest.mark.parametrize(
    "broken", [{"var": np.array([1.0, 0, 1, 1])}, {"mean": np.array([0, np.nan, 0, 0])}]
)
def test_refuses_statistics_that_give_no_number(broken):  # 5
    weights = {"w": normal(4, 4, 1, 1), **statistics(4), **broken}
    model = network(
        "y = Conv (x, w) z = BatchNormalization <epsilon = 0.0> (y, gamma, beta, mean, var)",
        weights,
    )
    assert "channel 1 has no finite scale and shift" in refusal(model)


def test_refuses_weights_that_overflow_float16():  # 5
    stats = statistics(4) | {"gamma": np.full(4, 6e4), "var": np.full(4, 1e-3)}
    model = network(
        f"y = Conv (x, w) {BN}",
        {"w": normal(4, 4, 1, 1), **stats},
        inputs="float16[2, 4, 5, 5] x",
        outputs="float16[a, b, c, d] z",
        dtype=np.float16,
    )
    assert "overflows float16" in refusal(model)


def test_refuses_channels_that_do_not_match():  # 5
    model = network(f"y = Conv (x, w) {BN}", {"w": normal(6, 4, 1, 1), **statistics(4)})
    assert "6 output channels" in refusal_without_checker(model)


def test_a_site_has_its_name_where_it_has_one():
    model = conv_bn(f"y = Conv (x, w) r = Relu (y) {BN.replace('(y', '(r')}")
    model.graph.node[2].name = "bn"
    _, report = fold(model)
    assert report.refused[0].site == "bn"


def test_one_refusal_does_not_stop_the_others():
    model = network(
        "u = Conv (x, w) v = BatchNormalization (u, gamma, beta, mean, var) r = Relu (v) "
        "z = BatchNormalization (r, beta, gamma, mean, var)",
        {"w": normal(4, 4, 1, 1), **statistics(4)},
    )
    _, report = fold(model)
    assert [site.site for site in report.folded] == ["v"]
    assert [site.site for site in report.refused] == ["z"]


# --- any chain -----------------------------------------------------------------------------------


@st.composite
def chains(draw) -> onnx.ModelProto:
    """Layers in a row, each reading one earlier value or, an Add, two."""
    lines, weights, values = [], {}, ["x"]
    operators = ["Conv", "Conv", "BN", "BN", "BN", "Relu", "Transpose", "Add", "Scale", "Shift"]
    for k in range(draw(st.integers(2, 8))):
        op = draw(st.sampled_from(operators))
        # Mostly the last value, so that chains form; else one further back, which fans out.
        source = values[-1] if draw(st.integers(0, 3)) else draw(st.sampled_from(values))
        name = f"v{k}"
        if op == "Conv":
            weights[f"w{k}"] = 0.5 * normal(4, 4, 1, 1, seed=k)
            lines.append(f"{name} = Conv ({source}, w{k})")
        elif op == "BN":
            weights |= statistics(4, prefix=f"p{k}_", seed=k)
            parameters = ", ".join(f"p{k}_{p}" for p in ("gamma", "beta", "mean", "var"))
            lines.append(f"{name} = BatchNormalization ({source}, {parameters})")
        elif op == "Add":
            lines.append(f"{name} = Add ({source}, {draw(st.sampled_from(values))})")
        elif op in ("Scale", "Shift"):
            weights[f"c{k}"] = normal(4, 1, 1, seed=k)
            lines.append(f"{name} = {'Mul' if op == 'Scale' else 'Add'} ({source}, c{k})")
        elif op == "Transpose":
            lines.append(f"{name} = Transpose <perm = [0, 1, 3, 2]> ({source})")
        else:
            lines.append(f"{name} = {op} ({source})")
        values.append(name)
    lines.append(f"z = Identity ({values[-1]})")
    return network(" ".join(lines), weights, inputs="float[2, 4, 3, 3] x")


def rounding_bound(folded: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Bound, per output, what rounding each weight of a folded chain once can do to it.

    With W within a relative u of the exact W*, and an input that is off by e,
    |W x - W* x*| <= |W| e + u / (1 - u) (|W| (|x| + e) + |b|): the node-local bound, carried along
    the chain. To u comes gamma_n of float64 for both evaluations, n the terms of a sum.
    """
    terms = 4 + 3
    u = 2.0**-24 / (1 - 2.0**-24) + 2 * terms * 2.0**-53 / (1 - terms * 2.0**-53)
    constants = {
        t.name: numpy_helper.to_array(t).astype(np.float64) for t in folded.graph.initializer
    }
    known = {"x": (x.astype(np.float64), np.zeros(x.shape))}
    known |= {name: (value, np.zeros(value.shape)) for name, value in constants.items()}
    for node in folded.graph.node:
        value, error = known[node.input[0]]
        if node.op_type == "Conv":
            weight = constants[node.input[1]][:, :, 0, 0]
            bias = constants[node.input[2]] if len(node.input) > 2 else np.zeros(4)
            moved = [np.moveaxis(v, 1, -1) for v in (value, error)]
            result = moved[0] @ weight.T + bias
            spread = (np.abs(moved[0]) + moved[1]) @ np.abs(weight).T + np.abs(bias)
            off = moved[1] @ np.abs(weight).T + u * spread
            known[node.output[0]] = (np.moveaxis(result, -1, 1), np.moveaxis(off, -1, 1))
            continue
        if node.op_type == "BatchNormalization":
            gamma, beta, mean, var = (constants[i].reshape(4, 1, 1) for i in node.input[1:])
            scale = gamma / np.sqrt(var + float(np.float32(1e-5)))
            result, error = scale * (value - mean) + beta, np.abs(scale) * error
            terms_of_it = np.abs(scale) * (np.abs(value) + np.abs(mean)) + np.abs(beta)
        elif node.op_type in ("Add", "Mul"):
            other, other_error = known[node.input[1]]
            if node.op_type == "Add":
                result, error = value + other, error + other_error
            else:
                result, error = value * other, error * np.abs(other) + np.abs(value) * other_error
            terms_of_it = np.abs(value) + np.abs(other)
        elif node.op_type == "Transpose":
            result, error = value.transpose(0, 1, 3, 2), error.transpose(0, 1, 3, 2)
            terms_of_it = np.zeros(result.shape)
        else:
            result = np.maximum(value, 0) if node.op_type == "Relu" else value
            terms_of_it = np.zeros(result.shape)
        known[node.output[0]] = (result, error + 2.0**-50 * terms_of_it)
    return known["z"][1]


@settings(max_examples=200, deadline=None)
@given(model=chains())
def test_folding_never_changes_what_a_chain_computes(model):
    folded, report = fold(model)
    names = {node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"}
    num_folded = sum(site.site in names for site in report.folded)
    assert num_folded == batchnorms(model) - batchnorms(folded)
    assert len(report.refused) == batchnorms(folded)
    inputs = feeds(model)
    expected = evaluate_float64(model, inputs)["z"]
    found = evaluate_float64(folded, inputs)["z"]
    bound = rounding_bound(folded, inputs["x"])
    assert (np.abs(found - expected) <= bound + 2.0**-50 * np.abs(expected)).all()


def test_the_bound_of_a_chain_bites():
    """One weight that is off by four units in its last place shows, in one layer or in the last."""
    weights = {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1, seed=2), **statistics(4)}
    model = network(f"u = Conv (x, w) y = Conv (u, v) {BN}", weights, inputs="float[2, 4, 3, 3] x")
    folded, _ = fold(model)
    inputs = feeds(model)
    expected = evaluate_float64(model, inputs)["z"]
    for tensor in folded.graph.initializer:
        if tensor.name == "v":
            values = numpy_helper.to_array(tensor) * np.float32(1 + 16 * 2.0**-24)
            tensor.CopyFrom(numpy_helper.from_array(values, "v"))
    found = evaluate_float64(folded, inputs)["z"]
    assert (np.abs(found - expected) > rounding_bound(folded, inputs["x"])).any()
