"""The one reading of an affine layer: layouts, windows, and what is outside the specification."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import read_layer, read_node


@pytest.mark.parametrize(
    ("op", "attributes", "stored", "by_output", "num_inputs"),
    [
        ("Conv", {}, (6, 4, 3, 5), (6, 4, 3, 5), 4),
        ("Conv", {"group": 3}, (6, 4, 3), (6, 4, 3), 12),
        ("ConvTranspose", {"group": 2}, (4, 3, 5, 2), (6, 2, 5, 2), 4),
        ("Gemm", {}, (4, 6), (6, 4), 4),
        ("Gemm", {"transB": 1, "alpha": 0.1}, (6, 4), (6, 4), 4),
        ("MatMul", {}, (4, 6), (6, 4), 4),
    ],
)
def test_a_weight_is_seen_with_its_outputs_first_and_put_back(
    op, attributes, stored, by_output, num_inputs
):
    layer = read_node(helper.make_node(op, ["x", "w"], ["y"], **attributes), stored)
    assert (layer.num_outputs, layer.num_inputs) == (6, num_inputs)
    assert layer.num_products == np.prod(by_output[1:])
    assert layer.alpha == np.float32(attributes.get("alpha", 1.0))
    weight = np.arange(np.prod(stored)).reshape(stored)
    assert layer.by_output(weight).shape == by_output
    grouped = layer.by_group(weight)
    assert grouped.shape == (layer.groups, 6 // layer.groups, *by_output[1:])
    for seen in (layer.by_output(weight), grouped, grouped.reshape(6, -1)):
        assert np.array_equal(layer.as_stored(seen), weight)
    if op == "ConvTranspose":  # output 4 is the second of group 1, which reads inputs 2 and 3
        assert np.array_equal(layer.by_output(weight)[4], weight[2:4, 1])


@pytest.mark.parametrize(
    ("op", "attributes", "shape", "reason"),
    [
        ("Conv", {"stride": [1, 1]}, (4, 2, 3, 3), r"unknown attributes \['stride'\]"),
        ("MatMul", {"transB": 1}, (4, 2), r"unknown attributes \['transB'\]"),
        ("Conv", {"auto_pad": "SAME"}, (4, 2, 3, 3), "unknown auto_pad 'SAME'"),
        ("Conv", {"auto_pad": "VALID", "pads": [1] * 4}, (4, 2, 3, 3), "beside auto_pad VALID"),
        ("Conv", {"group": 3}, (4, 2, 3, 3), "group 3 of 4"),
        ("Conv", {"group": 0}, (4, 2, 3, 3), "group 0"),
        ("Conv", {"kernel_shape": [3, 1]}, (4, 2, 3, 3), "kernel_shape"),
        ("Conv", {"strides": [0, 1]}, (4, 2, 3, 3), "strides"),
        ("Conv", {"strides": 2}, (4, 2, 3, 3), "not iterable"),
        ("ConvTranspose", {"dilations": [1]}, (4, 2, 3, 3), "dilations"),
        ("ConvTranspose", {"pads": [1, -1, 0, 0]}, (4, 2, 3, 3), "pads"),
        ("Conv", {}, (4, 2), "rank 2"),
        ("Gemm", {}, (4, 2, 1), "rank 3"),
        ("Gemm", {"alpha": numpy_helper.from_array(np.ones(1))}, (4, 2), "Gemm"),
    ],
)
def test_what_the_specification_does_not_have_is_refused_by_name(op, attributes, shape, reason):
    node = helper.make_node(op, ["x", "w"], ["y"], name="here", **attributes)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        read_node(node, shape)
    assert caught.value.where == "here"


@pytest.mark.parametrize(
    ("attributes", "kernel", "pads"),
    [
        ({}, (3, 3), False),
        ({"pads": [0, 0, 0, 1]}, (3, 3), True),
        ({"auto_pad": "VALID"}, (3, 3), False),
        ({"auto_pad": "SAME_LOWER"}, (1, 3), True),
        ({"auto_pad": "SAME_UPPER"}, (1, 1), False),
    ],
)
def test_a_window_that_sees_zeros_is_told_from_one_that_does_not(attributes, kernel, pads):
    layer = read_layer("Conv", attributes, (4, 2, *kernel))
    assert layer.pads_with_zeros == pads
    assert (layer.strides, layer.dilations) == ((1, 1), (1, 1))
    assert read_layer("ConvTranspose", {}, (4, 2, *kernel)).pads_with_zeros
