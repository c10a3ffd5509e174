"""The way of a map in an ONNX graph and its ends, by the conditions of the modules.

Each fold is judged in float64 (see `check`); each refusal leaves every bit as it was.
"""

import numpy as np
import onnx
import pytest
from folding import (
    BN,
    NONE_BELOW,
    add_integers,
    check,
    fold,
    names_of_initializers,
    network,
    normal,
    refusal,
    statistics,
)

from resdeploy.graph.float64 import evaluate_float64

CONV = "u = Conv (x, w)"
IMAGE = {"outputs": "float[a, b, c, d] z"}
ROWS = {"inputs": "float[3, 4] x", "outputs": "float[a, b] z"}
SQUARE = {"inputs": "float[4, 4] x", "outputs": "float[a, b] z"}
SQUARES = {"inputs": "float[2, 4, 4] x", "outputs": "float[a, b, c] z"}
SEQUENCE = {"inputs": "float[2, 5, 4] x", "outputs": "float[a, b, c] z"}


def model_of(
    body: str,
    *,
    channels: int = 6,
    positive: bool = False,
    integers: dict[str, list[int]] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    **more,
) -> onnx.ModelProto:
    """A model with a 3x3 Conv weight `w`, statistics of some channels, and what is given."""
    values = {"w": normal(6, 4, 3, 3), **statistics(channels), **(weights or {})}
    if positive:
        values["gamma"] = np.abs(values["gamma"])
    model = network(body, {k: v for k, v in values.items() if k in body + BN}, **more)
    add_integers(model, **(integers or {}))
    return model


def refusal_below(body: str, **more) -> str:
    """The reason why the second node of a body with four channels does not go down."""
    model = model_of(body, channels=4, **more)
    model.graph.node[1].name = "bn"
    return refusal(model)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# --- upwards: rules 1 and 2 ----------------------------------------------------------------------


def test_crosses_a_cast_to_the_same_type():
    check(model_of(f"{CONV} y = Cast <to = 1> (u) {BN}"))


def test_refuses_a_cast_to_another_type():  # rules 1
    body = f"{CONV} v = Cast <to = 11> (u) y = Cast <to = 1> (v) {BN}"
    assert "comes from `y` (Cast)" in refusal(model_of(body))


@pytest.mark.parametrize("perm", [[0, 1, 3, 2], [2, 1, 0, 3]])
def test_crosses_a_transpose_that_keeps_the_channels(perm):
    check(model_of(f"{CONV} y = Transpose <perm = {perm}> (u) {BN}"))


def test_crosses_a_transpose_of_features():
    """(N, L, C) -> (N, C, L): the channels that are normalised are the features of the layer."""
    model = model_of(
        f"u = MatMul (x, w) y = Transpose <perm = [0, 2, 1]> (u) {BN}",
        weights={"w": normal(4, 6)},
        **SEQUENCE,
    )
    assert operators(check(model)) == ["MatMul", "Add", "Transpose"]


def test_crosses_a_transpose_that_turns_three_axes_around():
    """(N, H, W, C) -> (N, C, H, W), which is not the same backwards."""
    model = model_of(
        f"u = MatMul (x, w) y = Transpose <perm = [0, 3, 1, 2]> (u) {BN}",
        weights={"w": normal(4, 6)},
        inputs="float[2, 3, 5, 4] x",
    )
    assert operators(check(model)) == ["MatMul", "Add", "Transpose"]


def test_refuses_a_transpose_that_brings_another_axis_to_the_channels():  # rules 2
    """Square, so that every length fits."""
    model = model_of(
        f"u = MatMul (x, w) y = Transpose <perm = [0, 1, 2]> (u) {BN}",
        weights={"w": normal(4, 4)},
        channels=4,
        **SQUARES,
    )
    assert "last axis of a rank-3 value" in refusal(model)


def test_a_transpose_without_an_order_turns_all_axes_around():
    body = f"u = MatMul (x, w) v = Transpose (u) y = Transpose <perm = [1, 0]> (v) {BN}"
    check(model_of(body, weights={"w": normal(4, 6)}, **ROWS))


@pytest.mark.parametrize("opset", [7, 13, 18])
def test_crosses_a_reshape_of_features_to_channels(opset):
    """As a generator of images begins: each channel is a block of features."""
    model = model_of(
        f"u = Gemm (x, w, b) y = Reshape (u, shape) {BN}",
        weights={"w": normal(4, 24), "b": normal(24)},
        integers={"shape": [3, 6, 2, 2]},
        inputs="float[3, 4] x",
        opset=opset,
    )
    check(model)


def test_crosses_a_reshape_with_an_open_batch():
    model = model_of(
        f"u = Gemm (x, w, b) y = Reshape (u, shape) {BN}",
        weights={"w": normal(4, 24), "b": normal(24)},
        integers={"shape": [-1, 6, 2, 2]},
        inputs="float[n, 4] x",
    )
    check(model)


def test_crosses_a_reshape_of_sequences_to_rows():
    body = (
        "u = MatMul (x, w) v = Reshape (u, rows) "
        "t = BatchNormalization (v, gamma, beta, mean, var) z = Reshape (t, back)"
    )
    model = model_of(
        body,
        weights={"w": normal(4, 6)},
        integers={"rows": [-1, 6], "back": [2, 5, 6]},
        **SEQUENCE,
    )
    check(model)


def test_refuses_a_reshape_that_mixes_channels_and_places():  # rules 2
    model = model_of(
        f"{CONV} y = Reshape (u, shape) {BN}",
        channels=9,
        integers={"shape": [2, 9, 6]},
        outputs="float[a, b, c] z",
    )
    assert "the map differs between positions of `u` (Conv)" in refusal(model)


def test_refuses_a_reshape_where_the_map_differs_by_sample():  # rules 2
    """The normalised axis is the batch of the layer, which a Transpose has brought to axis 1."""
    model = model_of(
        f"u = MatMul (x, w) r = Reshape (u, shape) y = Transpose <perm = [1, 0, 2]> (r) {BN}",
        channels=4,
        weights={"w": normal(4, 4)},
        integers={"shape": [4, 2, 2]},
        inputs="float[4, 4] x",
        outputs="float[a, b, c] z",
    )
    assert "comes from `r` (Reshape)" in refusal(model)


