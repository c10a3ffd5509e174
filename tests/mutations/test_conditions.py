"""Subtle conditions of the fold, each broken while it runs: a test must go red.

A mutation tool changes one token at a time (`survivors.py`). Here is what it cannot break: an
attribute that is overlooked, a rounding in the wrong place, a map carried the wrong way. A row
replaces a function or a property by a wrong one and calls the test that must notice. No row knows
the text of what it breaks.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.fold import affine_map, algebra, map_rules
from resdeploy.graph import editor
from resdeploy.graph.affine_layer import AffineLayer, read_layer

TESTS = Path(__file__).parents[1]
ALGEBRA, MAP = "fold/test_algebra.py", "fold/test_affine_map.py"
FLOW, FOLD = "fold/test_affine_flow.py", "fold/test_fold_batchnorm.py"

Break = Callable[[pytest.MonkeyPatch], None]


# --- ways to break -------------------------------------------------------------------------------


def function(original: Callable[..., Any], broken: Callable[..., Any]) -> Break:
    """Put `broken`, which takes the original first, wherever a module has the function."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        modules = [m for name, m in sys.modules.items() if name.startswith("resdeploy.")]
        for module in modules:
            for name in [name for name, value in vars(module).items() if value is original]:
                patch.setattr(module, name, lambda *a, **k: broken(original, *a, **k))

    return plant


def member(owner: type, name: str, broken: Any) -> Break:
    return lambda patch: patch.setattr(owner, name, broken)


