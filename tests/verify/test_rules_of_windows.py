"""Rewritings of windows, reductions and resizing, and their corners; see `test_rules.py`."""

import numpy as np
import pytest
from networks_as_text import check_rule, is_same, network

from resdeploy.errors import UnsupportedModelError
from resdeploy.verify.normal_form import skeleton_of

RESIZE = 'y = Resize<mode="{}", coordinate_transformation_mode="{}", nearest_mode="{}">({})'
TWICE = "x, , $[1.0, 1.0, 2.0, 2.0]"
CUBIC = 'y = Resize<mode="cubic"{}>(x, , $[1.0, 1.0, 2.0, 2.0])'
# Sign makes ties.
TIES = "s = Sign(x) "
AS_REAL = " y = Cast<to=11>(i)"

CASES = {
    "a largest window that is the map": (
        "y = MaxPool<kernel_shape=[8, 8]>(x)",
        "y = GlobalMaxPool(x)",
        "y = AveragePool<kernel_shape=[8, 8]>(x)",
    ),
    "a window beside a sum": (
        "p = AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x) y = Add(p, x)",
        'p = AveragePool<kernel_shape=[3, 3], auto_pad="SAME_UPPER">(x) y = Add(x, p)',
        ("p = AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1>(x)"
        " y = Add(p, x)"),
        "p = AveragePool<kernel_shape=[5, 5], pads=[2, 2, 2, 2]>(x) y = Add(p, x)",
    ),
    "dilated windows": (
        "y = MaxPool<kernel_shape=[2, 2], dilations=[2, 1]>(x)",
        "y = MaxPool<kernel_shape=[2, 2], dilations=[2, 1], strides=[1, 1]>(x)",
        "y = MaxPool<kernel_shape=[2, 2], dilations=[1, 2]>(x)",
    ),
    "a window that begins in the padding": (
        "y = MaxPool<kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1>(x)",
        "y = MaxPool<kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1]>(x)",
        "y = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x)",
    ),
    "no window beyond the padding": (
        "y = MaxPool<kernel_shape=[2, 2], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1>(x)",
        "y = MaxPool<kernel_shape=[2, 2], strides=[3, 3], pads=[1, 1, 0, 0]>(x)",
        "y = MaxPool<kernel_shape=[2, 2], strides=[3, 3]>(x)",
    ),
    "an average rounded up": (
        "y = AveragePool<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1>(x)",
        "y = AveragePool<ceil_mode=1, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 0, 0]>(x)",
        "y = AveragePool<kernel_shape=[3, 3], strides=[2, 2]>(x)",
        "y = AveragePool<kernel_shape=[2, 2], strides=[2, 2]>(x)",
    ),
    "a norm of windows": (
        "y = LpPool<kernel_shape=[2, 2]>(x)",
        "y = LpPool<kernel_shape=[2, 2], p=2>(x)",
        "y = LpPool<kernel_shape=[2, 2], p=1>(x)",
        "y = AveragePool<kernel_shape=[2, 2]>(x)",
    ),
    "reduction of everything": (
        "y = ReduceSum(x)",
        "y = ReduceSum(x, %[0, -1, 1, 2])",
        "y = ReduceMean(x)",
        "y = ReduceSum(x, %[1, 2, 3])",
    ),
    "reductions that drop their axes": (
        "y = ReduceMax<keepdims=0>(x, %[-2])",
        "m = ReduceMax(x, %[2]) y = Squeeze(m, %[-2])",
        "y = ReduceMax<keepdims=0>(x, %[-1])",
        "y = ReduceMin<keepdims=0>(x, %[-2])",
    ),
    "place of the largest": (
        TIES + "i = ArgMax<axis=1, keepdims=0>(s)" + AS_REAL,
        TIES + "k = ArgMax<axis=-3>(s) i = Squeeze(k, %[1])" + AS_REAL,
        TIES + "i = ArgMin<axis=1, keepdims=0>(s)" + AS_REAL,
        TIES + "i = ArgMax<axis=1, keepdims=0, select_last_index=1>(s)" + AS_REAL,
        TIES + "i = ArgMax<axis=2, keepdims=0>(s)" + AS_REAL,
        TIES + "i = ArgMax<axis=1>(s)" + AS_REAL,
    ),
    "running sums": (
        "y = CumSum(x, %1)",
        "y = CumSum<exclusive=0, reverse=0>(x, %-3)",
        "y = CumSum(x, %2)",
        "y = CumSum<exclusive=1>(x, %1)",
        "y = CumSum<reverse=1>(x, %1)",
    ),
    "softmax over everything": (
        "f = Reshape(x, %[0, -1]) y = Softmax(f)",
        "f = Flatten(x) y = Softmax<axis=1>(f)",
        "f = Flatten(x) y = LogSoftmax<axis=1>(f)",
        "f = Flatten(x) y = Softmax<axis=0>(f)",
    ),
    "the largest few": (
        "y, i = TopK<axis=1>(x, %[2])",
        "y, i = TopK<axis=-3, largest=1>(x, %[2])",
        "y, i = TopK<axis=1, largest=0>(x, %[2])",
        "y, i = TopK<axis=2>(x, %[2])",
        "y, i = TopK<axis=1>(x, %[3])",
    ),
    "places of the largest few": (
        "v, i = TopK(x, %[8])" + AS_REAL,
        "v, i = TopK<axis=3>(x, %[8])" + AS_REAL,
        "v, i = TopK<axis=2>(x, %[8])" + AS_REAL,
        "y, i = TopK(x, %[8])",
    ),
    "nearest where the pixels begin": (
        RESIZE.format("nearest", "asymmetric", "floor", TWICE),
        RESIZE.format("nearest", "half_pixel", "round_prefer_ceil", TWICE),
        RESIZE.format("nearest", "half_pixel", "floor", TWICE),
        RESIZE.format("nearest", "asymmetric", "round_prefer_ceil", TWICE),
        RESIZE.format("nearest", "asymmetric", "floor", "x, , $[1.0, 1.0, 2.0, 3.0]"),
    ),
    "no resizing": (
        'r = Resize<mode="linear">(x, , $[1.0, 1.0, 1.0, 1.0]) y = Relu(r)',
        "y = Relu(x)",
        'r = Resize<mode="linear">(x, , $[1.0, 1.0, 1.0, 2.0]) y = Relu(r)',
    ),
    "cubic": (
        CUBIC.format(""),
        CUBIC.format(", cubic_coeff_a=-0.75, exclude_outside=0"),
        CUBIC.format(", cubic_coeff_a=-0.5"),
        CUBIC.format(", exclude_outside=1"),
        'y = Resize<mode="linear">(x, , $[1.0, 1.0, 2.0, 2.0])',
    ),
    "a scale that is the ratio of its sizes": (
        'y = Resize<mode="linear">(x, , $[1.0, 1.0, 1.25, 1.5])',
        ("n = Shape<end=1>(x) t = Concat<axis=0>(n, %[4, 10, 12])"
        ' y = Resize<mode="linear">(x, , , t)'),
        'y = Resize<mode="linear">(x, , $[1.0, 1.0, 1.5, 1.25])',
    ),
}  # fmt: skip