def test_refuses_a_reshape_whose_shape_is_computed():
    """The shape that the model states may be true, but nothing here shows it."""
    model = model_of(
        f"shape = Shape (u0) {CONV} u0 = Conv (x, w) y = Reshape (u, shape) {BN}".replace(
            f"shape = Shape (u0) {CONV} u0 = Conv (x, w)",
            f"{CONV} v = Conv (x, w) shape = Shape (v)",
        )
    )
    assert "what `y` (Reshape) does depends on the input" in refusal(model)


@pytest.mark.parametrize("opset", [7, 13, 18])
def test_crosses_a_flatten(opset):
    body = f"{CONV} v = GlobalAveragePool (u) y = Flatten (v) {BN}"
    check(model_of(body, outputs="float[a, b] z", opset=opset))


@pytest.mark.parametrize("opset", [7, 13, 18])
def test_crosses_squeeze_and_unsqueeze(opset):
    as_input = opset >= 13
    squeeze = "y = Squeeze (v, axes)" if as_input else "y = Squeeze <axes = [2, 3]> (v)"
    model = model_of(
        f"{CONV} v = GlobalAveragePool (u) {squeeze} {BN}",
        outputs="float[a, b] z",
        integers={"axes": [2, 3]} if as_input else None,
        opset=opset,
    )
    check(model)
    unsqueeze = "y = Unsqueeze (u, axes)" if as_input else "y = Unsqueeze <axes = [2]> (u)"
    model = model_of(
        f"u = Gemm (x, w, b) {unsqueeze} {BN}",
        weights={"w": normal(4, 6), "b": normal(6)},
        inputs="float[3, 4] x",
        outputs="float[a, b, c] z",
        integers={"axes": [2]} if as_input else None,
        opset=opset,
    )
    check(model)


def test_refuses_an_unsqueeze_that_makes_the_batch_the_channels():  # rules 2
    """(4, 4) -> (1, 4, 4): what is normalised now is the sample."""
    model = model_of(
        f"u = Gemm (x, w, b) y = Unsqueeze <axes = [0]> (u) {BN}",
        weights={"w": normal(4, 4), "b": normal(4)},
        channels=4,
        inputs="float[4, 4] x",
        outputs="float[a, b, c] z",
        opset=11,
    )
    assert "normalises another axis" in refusal(model)


@pytest.mark.parametrize(("mode", "opset"), [("", 7), ("", 13), ('"DCR"', 13), ('"CRD"', 13)])
def test_crosses_depth_to_space(mode, opset):
    attribute = f", mode = {mode}" if mode else ""
    body = f"u = Conv (x, w) y = DepthToSpace <blocksize = 2{attribute}> (u) {BN}"
    check(model_of(body, channels=3, weights={"w": normal(12, 4, 1, 1)}, opset=opset))


@pytest.mark.parametrize("opset", [7, 13, 18])
def test_crosses_a_slice_of_channels(opset):
    cut = "y = Slice <axes = [1], starts = [1], ends = [5]> (u)"
    if opset >= 10:
        cut = "y = Slice (u, starts, ends, axes, steps)"
    model = model_of(
        f"{CONV} {cut} {BN}",
        channels=4 if opset < 10 else 2,
        integers={"starts": [5], "ends": [1], "axes": [-3], "steps": [-2]} if opset >= 10 else None,
        opset=opset,
    )
    check(model)


def test_crosses_a_slice_of_places():
    model = model_of(
        f"{CONV} y = Slice (u, starts, ends) {BN}",
        integers={"starts": [0, 0, 1, 0], "ends": [2, 6, 3, 9]},
    )
    check(model)


# --- upwards: rules 3 to 5 -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [2, 2]",
        "kernel_shape = [2, 2], pads = [1, 1, 1, 1]",
        "kernel_shape = [2, 2], count_include_pad = 1",
        'kernel_shape = [2, 2], auto_pad = "VALID", count_include_pad = 1',
    ],
)
@pytest.mark.parametrize("opset", [7, 18])
def test_crosses_averages_of_values_alone(attributes, opset):
    check(model_of(f"{CONV} y = AveragePool <{attributes}> (u) {BN}", opset=opset))


@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [2, 2], pads = [1, 0, 0, 0], count_include_pad = 1",
        'kernel_shape = [2, 2], auto_pad = "SAME_UPPER", count_include_pad = 1',
        "kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1, count_include_pad = 1",
    ],
)
def test_refuses_averages_that_count_padding(attributes):  # rules 3
    body = f"{CONV} y = AveragePool <{attributes}> (u) {BN}"
    assert "comes from `y` (AveragePool)" in refusal(model_of(body))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [7, 13, 18])
def test_crosses_a_mean_over_places(opset, keepdims):
    mean = f"y = ReduceMean <axes = [-1, 2], keepdims = {keepdims}> (u)"
    if opset >= 18:
        mean = f"y = ReduceMean <keepdims = {keepdims}> (u, axes)"
    model = model_of(
        f"{CONV} {mean} {BN}",
        outputs="float[a, b, c, d] z" if keepdims else "float[a, b] z",
        integers={"axes": [2, -1]} if opset >= 18 else None,
        opset=opset,
    )
    check(model)


@pytest.mark.parametrize("axes", [[1], [0, 2]])
def test_refuses_a_mean_over_channels_or_the_batch(axes):  # rules 3
    body = f"{CONV} y = ReduceMean <axes = {axes}> (u) {BN}"
    channels = 1 if axes == [1] else 6
    model = model_of(body, channels=channels, opset=13)
    if axes == [1]:  # one scale for all the channels that are averaged: that is legal
        check(model)
    else:
        assert "comes from `y` (ReduceMean)" in refusal(model)


def test_refuses_a_mean_over_what_is_normalised():  # rules 3
    """(N, 6, 3, 3) -> mean over the channels, of which 3 rows are then normalised."""
    body = f"{CONV} y = ReduceMean <axes = [1], keepdims = 0> (u) {BN}"
    model = model_of(body, channels=3, outputs="float[a, b, c] z", opset=13)
    assert "the map differs between positions" in refusal(model)


def test_refuses_a_mean_of_everything():  # rules 3
    model = model_of(f"{CONV} y = ReduceMean (u) {BN}", channels=1, opset=13)
    assert "comes from `y` (ReduceMean)" in refusal(model)


