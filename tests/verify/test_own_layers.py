"""The layers of a file: which they are, with which numbers, and what is none."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from resdeploy.verify.own_layers import own_layers

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(size=(6, 4, 3, 3)).astype(np.float32),
    "wt": RNG.normal(size=(4, 3, 2, 2)).astype(np.float32),
    "b": RNG.normal(size=6).astype(np.float32),
    "m": RNG.normal(size=(8, 5)).astype(np.float32),
    "m3": RNG.normal(size=(4, 8, 5)).astype(np.float32),
    "c": RNG.normal(size=5).astype(np.float32),
    "ones": np.ones(4, np.float32),
    "mean": RNG.normal(size=(1, 4, 1, 1)).astype(np.float32),
    "rows": RNG.normal(size=(8, 1)).astype(np.float32),
    "one": np.full(1, 0.5, np.float32),
    "two": np.full((1, 2), 0.5, np.float32),
    "whole": RNG.integers(0, 9, (1, 4, 1, 1)),
}
WEIGHTS["minus"] = -WEIGHTS["c"]


def layers_of(body, inputs="float[N, 4, 8, 8] x"):
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]>\ng ({inputs}) => (float[N, a] y) {{ {body} }}'
    )
    used = {name for node in proto.graph.node for name in node.input}
    for name in used & set(WEIGHTS):
        proto.graph.initializer.append(numpy_helper.from_array(WEIGHTS[name], name))
    return own_layers(proto)


def numbers_of(body):
    (layer,) = layers_of(body)
    return layer.affine.weight, layer.affine.bias


def test_a_convolution_has_its_numbers_as_they_stand():
    (layer,) = layers_of("r = Relu(x) h = Conv(r, w, b) y = Relu(h)")
    assert (layer.name, layer.op, layer.reads, layer.writes) == ("h", "Conv", "r", "h")
    np.testing.assert_array_equal(layer.affine.weight, WEIGHTS["w"])
    np.testing.assert_array_equal(layer.affine.bias, WEIGHTS["b"])
    np.testing.assert_array_equal(layer.affine.bias_magnitude, np.abs(WEIGHTS["b"]))
    assert (layer.affine.num_products, layer.affine.dtype) == (36, "float32")


def test_a_transposed_convolution_without_a_bias_adds_zeros():
    weight, bias = numbers_of("y = ConvTranspose(x, wt)")
    np.testing.assert_array_equal(weight, WEIGHTS["wt"])
    np.testing.assert_array_equal(bias, np.zeros(3))


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm(x, m, c)",
        "h = MatMul(x, m) y = Add(h, c)",
        "h = MatMul(x, m) y = Add(c, h)",
        "i = Identity(m) k = Identity(c) h = MatMul(x, i) y = Add(h, k)",
    ],
)
def test_every_matrix_product_is_a_linear_layer_with_what_is_added(body):
    (layer,) = layers_of(body)
    assert (layer.op, layer.reads, layer.writes) == ("Linear", "x", "y")
    np.testing.assert_array_equal(layer.affine.weight, WEIGHTS["m"].T)
    np.testing.assert_array_equal(layer.affine.bias, WEIGHTS["c"])
    np.testing.assert_array_equal(layer.affine.bias_magnitude, np.abs(WEIGHTS["c"]))


def test_constants_of_nodes_are_weights():
    body = (
        "m2 = Constant<value = float[2, 2] {1, 2, 3, 4}>()"
        " c2 = Constant<value = float[2] {5, 6}>() h = MatMul(x, m2) y = Add(h, c2)"
    )
    (layer,) = layers_of(body, inputs="float[N, 2] x")
    np.testing.assert_array_equal(layer.affine.weight, [[1, 3], [2, 4]])
    np.testing.assert_array_equal(layer.affine.bias, [5, 6])


def test_one_number_is_added_to_every_output():
    _, bias = numbers_of("h = Gemm(x, m, c) y = Add(h, one)")
    np.testing.assert_array_equal(bias, WEIGHTS["c"].astype(float) + 0.5)


def test_terms_that_cancel_leave_their_size():
    (layer,) = layers_of("h = Gemm(x, m, c) y = Add(h, minus)")
    np.testing.assert_array_equal(layer.affine.bias, np.zeros(5))
    np.testing.assert_array_equal(layer.affine.bias_magnitude, np.abs(WEIGHTS["c"]))


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul(x, m) r = Relu(h) s = Add(h, c) y = Add(r, s)",  # read by others
        "h = MatMul(x, m) y = Add(h, rows)",  # one for each row
        "h = MatMul(x, m) y = Add(h, two)",  # no number for each output
        "h = MatMul(x, m) y = Add(h, h)",
        "h = MatMul(x, m) y = Add(x, h)",
    ],
)
def test_what_else_is_added_is_no_bias(body):
    (layer,) = layers_of(body)
    assert layer.writes == "h"
    assert not layer.affine.bias.any()


def test_a_constant_added_to_a_convolution_is_no_bias():
    (layer,) = layers_of("h = Conv(x, w) y = Add(h, one)")
    assert (layer.writes, layer.affine.bias.any()) == ("h", False)


def test_a_batchnorm_is_its_scale_and_shift():
    (layer,) = layers_of("y = BatchNormalization(x, ones, ones, ones, ones)")
    scale = 1 / np.sqrt(1 + float(np.float32(1e-5)))
    np.testing.assert_allclose(layer.affine.weight, np.full(4, scale), rtol=1e-15)
    np.testing.assert_allclose(layer.affine.bias, np.full(4, 1 - scale), rtol=1e-9)
    np.testing.assert_allclose(layer.affine.bias_magnitude, np.full(4, 1 + scale), rtol=1e-15)
    assert layer.affine.num_products == 5


def test_a_mean_taken_away_is_a_layer():
    (layer,) = layers_of("y = Sub(x, mean)")
    np.testing.assert_array_equal(layer.affine.weight, np.ones(4))
    np.testing.assert_array_equal(layer.affine.bias, -WEIGHTS["mean"].ravel())
    np.testing.assert_array_equal(layer.affine.bias_magnitude, np.abs(WEIGHTS["mean"].ravel()))
    assert layer.affine.num_products == 1


@pytest.mark.parametrize(
    "body",
    [
        "y = BatchNormalization<training_mode=1>(x, ones, ones, ones, ones)",
        "y = Sub(x, ones)",  # along the width
        "y = Sub(mean, x)",
        "y = Sub(x, whole)",
        "y = MatMul(x, m3)",
        "v = Neg(w) y = Conv(x, v)",
        "y = Conv(x, w, v)",
        "y = Relu(x)",
        "y = Gemm<transA=1>(x, m)",
        "y = Mul(x, mean)",
    ],
)
def test_what_is_no_layer_of_constants_is_left_out(body):
    assert layers_of(body) == ()