def case(body, **settings):
    return network(body, {}, inputs="double[N, 4, 8, 8] x", **settings)


@pytest.mark.parametrize(
    ("first", "second", "others"), [(a, b, c) for a, b, *c in CASES.values()], ids=CASES
)
def test_two_ways_are_one_network_and_a_near_one_is_another(first, second, others):
    check_rule(case(first), case(second), list(map(case, others)))


# The opset of the first network, and the three.
OLDER = {
    "softmax over all axes from one on": (
        12,
        "y = Softmax<axis=2>(x)",
        "r = Reshape(x, %[-1, 64]) s = Softmax(r) y = Reshape(s, %[-1, 4, 8, 8])",
        "y = Softmax<axis=2>(x)",
    ),
    "softmax without an axis": (
        11,
        "y = LogSoftmax(x)",
        "r = Flatten(x) s = LogSoftmax(r) y = Reshape(s, %[0, 4, 8, 8])",
        "y = LogSoftmax(x)",
    ),
    "softmax over the last axis": (
        11, "y = Softmax<axis=-1>(x)", "y = Softmax(x)", "y = Softmax<axis=2>(x)",
    ),
    "reduced axes as an attribute": (
        11,
        "y = ReduceSum<axes=[1, -1], keepdims=0>(x)",
        "y = ReduceSum<keepdims=0>(x, %[1, 3])",
        "y = ReduceSum<keepdims=0>(x, %[2, 3])",
    ),
    "a number of the largest": (
        9, "y, i = TopK<k=2, axis=1>(x)", "y, i = TopK<axis=1>(x, %[2])", "y, i = TopK(x, %[2])",
    ),
    "nearest without conventions": (
        10,
        'y = Resize<mode="nearest">(x, $[1.0, 1.0, 2.0, 2.0])',
        RESIZE.format("nearest", "asymmetric", "floor", TWICE),
        RESIZE.format("nearest", "asymmetric", "ceil", TWICE),
    ),
    "linear without conventions": (
        10,
        'y = Resize<mode="linear">(x, $[1.0, 1.0, 2.0, 2.0])',
        RESIZE.format("linear", "asymmetric", "floor", TWICE),
        RESIZE.format("linear", "half_pixel", "floor", TWICE),
    ),
    "upsample": (
        9,
        'y = Upsample<mode="nearest">(x, $[1.0, 1.0, 2.0, 2.0])',
        RESIZE.format("nearest", "half_pixel", "round_prefer_floor", TWICE),
        RESIZE.format("nearest", "asymmetric", "ceil", TWICE),
    ),
    "upsample by an attribute": (
        7,
        'y = Upsample<mode="linear", scales=[1.0, 1.0, 2.0, 2.0]>(x)',
        RESIZE.format("linear", "asymmetric", "floor", TWICE),
        RESIZE.format("linear", "align_corners", "floor", TWICE),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("opset", "first", "second", "other"), OLDER.values(), ids=OLDER)
def test_an_older_opset_says_it_in_its_own_way(opset, first, second, other):
    check_rule(case(first, opset=opset), case(second), [case(other)])


def test_a_normalisation_of_groups():
    """Of opset 21, with a scale for each channel; that of 18 has one for each group."""
    weights = {"gamma": np.array([1.0, 2, 3, 4]), "beta": np.array([4.0, 3, 2, 1])}
    parts = (
        "r = Reshape(x, %[0, {groups}, -1])"
        " i = InstanceNormalization<epsilon={eps}>(r, ones, zeros)"
        " n = Reshape(i, %[0, 4, 8, 8]) g = Reshape(gamma, %[4, 1, 1])"
        " h = Reshape(beta, %[4, 1, 1]) z = Mul(n, g) y = Add(z, h)"
    )
    bodies = (
        "y = GroupNormalization<num_groups=2, epsilon=0.1>(x, gamma, beta)",
        parts.format(groups=2, eps=0.1),
        parts.format(groups=2, eps=0.2),
        parts.format(groups=4, eps=0.1),
        "y = GroupNormalization<num_groups=2, epsilon=0.1>(x, beta, gamma)",
    )
    first, second, *others = (
        network(
            body,
            weights | {"ones": np.ones(4 if "[0, 4, -1]" in body else 2),
                       "zeros": np.zeros(4 if "[0, 4, -1]" in body else 2)},
            inputs="double[N, 4, 8, 8] x",
            opset=21,
        )
        for body in bodies
    )  # fmt: skip
    check_rule(first, second, others)
    pairs = {"gamma": np.ones(2), "beta": np.zeros(2)}
    older = network(bodies[0], pairs, inputs="double[N, 4, 8, 8] x", opset=18)
    with pytest.raises(UnsupportedModelError, match="of opset 18 is deprecated"):
        skeleton_of(older)


REFUSED = {
    "y = ReduceSum<noop_with_empty_axes=1>(x)": "reduces nothing",
    'y = Resize<coordinate_transformation_mode="tf_crop_and_resize">'
    "(x, $[0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0], , %[1, 4, 8, 8])": "crops",
    'y = Resize<coordinate_transformation_mode="tf_crop_and_resize">'
    "(x, $[0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0], $[1.0, 1.0, 1.0, 1.0])": "crops",
    'y = Resize<keep_aspect_ratio_policy="not_larger">(x, , , %[1, 4, 16, 8])': "an aspect ratio",
    "y = Resize<axes=[0, 1, 3, 2]>(x, , $[1.0, 1.0, 2.0, 1.0])": "names its axes",
    "y = Resize<axes=[0, 1, 3, 2]>(x, , $[1.0, 1.0, 1.0, 1.0])": "names its axes",
    "y = Resize(x)": "states neither scales nor sizes",
    "y = Clip(x, $2.0, $-1.0)": "bounds in the wrong order",
    "y = Div(x, $0.0)": "divides by zero",
    "y = Pow(x, $[1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0])": "has several powers",
    "f = Reshape(x, %[-1]) y = MatMul(f, f)": "multiplies",
    "r = Reshape(x, %[0, 4, 4, 16]) y = MatMul(r, r)": "multiplies",
    'y = Einsum<equation="nchw,nchw">(x, x)': "does not name its axes",
    'y = Einsum<equation="...w->...w">(x)': "does not name its axes",
    'y = Einsum<equation="nchw,nhcw->nw">(x, x)': "has an axis of two sizes",
    "y, i = MaxPool<kernel_shape=[2, 2]>(x)": "tells where its maxima are",
    "w = ConstantOfShape(%[4, 3, 3, 3]) y = ConvTranspose<output_shape=[11, 11]>(x, w)":
        "states the shape of its output",
    'w = ConstantOfShape(%[4, 3, 3, 3]) y = ConvTranspose<auto_pad="SAME_UPPER">(x, w)':
        "states the shape of its output",
    "w = ConstantOfShape(%[4, 3, 3, 3]) y = Conv(x, w)": "reads a value of shape",
}  # fmt: skip


@pytest.mark.parametrize(("body", "message"), REFUSED.items(), ids=REFUSED)
def test_a_corner_is_refused_by_name(body, message):
    with pytest.raises(UnsupportedModelError, match=rf"\w,? {message}"):
        skeleton_of(case(body))


def test_nearest_to_fewer_in_opset_10_is_refused():
    """ONNX Runtime reads the next value above there, and says so nowhere in the file."""
    shrunk = 'y = Resize<mode="{}">(x, $[1.0, 1.0, 0.5, 0.5])'
    with pytest.raises(UnsupportedModelError, match="rounds up"):
        skeleton_of(case(shrunk.format("nearest"), opset=10))
    assert skeleton_of(case(shrunk.format("linear"), opset=10)).nodes


@pytest.mark.parametrize("places", ["i = ArgMax<axis=1>(x)", "v, i = TopK(x, %[8])"])
def test_places_are_whole_numbers(places):
    node = skeleton_of(case(places + AS_REAL)).nodes[-1]
    assert (node.op, dict(node.attributes)["from"]) == ("Cast", "int64")


def test_antialiasing_is_another_network():
    half = 'y = Resize<mode="linear"{}>(x, , $[1.0, 1.0, 0.5, 0.5])'
    smooth = [case(half.format(f", antialias={flag}")) for flag in (1, 1, 0)]
    assert is_same(smooth[0], smooth[1])
    assert not is_same(smooth[0], smooth[2])


def test_a_scale_that_is_no_ratio_is_stated():
    """8 by 1.3 is 10.4, of which 10 are made: places lie 1.3 apart, not 1.25."""
    stated = 'y = Resize<mode="linear">(x, , $[1.0, 1.0, {0}, {0}])'
    by_scale, by_ratio = (case(stated.format(factor)) for factor in (1.3, 1.25))
    assert is_same(by_scale, case(stated.format(1.3)))
    assert not is_same(by_scale, by_ratio)


def test_an_open_side_is_scaled():
    found = [
        network(
            f"y = Resize(x, , $[1.0, 1.0, {factor}, 2.0])",
            {"half": np.float64(0.5)},
            inputs="double[N, 4, H, 8] x",
        )
        for factor in (0.5, 0.5, 1.5)
    ]
    assert is_same(found[0], found[1])
    assert not is_same(found[0], found[2])