def test_refuses_a_map_that_differs_within_a_window():  # rules 3
    body = f"{CONV} p = AveragePool <kernel_shape = [2, 2]> (u) y = Add (p, k) {BN}"
    reason = refusal(model_of(body, weights={"k": normal(2)}))
    assert "comes from `p` (AveragePool)" in reason


@pytest.mark.parametrize(
    "pool", ["MaxPool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]>", "GlobalMaxPool"]
)
def test_crosses_the_largest_where_no_scale_is_negative(pool):
    body = f"{CONV} y = {pool} (u) {BN}"
    check(model_of(body, positive=True))
    model = model_of(body, positive=True)
    for tensor in model.graph.initializer:
        if tensor.name == "gamma":  # a channel that vanishes is no problem
            gamma = np.frombuffer(tensor.raw_data, np.float32).copy()
            gamma[2] = 0
            tensor.raw_data = gamma.tobytes()
    check(model)
    assert f"comes from `y` ({pool.split()[0]})" in refusal(model_of(body))  # rules 4


def test_refuses_a_maximum_whose_places_are_used():  # rules 4
    model = model_of(
        f"{CONV} y, places = MaxPool <kernel_shape = [2, 2]> (u) {BN}",
        positive=True,
        outputs="float[a, b, c, d] z, int64[a, b, c, d] places",
    )
    assert "the second output of `y` (MaxPool) is used" in refusal(model)


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize("opset", [7, 13, 18, 19])
def test_crosses_padding_that_repeats_values(opset, mode):
    if mode == "wrap" and opset < 19:
        mode = "edge"
    pads = [0, 0, 1, 0, 0, 0, 1, 2]
    line = f'y = Pad <mode = "{mode}", pads = {pads}> (u)'
    integers = {}
    if opset >= 11:
        line, integers = f'y = Pad <mode = "{mode}"> (u, pads)', {"pads": pads}
    if opset >= 18:
        line, integers = (
            f'y = Pad <mode = "{mode}"> (u, pads, , axes)',
            {
                "pads": [1, 0, 1, 2],
                "axes": [-2, 3],
            },
        )
    model = model_of(
        f"{CONV} {line} {BN}", integers=integers, opset=opset, ir_version=9 if opset > 18 else 8
    )
    check(model)


def test_refuses_padding_along_what_is_normalised():  # rules 5
    model = model_of(
        f'{CONV} y = Pad <mode = "edge"> (u, pads) {BN}',
        channels=8,
        integers={"pads": [0, 1, 0, 0, 0, 1, 0, 0]},
    )
    assert "comes from `y` (Pad)" in refusal(model)


@pytest.mark.parametrize("opset", [7, 9, 10, 13, 18])
def test_crosses_resizing_to_the_nearest_value(opset):
    scales = np.array([1.0, 1.0, 2.0, 3.0])
    line, weights = "y = Resize (u, , scales)", {"scales": scales}
    if opset == 7:
        line, weights = "y = Upsample <scales = [1.0, 1.0, 2.0, 3.0]> (u)", {}
    elif opset == 9:
        line = "y = Upsample (u, scales)"
    elif opset == 10:  # which the float64 evaluator does not know
        line = "y = Resize (u, scales)"
        result, report = fold(model_of(f"{CONV} {line} {BN}", weights=weights, opset=opset))
        assert (len(report.folded), operators(result)) == (1, ["Conv", "Resize"])
        return
    check(model_of(f"{CONV} {line} {BN}", weights=weights, opset=opset))


def test_crosses_resizing_to_a_size():
    line = 'y = Resize <coordinate_transformation_mode = "asymmetric"> (u, , , sizes)'
    check(model_of(f"{CONV} {line} {BN}", integers={"sizes": [2, 6, 6, 9]}))


@pytest.mark.parametrize(
    ("attributes", "scales"),
    [
        ('mode = "sharpened"', [1, 1, 2, 2]),
        ('coordinate_transformation_mode = "tf_crop_and_resize"', [1, 1, 2, 2]),
        ('mode = "nearest"', [1, 2, 1, 1]),  # along the channels
    ],
)
def test_refuses_resizing_by_other_means(attributes, scales):  # rules 5
    model = model_of(
        f"{CONV} y = Resize <{attributes}> (u, roi, scales) {BN}",
        channels=12 if scales[1] == 2 else 6,
        weights={"scales": np.array(scales, float), "roi": np.array([0, 0, 0, 0, 1, 1, 1, 1.0])},
    )
    assert "comes from `y` (Resize)" in refusal(model)


def test_refuses_resizing_to_a_size_along_what_is_normalised():  # rules 5
    line = 'y = Resize <coordinate_transformation_mode = "asymmetric"> (u, , , sizes)'
    model = model_of(f"{CONV} {line} {BN}", channels=12, integers={"sizes": [2, 12, 3, 3]})
    assert "comes from `y` (Resize)" in refusal(model)


# --- upwards: the flow ---------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [1, -3])
def test_a_concatenation_parts_the_map(axis):
    model = model_of(
        f"u1 = Conv (x, w) u2 = Conv (x, w2, b2) y = Concat <axis = {axis}> (u1, u2) {BN}",
        channels=9,
        weights={"w2": normal(3, 4, 3, 3, seed=3), "b2": normal(3)},
    )
    check(model)


def test_a_concatenation_along_places_gives_each_part_the_whole_map():
    body = f"u1 = Conv (x, w) u2 = Conv (x, w2) y = Concat <axis = 2> (u1, u2) {BN}"
    check(model_of(body, weights={"w2": normal(6, 4, 3, 3, seed=3)}))


def test_refuses_a_concatenation_with_what_is_no_layer():  # flow 1
    body = f"u1 = Conv (x, w) u2 = Relu (x) y = Concat <axis = 1> (u1, u2) {BN}"
    model = model_of(body, channels=10, weights={"w": normal(6, 4, 1, 1)})
    assert "comes from `u2` (Relu)" in refusal(model)


def test_refuses_a_concatenation_of_a_value_with_itself():  # flow 1
    body = f"{CONV} y = Concat <axis = 1> (u, u) {BN}"
    assert "joins a value with itself" in refusal(model_of(body, channels=12))


