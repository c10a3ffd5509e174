"""SmoothQuant and the pixel grid: other float models that compute the same."""

import numpy as np
import onnx
import pytest
from small_networks import PREPROCESS, inputs, prepared_resnet

from resdeploy.quant.onnx_graph import Constants
from resdeploy.quant.pixel_grid import takes_pixel_grid, use_pixel_grid
from resdeploy.quant.runtime import Runner, with_outputs
from resdeploy.quant.smooth_channels import find_channel_groups, smooth_channels
from resdeploy.schema.recipes import Preprocess


def run(model, x):
    return Runner(model, optimize=False).run_rows(x)


def test_channels_of_a_residual_stream_are_one_class_however_often_it_is_read():
    channels = find_channel_groups(prepared_resnet())
    stem, block1 = channels.group_of["stem.relu"], channels.group_of["block1.relu"]
    assert np.array_equal(stem, block1)
    assert np.array_equal(stem, channels.group_of["block1.conv2"])
    assert len(set(stem) & set(channels.group_of["block1.conv1.relu"])) == 0


def test_a_padded_shortcut_moves_channels_to_where_it_puts_them():
    channels = find_channel_groups(prepared_resnet())
    assert np.array_equal(channels.group_of["block2"][2:10], channels.group_of["block1.relu"])


def test_the_input_and_the_outputs_may_not_be_scaled_and_what_lies_between_layers_may():
    channels = find_channel_groups(prepared_resnet())
    for name, is_free in (("input", False), ("logits", False), ("stem", True), ("mean", True)):
        assert channels.is_free[channels.group_of[name]].all() == is_free, name


@pytest.mark.parametrize("operator", ["Sigmoid", "Tanh"])
def test_what_does_not_commute_with_a_scale_is_not_scaled(operator):
    model = prepared_resnet()
    next(n for n in model.graph.node if n.name == "block1.conv1/Relu").op_type = operator
    channels = find_channel_groups(model)
    assert not channels.is_free[channels.group_of["block1.conv1"]].any()
    assert channels.is_free[channels.group_of["stem"]].all()


def test_layers_that_share_weights_are_not_scaled():
    model = prepared_resnet()
    nodes = {node.name: node for node in model.graph.node}
    nodes["block1.conv2/Conv"].input[1] = "block1.conv1.weight"
    channels = find_channel_groups(model)
    assert not channels.is_free[channels.group_of["stem"]].any()


def test_smoothquant_changes_the_weights_and_not_the_outputs():
    model, x = prepared_resnet(), inputs(16)
    # One channel inside a block is a hundred times weaker than the others.
    constants = Constants(model)
    for name in ("block1.conv1.weight", "block1.conv1.bias"):
        weak = constants[name].copy()
        weak[3] *= 0.01
        constants[name] = weak
    smoothed = smooth_channels(model, x)
    assert np.allclose(run(smoothed, x), run(model, x), rtol=1e-4, atol=1e-5)

    def spread(which):
        name = "block1.conv1"
        values = Runner(with_outputs(which, [name]), optimize=False).run(x[:8])[name]
        largest = np.abs(values).max(axis=(0, 2, 3))
        return largest.max() / largest[3]

    assert spread(smoothed) < 0.3 * spread(model)


def test_smoothed_channels_have_the_same_range_but_for_a_few_odd_values(monkeypatch):
    monkeypatch.setattr("resdeploy.quant.smooth_channels._BEYOND", 0.01)
    model, x = prepared_resnet(), inputs(200)
    x[7, :, 0, 0] *= 10  # one pixel, which a few values of each channel see
    smoothed = smooth_channels(model, x)
    name = "block1.conv1.relu"
    values = [
        tensors[name]
        for _, tensors in Runner(with_outputs(smoothed, [name]), optimize=False).run_batches(x)
    ]
    size_CP = np.concatenate(values).swapaxes(0, 1).reshape(8, -1)
    num_beyond = size_CP.shape[1] // 100
    range_C = np.sort(size_CP, axis=1)[:, -1 - num_beyond]
    assert range_C == pytest.approx(range_C.max(), rel=1e-4)
    largest_C = size_CP.max(axis=1)
    assert largest_C.max() > 1.3 * largest_C.min()


def test_smoothquant_scales_the_groups_of_a_grouped_convolution_apart():
    model, x = prepared_resnet(), inputs(8)
    node = next(n for n in model.graph.node if n.name == "block1.conv1/Conv")
    node.attribute.append(onnx.helper.make_attribute("group", 4))
    constants = Constants(model)
    constants["block1.conv1.weight"] = np.ascontiguousarray(constants["block1.conv1.weight"][:, :2])
    smoothed = smooth_channels(model, x)
    assert np.allclose(run(smoothed, x), run(model, x), rtol=1e-4, atol=1e-5)


def test_on_the_pixel_grid_the_input_is_whole_numbers_and_the_outputs_are_the_same():
    model, x = prepared_resnet(), inputs(8)
    changed, grid = use_pixel_grid(model, PREPROCESS)
    onnx.checker.check_model(changed, full_check=True)
    # Also at the border, where the padding is not a pixel.
    assert np.allclose(run(changed, x), run(model, x), rtol=1e-4, atol=1e-5)
    values = Runner(with_outputs(changed, [grid]), optimize=False).run(x)[grid]
    assert np.abs(values - np.rint(values)).max() < 1e-4
    assert values.min() >= -128.001
    assert values.max() <= 127.001


def test_there_is_no_grid_without_8_bit_images_or_with_two_readers():
    model = prepared_resnet()
    assert takes_pixel_grid(model, PREPROCESS)
    vectors = Preprocess(input_shape=(40,), mean=(0.0,), std=(1.0,), divisor=1.0, color="none")
    assert not takes_pixel_grid(model, vectors)
    two_readers = prepared_resnet()
    two_readers.graph.node.append(onnx.helper.make_node("Relu", ["input"], ["other"]))
    assert not takes_pixel_grid(two_readers, PREPROCESS)
    shared = prepared_resnet()
    shared.graph.node.append(onnx.helper.make_node("Conv", ["stem", "stem.weight"], ["other"]))
    assert not takes_pixel_grid(shared, PREPROCESS)
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("group", 3))
    Constants(model)["stem.weight"] = Constants(model)["stem.weight"][:6, :1]
    assert not takes_pixel_grid(model, PREPROCESS)