def overlooked(attribute: str) -> Break:
    """Let every node look as if it had no such attribute."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def read(original, node, name, *default):
            return original(node, "" if name == attribute else name, *default)

        def read_without(original, op, attributes, *rest, **where):
            seen = {name: value for name, value in attributes.items() if name != attribute}
            return original(op, seen, *rest, **where)

        for kind in ("int", "ints", "float", "string"):
            function(getattr(editor, f"{kind}_attribute"), read)(patch)
        function(read_layer, read_without)(patch)

    return plant


def rounded(values: Any, dtype: type) -> Any:
    return values.astype(dtype).astype(np.longdouble)


def first_tap(weight: np.ndarray) -> np.ndarray:
    taps = weight.copy().reshape(*weight.shape[:2], -1)
    taps[:, :, 1:] = 0
    return taps


def forgetting(name: str) -> Callable[..., Any]:
    """A `map_before` that does not know what was folded on one side already."""

    def broken(original, edit, *rest):
        unaware = replace(edit, **{name: None if name == "in_scale" else np.ones_like(edit.bias)})
        after = original(unaware, *rest)
        already = getattr(edit, name)
        both = getattr(after, name) * (1 if already is None else already)
        return replace(after, **{name: both})

    return broken


def round_each_map(original, *arguments):
    edit = original(*arguments)
    return replace(
        edit, out_scale=rounded(edit.out_scale, np.float32), bias=rounded(edit.bias, np.float32)
    )


def first_number(original, affine, axes):
    for axis in axes:
        affine = affine.each(lambda array, axis=axis: np.take(array, [0], axis=axis))
    return affine


def scale_alone(original, affine, axes):
    flat = original(affine_map.AffineMap(affine.scale, affine.scale), axes)
    return None if flat is None else first_number(None, affine, axes)


def any_length(original, affine, axis, length):
    return tuple(np.resize(array, length) for array in (affine.scale, affine.shift))


def nothing_elsewhere(original, affine, *where):
    inside = original(affine.each(np.zeros_like), *where)
    return replace(original(affine, *where), scale=original(affine, *where).scale - inside.scale)


def turned(original, node, affine, graph):
    """The maximum of what is turned around would be the minimum."""
    is_maximum = editor.is_op(node, "MaxPool")
    return original(node, affine.each(np.abs) if is_maximum else affine, graph) and affine


def in_place(self, old, tensor, *, reader):
    old.const_value = tensor
    return old


PADS = AffineLayer.pads_with_zeros.fget


# --- the rows ------------------------------------------------------------------------------------

Row = tuple[str, Break, str, str, dict[str, Any]]

NUMBERS: list[Row] = [
    (
        "bfloat16 is rounded once, not by way of float32",
        function(algebra.round_once, lambda f, x, dtype: f(rounded(x, np.float32) * 1.0, dtype)),
        ALGEBRA,
        "bfloat16_does_not_round_twice",
        {},
    ),
    (
        "a scale is more exact than the weights it multiplies",
        function(
            algebra.scale_and_shift, lambda f, bn: tuple(rounded(v, np.float32) for v in f(bn))
        ),
        ALGEBRA,
        "every_folded_value_is_within_half_an_ulp_of_the_exact_one",
        {"dtype": "float32"},
    ),
    (
        "the scale of float64 weights is more exact than float64",
        function(
            algebra.scale_and_shift, lambda f, bn: tuple(rounded(v, np.float64) for v in f(bn))
        ),
        ALGEBRA,
        "float64_weights_are_rounded_once_where_the_machine_has_more",
        {},
    ),
    (
        "two maps are one before anything is rounded",
        function(algebra.map_after, round_each_map),
        FOLD,
        "two_batchnorms_are_rounded_once",
        {},
    ),
    (
        "a subnormal number, which would slow ONNX Runtime down, becomes zero",
        function(algebra.smallest_normal, lambda f, dtype: 0.0),
        ALGEBRA,
        "subnormal_weights_that_change_no_output_become_zero_and_are_counted",
        {},
    ),
    (
        "a weight that may have become zero is no fault",
        function(algebra.smallest_normal, lambda f, dtype: 0.0),
        "verify/test_weights.py",
        "a_subnormal_may_be_zero",
        {},
    ),
    (
        "attributes are float32 numbers: eps is not 1e-5",
        function(editor.float_attribute, lambda f, node, name, default: default),
        FOLD,
        "epsilon_is_the_float32_number",
        {"attribute": "", "eps": 1e-5},
    ),
    (
        "a shift before a convolution meets every tap",
        function(algebra.map_before, lambda f, edit, w, *rest: f(edit, first_tap(w), *rest)),
        ALGEBRA,
        "maps_before_and_after_leave_the_same_function",
        {"groups": 1, "transposed": False},
    ),
    (
        "a shift before a layer meets the scale folded after it",
        function(algebra.map_before, forgetting("out_scale")),
        ALGEBRA,
        "maps_before_and_after_leave_the_same_function",
        {"groups": 1, "transposed": False},
    ),
    (
        "a shift before a layer meets the scale folded before it",
        function(algebra.map_before, forgetting("in_scale")),
        FLOW,
        "two_maps_go_down_into_one_layer",
        {},
    ),
]

MAPS: list[Row] = [
    (
        "a map that varies within a window is not that of the window",
        function(affine_map.flatten_axes, first_number),
        FLOW,
        "refuses_a_map_that_differs_within_a_window",
        {},
    ),
    (
        "a map varies where its shift does",
        function(affine_map.flatten_axes, scale_alone),
        MAP,
        "what_varies_is_seen_in_either_array",
        {},
    ),
    (
        "a map has as many channels as the layer",
        function(affine_map.per_channel, any_length),
        FOLD,
        "refuses_channels_that_do_not_match",
        {},
    ),
    (
        "what a slice cuts away keeps its scale",
        function(affine_map.whole, nothing_elsewhere),
        MAP,
        "the_whole_of_a_slice_leaves_the_rest_alone",
        {},
    ),
    (
        "one summand takes the shift",
        member(affine_map.AffineMap, "without_shift", lambda self: self),
        FLOW,
        "a_sum_of_layers_takes_the_shift_once",
        {"op": "Add"},
    ),
    (
        "upwards, axes move back",
        function(affine_map.permute, lambda f, affine, order: f(affine, np.argsort(order))),
        FLOW,
        "crosses_a_transpose_that_turns_three_axes_around",
        {},
    ),
    (
        "downwards, axes move on",
        function(affine_map.permute, lambda f, affine, order: f(affine, np.argsort(order))),
        FLOW,
        "goes_down_through_a_transpose_that_turns_three_axes_around",
        {},
    ),
    (
        "no negative scale crosses a maximum",
        function(map_rules.before, turned),
        FOLD,
        "refuses_what_lies_between",
        {"between": "y = MaxPool <kernel_shape = [2, 2]> (u)"},
    ),
]

LAYERS: list[Row] = [
    (
        "a transposed convolution sees its borders even without pads",
        member(
            AffineLayer,
            "pads_with_zeros",
            property(lambda self: self.op != "ConvTranspose" and PADS(self)),
        ),
        FLOW,
        "refuses_a_transposed_convolution_below",
        {},
    ),
    (
        "a kernel of one tap sees no zeros under SAME",
        member(AffineLayer, "pads_with_zeros", property(lambda self: not self.is_linear)),
        FLOW,
        "goes_down_into_a_convolution_of_one_tap_that_says_same",
        {},
    ),
    (
        "auto_pad pads",
        overlooked("auto_pad"),
        FLOW,
        "refuses_a_convolution_that_pads_with_zeros",
        {"attributes": 'auto_pad = "SAME_LOWER"'},
    ),
    (
        "transA makes the batch the features",
        overlooked("transA"),
        FLOW,
        "refuses_a_gemm_that_reads_it_transposed",
        {},
    ),
    (
        "alpha multiplies a shift before it",
        overlooked("alpha"),
        FLOW,
        "goes_down_into_a_gemm",
        {"bias": None, "trans_b": 0},
    ),
    (
        "beta multiplies the bias",
        overlooked("beta"),
        FOLD,
        "gemm",
        {"alpha": 0.3, "beta": -1.7, "trans_b": 0, "bias": (6,)},
    ),
    (
        "a weight that two layers read becomes two",
        member(editor.GraphEditor, "replace", in_place),
        FOLD,
        "shared_weights_are_cloned",
        {},
    ),
]

LEGALITY: list[Row] = [
    (
        "training_mode counts with one output too",
        overlooked("training_mode"),
        FOLD,
        "refuses_a_batchnorm_of_training_mode_with_one_output",
        {},
    ),
    (
        "spatial = 0 normalises each pixel",
        overlooked("spatial"),
        FOLD,
        "refuses_statistics_per_pixel",
        {},
    ),
    (
        "an average that counts padding is none of the values",
        overlooked("count_include_pad"),
        FLOW,
        "refuses_averages_that_count_padding",
        {"attributes": "kernel_shape = [2, 2], pads = [1, 0, 0, 0], count_include_pad = 1"},
    ),
    (
        "the last window may reach beyond the value",
        overlooked("ceil_mode"),
        FLOW,
        "refuses_averages_that_count_padding",
        {
            "attributes": (
                "kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1, count_include_pad = 1"
            )
        },
    ),
    (
        "a Resize that crops puts new values in",
        overlooked("coordinate_transformation_mode"),
        FLOW,
        "refuses_resizing_by_other_means",
        {
            "attributes": 'coordinate_transformation_mode = "tf_crop_and_resize"',
            "scales": [1, 1, 2, 2],
        },
    ),
    (
        "DepthToSpace puts the depth first unless it says CRD",
        overlooked("mode"),
        FLOW,
        "crosses_depth_to_space",
        {"mode": '"CRD"', "opset": 13},
    ),
    (
        "a default that a caller may replace is no constant",
        function(
            editor.why_it_varies,
            lambda f, v: None if v is not None and v.is_initializer() else f(v),
        ),
        FOLD,
        "refuses_parameters_that_a_caller_may_replace",
        {"name": "gamma"},
    ),
    (
        "an attribute may be the parameter of a function",
        function(editor.chosen_by_caller, lambda f, node: None),
        FOLD,
        "refuses_a_layer_whose_attributes_the_caller_chooses",
        {},
    ),
    (
        "an operator of another domain has another meaning",
        function(editor.is_op, lambda f, node, *operators: node.op_type in operators),
        FOLD,
        "refuses_an_operator_of_another_domain",
        {},
    ),
    (
        "a mask that is an output is seen",
        function(editor.is_present, lambda f, value: bool(value.uses())),
        FOLD,
        "refuses_a_dropout_whose_mask_is_used",
        {},
    ),
]

ROWS = [*NUMBERS, *MAPS, *LAYERS, *LEGALITY]


def test_there_are_few_enough_to_read():
    assert len({says for says, *_ in ROWS}) == len(ROWS) <= 40


@pytest.mark.parametrize(
    ("plant", "file", "name", "arguments"),
    [row[1:] for row in ROWS],
    ids=[row[0].replace(" ", "_") for row in ROWS],
)
def test_a_broken_condition_turns_a_test_red(plant, file, name, arguments, monkeypatch):
    plant(monkeypatch)
    # Read only now, so that what it imports is broken as well.
    monkeypatch.syspath_prepend(str((TESTS / file).parent))
    spec = importlib.util.spec_from_file_location("killer", TESTS / file)
    killer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(killer)
    with pytest.raises((AssertionError, LookupError, ValueError, pytest.fail.Exception)):
        getattr(killer, f"test_{name}")(**arguments)