def test_refuses_a_concatenation_of_parts_of_unknown_lengths():  # flow 1
    model = model_of(
        f"u1 = Relu (x2) u2 = Conv (x, w) y = Concat <axis = 1> (u1, u2) {BN}",
        channels=8,
        weights={"w": normal(6, 4, 1, 1)},
        inputs="float[2, 4, 5, 5] x, float[2, n, 5, 5] x2",
    )
    assert "joins values of unknown lengths" in refusal(model)


@pytest.mark.parametrize("op", ["Add", "Sub", "Sum"])
def test_a_sum_of_layers_takes_the_shift_once(op):
    body = f"u1 = Conv (x, w) u2 = Conv (x, w2, b2) y = {op} (u1, u2) {BN}"
    check(model_of(body, weights={"w2": normal(6, 4, 3, 3, seed=3), "b2": normal(6)}))


def test_a_sum_of_three_layers():
    body = f"u1 = Conv (x, w) u2 = Conv (x, w) u3 = Conv (x, w) y = Sum (u1, u2, u3) {BN}"
    check(model_of(body))


@pytest.mark.parametrize("operands", ["u1, u2", "u2, u1"])
def test_a_sum_that_stretches_one_of_its_layers(operands):
    body = f"u1 = Conv (x, w) p = Conv (x, w2) u2 = GlobalAveragePool (p) y = Add ({operands}) {BN}"
    check(model_of(body, weights={"w2": normal(6, 4, 3, 3, seed=3)}))


def test_refuses_a_sum_that_stretches_what_is_normalised():  # flow 2
    body = f"u1 = Conv (x, w) u2 = Conv (x, w2) y = Add (u1, u2) {BN}"
    model = model_of(body, weights={"w2": normal(1, 4, 3, 3)})
    assert "sum of values of different shapes" in refusal(model)


def test_refuses_a_sum_with_what_is_no_layer():  # flow 2
    body = f"u1 = Conv (x, w) u2 = Relu (x) y = Add (u1, u2) {BN}"
    assert "comes from `u2` (Relu)" in refusal(
        model_of(body, channels=4, weights={"w": normal(4, 4, 1, 1)})
    )


def test_refuses_a_sum_of_values_of_different_ranks():  # flow 2
    mean = "u2 = ReduceMean <axes = [0, 1], keepdims = 0> (p)"
    body = f"u1 = Conv (x, w) p = Conv (x, w) {mean} y = Add (u1, u2) {BN}"
    assert "sum of values of different shapes" in refusal(model_of(body, opset=13))


def test_refuses_a_sum_along_unknown_lengths():  # flow 2
    """Two lengths that the model does not state are not the same length."""
    model = model_of(
        f"u1 = Relu (x) u2 = Relu (x2) y = Add (u1, u2) {BN}",
        inputs="float[2, ?, 5, 5] x, float[2, ?, 5, 5] x2",
    )
    assert "sum of values of different shapes" in refusal(model)


def test_refuses_a_sum_of_a_value_with_itself():  # flow 2
    body = f"{CONV} y = Add (u, u) {BN}"
    assert "adds a value to itself" in refusal(model_of(body))


def test_refuses_a_sum_one_side_of_which_has_another_reader():  # flow 4
    model = model_of(
        f"u1 = Conv (x, w) u2 = Conv (x, w) y = Add (u1, u2) {BN} r = Relu (u2)",
        outputs="float[a, b, c, d] z, float[a, b, c, d] r",
    )
    assert "`u2` (Conv), is read 2 times" in refusal(model)


ARITHMETIC = ["Add (u, k)", "Add (k, u)", "Sub (u, k)", "Sub (k, u)", "Mul (u, k)", "Mul (k, u)"]


@pytest.mark.parametrize("shape", [(), (6, 1, 1), (1, 6, 1, 1)])
@pytest.mark.parametrize("line", [*ARITHMETIC, "Div (u, k)"])
def test_takes_in_sums_and_products_with_constants(line, shape):
    result = check(model_of(f"{CONV} y = {line} {BN}", weights={"k": normal(*shape)}))
    assert operators(result) == ["Conv"]
    assert set(names_of_initializers(result)) == {"w", "w_bias"}


def test_refuses_a_constant_divided_by_a_layer():  # flow 3
    body = f"{CONV} y = Div (k, u) {BN}"
    assert "comes from `y` (Div)" in refusal(model_of(body, weights={"k": normal(6, 1, 1)}))


@pytest.mark.parametrize("line", ["Add (u, k)", "Mul (u, k)"])
def test_refuses_a_constant_that_differs_by_place(line):  # flow 3
    """A peer takes one scale per column for one per channel where their numbers are the same."""
    body = f"{CONV} y = {line} {BN}"
    model = model_of(body, channels=3, weights={"w": normal(3, 4, 3, 3), "k": normal(3)})
    assert "the map differs between positions" in refusal(model)


@pytest.mark.parametrize("line", ["Add (u, k)", "Mul (u, k)"])
def test_refuses_a_constant_that_makes_channels(line):  # flow 3
    model = model_of(
        f"{CONV} y = {line} {BN}", weights={"w": normal(1, 4, 3, 3), "k": normal(6, 1, 1)}
    )
    reason = refusal(model)
    assert "comes from `y`" in reason or "different shapes" in reason


def test_refuses_a_constant_for_each_sample():  # flow 3
    body = f"{CONV} y = Mul (u, k) {BN}"
    assert "comes from `y` (Mul)" in refusal(model_of(body, weights={"k": normal(2, 1, 1, 1)}))


def test_refuses_a_division_by_zero():  # flow 3
    k = np.array([1.0, 2, 0, 1, 1, 1]).reshape(6, 1, 1)
    model = model_of(f"{CONV} y = Div (u, k) {BN}", weights={"k": k})
    assert "comes from `y` (Div)" in refusal(model)


def test_a_constant_before_a_part_in_two_is_taken_in_once():
    model = model_of(
        f"u1 = Conv (x, w) u2 = Conv (x, w2) c = Concat <axis = 1> (u1, u2) y = Add (c, k) {BN}",
        channels=9,
        weights={"w2": normal(3, 4, 3, 3, seed=3), "k": normal(9, 1, 1)},
    )
    assert operators(check(model)) == ["Conv", "Conv", "Concat"]


def test_a_layer_that_nobody_reads_stays():
    """The BatchNorm after it is folded into it ; the constant stays in it."""
    body = f"u = Conv (x, w) y = Add (u, k) {BN.replace('z =', 'd =')} z = Relu (x)"
    assert operators(check(model_of(body, weights={"k": normal(6, 1, 1)}))) == ["Conv", "Relu"]


def test_a_long_way_up():
    body = (
        "u1 = Conv (x, w) u2 = Conv (x, w2) s = Add (u1, u2) c = Mul (s, k) "
        "p = AveragePool <kernel_shape = [2, 2]> (c) f = Identity (p) "
        f"y = Transpose <perm = [0, 1, 3, 2]> (f) {BN}"
    )
    check(model_of(body, weights={"w2": normal(6, 4, 3, 3, seed=3), "k": normal(6, 1, 1)}))


# --- downwards -----------------------------------------------------------------------------------

NORM = "y = BatchNormalization (a, gamma, beta, mean, var)"
BEFORE = f"a = Relu (x) {NORM}"
PADDED = "`z` (Conv), which reads it, pads with zeros"


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    "attributes",
    [
        "pads = [0, 0, 0, 0]",
        "strides = [2, 2], dilations = [2, 1]",
        'auto_pad = "VALID"',
    ],
)
def test_goes_down_into_a_convolution(attributes, group):
    body = f"{BEFORE} z = Conv <{attributes}, group = {group}> (y, w, b)"
    check(model_of(body, channels=4, weights={"w": normal(6, 4 // group, 3, 3), "b": normal(6)}))


def test_goes_down_into_a_convolution_of_one_tap_that_says_same():
    body = f'{BEFORE} z = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (y, w)'
    check(model_of(body, channels=4, weights={"w": normal(6, 4, 1, 1)}))


@pytest.mark.parametrize(
    "attributes", ["pads = [0, 0, 0, 1]", 'auto_pad = "SAME_UPPER"', 'auto_pad = "SAME_LOWER"']
)
def test_refuses_a_convolution_that_pads_with_zeros(attributes):  # flow 7
    assert PADDED in refusal_below(f"{BEFORE} z = Conv <{attributes}> (y, w)")


@pytest.mark.parametrize("line", ["Conv <pads = [1, 1, 1, 1]>", "ConvTranspose"])
def test_a_map_without_shift_goes_down_into_any_convolution(line):
    nothing = {"beta": np.zeros(4), "mean": np.zeros(4), "w": normal(4, 4, 3, 3)}
    check(model_of(f"{BEFORE} z = {line} (y, w)", channels=4, weights=nothing))


def test_refuses_a_transposed_convolution_below():  # flow 7
    assert "pads with zeros" in refusal_below(
        f"{BEFORE} z = ConvTranspose (y, w)", weights={"w": normal(4, 6, 3, 3)}
    )


def test_refuses_a_convolution_below_whose_weight_is_computed():
    """The padding of `same` would depend on the kernel."""
    assert "the weight of `z` (Conv) is computed at run time" in refusal_below(
        f'{BEFORE} n = Neg (w) z = Conv <auto_pad = "SAME_UPPER"> (y, n)'
    )


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (6,), (1, 6), (3, 1), (3, 6)])
def test_goes_down_into_a_gemm(bias, trans_b):
    line = (
        f"z = Gemm <alpha = 0.3, beta = -1.7, transB = {trans_b}> "
        f"(y, w{'' if bias is None else ', b'})"
    )
    weights = {"w": normal(*((6, 4) if trans_b else (4, 6)))}
    weights |= {} if bias is None else {"b": normal(*bias)}
    check(model_of(f"{BEFORE} {line}", channels=4, weights=weights, **ROWS))


def test_refuses_a_gemm_that_reads_it_transposed():  # flow 6
    """Its features are what was the batch, of the same number."""
    assert "normalises another axis" in refusal_below(
        f"{BEFORE} z = Gemm <transA = 1> (y, w)",
        weights={"w": normal(4, 6)},
        **SQUARE,
    )


@pytest.mark.parametrize("name", ["w", "b"])
def test_refuses_a_layer_that_takes_it_for_a_weight(name):  # flow 6
    """The layer's own input and this one are both (4, 4)."""
    arguments = {"w": "x, y, b", "b": "x, w, y"}[name]
    model = model_of(
        f"{BEFORE} z = Gemm ({arguments})",
        channels=4,
        weights={"w": normal(4, 4), "b": normal(4)},
        **SQUARE,
    )
    unread = [t for t in model.graph.initializer if t.name == name]
    for tensor in unread:
        model.graph.initializer.remove(tensor)
    model.graph.node[1].name = "bn"
    assert NONE_BELOW in refusal(model)


def test_refuses_a_layer_that_reads_it_twice():  # flow 6
    assert NONE_BELOW in refusal_below(
        f"{BEFORE} z = MatMul (y, y)",
        **SQUARE,
    )


@pytest.mark.parametrize("add", [False, True])
def test_goes_down_into_a_matmul(add):
    line = "p = MatMul (y, w) z = Add (b, p)" if add else "z = MatMul (y, w)"
    weights = {"w": normal(4, 6)} | ({"b": normal(3, 1)} if add else {})
    result = check(model_of(f"{BEFORE} {line}", channels=4, weights=weights, **ROWS))
    assert operators(result) == ["Relu", *(["MatMul", "Add"] if add else ["Gemm"])]


def test_goes_down_into_a_matmul_of_sequences():
    """A map over channels, moved to the last axis by a Transpose."""
    body = f"{BEFORE} v = Transpose <perm = [0, 2, 1]> (y) z = MatMul (v, w)"
    model = model_of(body, channels=5, weights={"w": normal(5, 6)}, **SEQUENCE)
    assert operators(check(model)) == ["Relu", "Transpose", "MatMul", "Add"]


def test_goes_down_through_a_transpose_that_turns_three_axes_around():
    body = f"{BEFORE} v = Transpose <perm = [0, 2, 3, 1]> (y) z = MatMul (v, w)"
    check(model_of(body, channels=4, weights={"w": normal(4, 6)}, inputs="float[2, 4, 3, 5] x"))


def test_refuses_a_matmul_of_sequences_over_another_axis():  # flow 6
    assert "last axis of a rank-3 value" in refusal_below(
        f"{BEFORE} z = MatMul (y, w)",
        weights={"w": normal(4, 4)},
        **SQUARES,
    )


@pytest.mark.parametrize("line", ["f = Flatten (y)", "f = Reshape (y, shape)"])
@pytest.mark.parametrize("batch", ["2", "n"])
def test_goes_down_through_a_flatten_into_a_gemm(line, batch):
    model = model_of(
        f"{BEFORE} {line} z = Gemm (f, w, b)",
        channels=4,
        weights={"w": normal(36, 6), "b": normal(6)},
        integers={"shape": [-1, 36]} if "shape" in line else None,
        inputs=f"float[{batch}, 4, 3, 3] x",
        outputs="float[a, b] z",
    )
    check(model)


@pytest.mark.parametrize(
    "line",
    [
        "f = GlobalAveragePool (y)",
        "f = AveragePool <kernel_shape = [2, 2]> (y)",
        "f = ReduceMean <axes = [2, 3]> (y)",
        "i = Identity (y) f = Dropout (i)",
        "f = Cast <to = 1> (y)",
        'f = Pad <mode = "reflect"> (y, pads)',
        "f = Resize (y, , scales)",
        "f = Slice (y, starts, ends)",
    ],
)
def test_goes_down_through(line):
    model = model_of(
        f"{BEFORE} {line} z = Conv (f, w)",
        channels=4,
        weights={"w": normal(6, 4, 1, 1), "scales": np.array([1.0, 1.0, 2.0, 2.0])}
        if "scales" in line
        else {"w": normal(6, 4, 1, 1)},
        opset=13,
    )
    if "pads" in line:
        add_integers(model, pads=[0, 0, 1, 1, 0, 0, 1, 1])
    if "Slice" in line:
        add_integers(model, starts=[0, 0, 1], ends=[2, 4, 4])
    check(model)


def test_goes_down_through_a_slice_of_channels():
    model = model_of(
        f"{BEFORE} f = Slice (y, starts, ends) z = Conv (f, w)",
        channels=4,
        weights={"w": normal(6, 2, 1, 1)},
        integers={"starts": [0, 1], "ends": [2, 3]},
    )
    check(model)


def test_goes_down_through_a_mean_that_drops_its_axes():
    model = model_of(
        f"{BEFORE} f = ReduceMean <axes = [3, 2], keepdims = 0> (y) z = MatMul (f, w)",
        channels=4,
        weights={"w": normal(4, 6)},
        outputs="float[a, b] z",
        opset=13,
    )
    check(model)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_refuses_a_mean_below_over_what_is_normalised(keepdims):  # rules 3
    weight = normal(6, 1, 3, 3) if keepdims else normal(6, 4, 3)
    assert NONE_BELOW in refusal_below(
        f"{BEFORE} f = ReduceMean <axes = [1], keepdims = {keepdims}> (y) z = Conv (f, w)",
        weights={"w": weight},
        inputs="float[2, 4, 4, 4] x",
        outputs="float[a, b, c, d] z" if keepdims else "float[a, b, c] z",
        opset=13,
    )


def test_goes_down_through_the_largest_where_no_scale_is_negative():  # rules 4
    body = f"{BEFORE} f = MaxPool <kernel_shape = [2, 2]> (y) z = Conv (f, w)"
    check(model_of(body, channels=4, positive=True))
    assert NONE_BELOW in refusal_below(body)


def second_statistics(channels: int) -> dict[str, np.ndarray]:
    return dict(zip(("g2", "b2", "m2", "v2"), statistics(channels, seed=5).values(), strict=True))


def test_two_maps_go_down_into_one_layer():
    body = (
        "a = Relu (x) c = BatchNormalization (a, g2, b2, m2, v2) "
        "y = BatchNormalization (c, gamma, beta, mean, var) z = Conv (y, w)"
    )
    more = second_statistics(4)
    check(model_of(body, channels=4, weights=more), folded=2)


def test_maps_on_both_sides_of_a_layer():
    body = (
        "a = Relu (x) c = BatchNormalization (a, g2, b2, m2, v2) "
        f"y = Gemm <alpha = 0.5, beta = 2.0> (c, w, b) {BN}"
    )
    more = second_statistics(4)
    more |= {"w": normal(4, 6), "b": normal(3, 6)}
    check(model_of(body, weights=more, **ROWS), folded=2)


# --- several readers -----------------------------------------------------------------------------


def test_goes_down_into_every_reader():
    model = model_of(
        f"{BEFORE} p = Conv (y, w) i = Identity (y) q = Conv (i, w) z = Mul (p, q)", channels=4
    )
    result = check(model)
    assert len(names_of_initializers(result)) == 4, "each call has weights of its own"


@pytest.mark.parametrize(
    "other", ["q = Relu (y)", "q = Conv <pads = [1, 1, 1, 1]> (y, w)", "q = Identity (y)"]
)
def test_refuses_to_go_down_where_one_reader_cannot(other):
    model = model_of(
        f"{BEFORE} p = Conv (y, w) {other}",
        channels=4,
        outputs="float[a, b, c, d] p, float[a, b, c, d] q",
    )
    model.graph.node[1].name = "bn"
    refusal(model)


def test_refuses_to_go_down_where_it_is_an_output():
    assert NONE_BELOW in refusal_below(
        f"{BEFORE} p = Conv (y, w)",
        outputs="float[a, b, c, d] p, float[a, b, c, d] y",
    )


def test_refuses_to_go_down_where_nobody_reads():
    assert NONE_BELOW in refusal_below(f"{BEFORE} z = Identity (x)")


def test_a_name_goes_where_its_numbers_go():
    """Above, the layer computes them; below, nobody does any more."""
    above = check(
        model_of(f"u = Conv (x, w) {BN.replace('z =', 'v =').replace('y', 'u')} z = Relu (v)")
    )
    assert above.graph.node[0].output == ["v"]
    below = check(model_of(f"{BEFORE} z = Conv (y, w)", channels=4))
    assert below.graph.node[0].output == ["a"]


def test_refuses_to_go_down_into_a_branch():  # flow 5
    body = (
        f"{BEFORE} z = If (chosen) <then_branch = yes () => (float[a, b, c, d] t) "
        "{ t = Conv (y, w) }, else_branch = no () => (float[a, b, c, d] e) { e = Identity (x) }>"
    )
    assert NONE_BELOW in refusal_below(
        body,
        weights={"w": normal(4, 4, 1, 1)},
        inputs="float[2, 4, 5, 5] x, bool chosen",
    )


def test_branches_may_use_a_name_again():
    """Shapes are looked up by place: the `u` of the other branch has two axes less."""
    inside = (
        "{ u = Conv (x, w) v = GlobalAveragePool (u) y = Flatten (v) "
        "t = BatchNormalization (y, gamma, beta, mean, var) }"
    )
    other = "{ v = GlobalAveragePool (x) u = Flatten (v) y = Unsqueeze (u, two) e = Flatten (y) }"
    model = model_of(
        f"z = If (chosen) <then_branch = yes () => (float[a, b] t) {inside}, "
        f"else_branch = no () => (float[a, b] e) {other}>",
        channels=4,
        weights={"w": normal(4, 4, 1, 1)},
        integers={"two": [2]},
        inputs="float[2, 4, 5, 5] x, bool chosen",
        outputs="float[a, b] z",
    )
    check(model)


def test_consumers_are_counted():
    model = model_of(f"{CONV} y = Identity (u) {BN}")
    _, report = fold(model)
    assert [site.num_consumers for site in report.folded] == [1]
    model = model_of(
        f"y = Conv (x, w) {BN} r = Relu (y) s = Exp (y)",
        outputs="float[a,b,c,d] z, float[a,b,c,d] r, float[a,b,c,d] s",
    )
    _, report = fold(model)
    assert [site.num_consumers for site in report.refused] == [3]


# --- frozen BatchNorms ---------------------------------------------------------------------------

FROZEN = {"s": normal(6, 1, 1), "t": normal(6, 1, 1)}


@pytest.mark.parametrize("line", ["m = Mul (u, s) z = Add (m, t)", "m = Mul (s, u) z = Add (t, m)"])
def test_a_frozen_batchnorm_folds(line):
    weights = {"s": normal(6, 1, 1), "t": normal(1, 6, 1, 1)}
    result = check(model_of(f"{CONV} {line}", weights=weights))
    assert operators(result) == ["Conv"]


def test_a_frozen_batchnorm_goes_down():
    body = "a = Relu (x) m = Mul (a, s) f = Add (m, t) z = Conv (f, w)"
    weights = {"s": normal(4, 1, 1), "t": normal(4, 1, 1)}
    assert operators(check(model_of(body, weights=weights))) == ["Relu", "Conv"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Relu (x) m = Mul (a, s) z = Add (m, t)",
        f"{CONV} r = Relu (u) m = Mul (r, s) z = Add (m, t)",
    ],
)
def test_arithmetic_that_reaches_no_layer_is_not_reported(body):
    channels = 6 if "Conv" in body else 4
    weights = {"s": normal(channels, 1, 1), "t": normal(channels, 1, 1)}
    _, report = fold(model_of(body, weights=weights))
    assert (report.folded, report.refused) == ((), ())


@pytest.mark.parametrize("reader", ["", " r = Relu (m)"])
def test_a_frozen_batchnorm_whose_product_is_read_stays(reader):
    model = model_of(
        f"{CONV} m = Mul (u, s) z = Add (m, t){reader}",
        weights=FROZEN,
        outputs=f"float[a, b, c, d] z, float[a, b, c, d] {'r' if reader else 'm'}",
    )
    _, report = fold(model)
    assert report.folded == ()


def test_a_frozen_batchnorm_in_two_graphs_stays():
    body = (
        f"{CONV} m = Mul (u, s) z = If (chosen) <then_branch = yes () => (float[a, b, c, d] p) "
        "{ p = Add (m, t) }, else_branch = no () => (float[a, b, c, d] q) { q = Conv (x, w) }>"
    )
    model = model_of(
        body,
        weights=FROZEN,
        inputs="float[2, 4, 5, 5] x, bool chosen",
    )
    _, report = fold(model)
    assert report.folded == ()


@pytest.mark.parametrize("shapes", [((2, 1, 1, 1), (6, 1, 1)), ((6, 1, 1), (2, 1, 1, 1))])
def test_a_frozen_batchnorm_with_numbers_for_each_sample_stays(shapes):
    weights = {"s": normal(*shapes[0]), "t": normal(*shapes[1])}
    _, report = fold(model_of(f"{CONV} m = Mul (u, s) z = Add (m, t)", weights=weights))
    assert (report.folded, report.refused) == ((), ())


def test_a_frozen_batchnorm_of_an_old_opset_stays():
    """Before opset 7, `axis` says where a constant stands: here, sequence by sequence."""
    model = model_of(
        "u = MatMul (x, w) m = Mul <axis = 1, broadcast = 1> (u, s) "
        "z = Add <axis = 1, broadcast = 1> (m, t)",
        weights={"w": normal(4, 4), "s": normal(4), "t": normal(4)},
        **SQUARES,
        opset=6,
    )
    _, report = fold(model)
    assert (report.folded, report.refused) == ((), ())


def test_a_frozen_batchnorm_and_a_plain_one():
    body = f"{CONV} m = Mul (u, s) y = Add (m, t) {BN}"
    assert operators(check(model_of(body, weights=FROZEN), folded=2)) == ["Conv"]


def test_a_frozen_batchnorm_around_a_plain_one():
    """Its Mul and Add stand side by side as soon as the plain one has gone into the layer."""
    plain = BN.replace("z =", "n =")
    around = f"y = Mul (x, s) {plain} a = Add (n, t)"
    weights = {"s": normal(4, 1, 1), "t": normal(4, 1, 1, seed=2), **statistics(4)}
    model = network(f"{around} z = Conv (a, w)", {"w": normal(4, 4, 1, 1), **weights})
    assert operators(check(model, folded=2)) == ["Conv"]


def test_a_frozen_batchnorm_that_another_map_has_taken_in():
    """It cannot cross the MaxPool alone, having negative scales; both together have none."""
    body = f"{CONV} p = MaxPool <kernel_shape = [2, 2]> (u) m = Mul (p, s) y = Add (m, t) {BN}"
    weights = {"s": -np.ones((6, 1, 1)), "t": normal(6, 1, 1), "gamma": np.full(6, -0.7)}
    result = check(model_of(body, weights=weights))
    assert operators(result) == ["Conv", "MaxPool"]


# --- LayerNorm -----------------------------------------------------------------------------------

LAYERNORM = "y = LayerNormalization <axis = -1> (x, g, c)"


def layernorm_model(body: str, **weights) -> onnx.ModelProto:
    values = {"g": normal(4, seed=3), "c": normal(4, seed=4), "w": normal(4, 6), **weights}
    return network(body, {k: v for k, v in values.items() if k in body}, **SEQUENCE)


def test_the_affine_part_of_a_layernorm_goes_down():
    result = check(layernorm_model(f"{LAYERNORM} z = MatMul (y, w)"), layernorm=True)
    assert operators(result) == ["LayerNormalization", "MatMul", "Add"]
    values = {t.name: onnx.numpy_helper.to_array(t) for t in result.graph.initializer}
    assert (values["g"] == 1).all()
    assert not values["c"].any()


def test_the_affine_part_of_a_layernorm_goes_to_every_reader():
    body = f"{LAYERNORM} p = MatMul (y, w) q = MatMul (y, w) r = Add (q, b) z = Mul (p, r)"
    check(layernorm_model(body, b=normal(6)), layernorm=True)


def test_a_layernorm_without_bias_gains_none():
    model = layernorm_model("y = LayerNormalization (x, g) z = MatMul (y, w)")
    result = check(model, layernorm=True)
    assert list(result.graph.node[0].input) == ["x", "g"]


def test_parameters_that_others_read_keep_their_numbers():
    body = (
        f"{LAYERNORM} v = MatMul (y, w) r = LayerNormalization (x, g, c) t = Relu (r) "
        "k = MatMul (t, w) z = Add (v, k)"
    )
    model = layernorm_model(body)
    result, report = fold(model, layernorm=True)
    assert [site.site for site in report.folded] == ["y"]
    assert [site.site for site in report.refused] == ["r"]
    values = {t.name: onnx.numpy_helper.to_array(t) for t in result.graph.initializer}
    np.testing.assert_array_equal(values["g"], normal(4, seed=3).astype(np.float32))


def test_a_layernorm_is_left_alone_unless_asked_for():
    model = layernorm_model(f"{LAYERNORM} z = MatMul (y, w)")
    _, report = fold(model)
    assert (report.folded, report.refused) == ((), ())


def test_a_layernorm_without_an_affine_part_is_not_reported():
    model = layernorm_model(f"{LAYERNORM} z = MatMul (y, w)", g=np.ones(4), c=np.zeros(4))
    _, report = fold(model, layernorm=True)
    assert (report.folded, report.refused) == ((), ())


def test_a_layernorm_whose_scale_is_one_has_a_bias_to_fold():
    check(layernorm_model(f"{LAYERNORM} z = MatMul (y, w)", g=np.ones(4)), layernorm=True)


def test_a_layernorm_does_not_go_up():
    model = layernorm_model(
        "p = MatMul (x, w) y = LayerNormalization (p, g, c) z = Relu (y)", w=normal(4, 4)
    )
    model.graph.node[1].name = "bn"
    reason = f"its statistics are those of each sample; {NONE_BELOW}"
    assert refusal(model, layernorm=True) == reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{LAYERNORM} r = Relu (y) z = MatMul (r, w)", NONE_BELOW),
        ("n = Neg (g) y = LayerNormalization (x, n, c) z = MatMul (y, w)", "computed at run time"),
        (f"{LAYERNORM} n = Neg (w) z = MatMul (y, n)", "the weight of `z` (MatMul)"),
    ],
)
def test_refuses_a_layernorm(body, reason):
    model = layernorm_model(body)
    at = next(k for k, n in enumerate(model.graph.node) if n.op_type == "LayerNormalization")
    model.graph.node[at].name = "bn"
    assert reason in refusal(model, layernorm=True)


def test_a_layernorm_over_more_than_the_features_is_refused():
    """One scale for each place: square, so that every length fits."""
    model = network(
        "y = LayerNormalization <axis = 1> (x, g, c) z = MatMul (y, w)",
        {"g": normal(4, 4), "c": normal(4, 4), "w": normal(4, 4)},
        **SQUARES,
    )
    model.graph.node[0].name = "bn"
    assert "another axis" in refusal(model, layernorm=True)


# --- the layers of a graph -----------------------------------------------------------------------


def test_an_add_that_gives_a_matmul_more_features_is_no_bias():
    model = model_of(
        f"u = MatMul (x, w) y = Add (u, b) {BN}",
        weights={"w": normal(4, 1), "b": normal(6)},
        **ROWS,
    )
    assert "sum of values of different shapes" in refusal(model)


def test_a_matmul_that_an_add_follows_once_the_batchnorm_is_gone():
    """The Add was no bias when the layers were found, and must not become one half way."""
    body = f"u = MatMul (x, w) v = BatchNormalization (u, g2, b2, m2, v2) y = Add (v, k) {BN}"
    more = second_statistics(6)
    more |= {"w": normal(4, 6), "k": normal(6)}
    assert operators(check(model_of(body, weights=more, **ROWS), folded=2)) == ["Gemm"]


def test_flushed_values_count_once_for_a_layer():
    stats = {k: np.full(2, v) for k, v in {"gamma": 1, "beta": 1, "mean": 0, "var": 1}.items()}
    more = dict(zip(("g2", "b2", "m2", "v2"), stats.values(), strict=True))
    model = network(
        f"u = Conv (x, w) y = BatchNormalization (u, g2, b2, m2, v2) {BN}",
        {"w": np.array([1e-39, 1.0]).reshape(2, 1, 1, 1), **stats, **more},
        inputs="float[2, 1, 5, 5] x",
    )
    _, report = fold(model)
    assert [site.num_flushed for site in report.folded] == [1, 0]


def test_the_suite_would_notice_a_shift_that_is_missing():
    """The yardstick bites: one bias that is off by a thousandth."""
    model = model_of(f"y = Conv (x, w) {BN}")
    result = check(model)
    for tensor in result.graph.initializer:
        if tensor.name == "w_bias":
            bias = np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.001)
            tensor.raw_data = bias.tobytes()
    x = {"x": normal(2, 4, 5, 5).astype(np.float32)}
    expected, found = evaluate_float64(model, x)["z"], evaluate_float64(result, x)["z"]
    assert np.abs(found - expected).max() > 1e-5
