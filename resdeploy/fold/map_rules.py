"""The rules of affine maps carried across ONNX operators.

`before` gives, for a map after a node, the map before it of the same effect, `after` the opposite.
Both give None where there is none, or a reason where the operator is one of these and an attribute
is in the way:

1. Identity, Cast to the same type, and Dropout at inference with an unused mask do nothing;
2. Transpose, Flatten, Reshape, Squeeze and Unsqueeze move elements about; DepthToSpace (only
   `before`), Slice and Gather do so too, and GatherND where it is a Gather. A place that is chosen
   twice must have one map;
3. averages, over windows of values alone: AveragePool that counts no padding, GlobalAveragePool,
   ReduceMean but of the batch; the map must not vary along the axes averaged over. A ReduceSum of n
   values is n times their mean: sum(scale x + shift) == scale sum(x) + n shift, for a known n;
4. the largest of a window: MaxPool and GlobalMaxPool, with unused indices; the same, and no scale
   may be negative;
5. repeating values: Pad with reflect, edge or wrap, Resize and Upsample; the map must not vary
   along the axes that are made longer. New values between the old ones (linear, cubic) weigh them
   by numbers that add up to one, so that a shift goes through them whole;
6. Neg: -(scale x + shift) == scale (-x) - shift, both ways.

The further inputs of a node (a shape, axes, pads, scales) must be constant; and of several outputs,
only the first may be used. What takes parts of a value (Slice, Gather, Split) is known by the
places that it takes, `window`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from resdeploy.fold.affine_map import (
    AffineMap,
    flatten_axes,
    part,
    permute,
    reshape,
    unshuffle_pixels,
    whole,
)
from resdeploy.graph.editor import (
    GraphEditor,
    Shape,
    chosen_by_caller,
    constant_array,
    constant_ints,
    describe,
    int_attribute,
    ints_attribute,
    is_op,
    is_present,
    optional_input,
    string_attribute,
    why_it_varies,
)

__all__ = ["Window", "after", "before", "window"]

Crossed = AffineMap | str | None
_GATHERS = ("Gather", "GatherND")
# Where exporters write "to the end", in 32 bits or in 64.
_END = np.iinfo(np.int32).max


def before(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
    """Return the map of the first input of `node` that has the effect of `affine` on its output."""
    return _cross(node, affine, editor, _BEFORE)


def after(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
    """Return the map of the output of `node` that has the effect of `affine` on its first input."""
    return _cross(node, affine, editor, _AFTER)


Rule = Callable[[ir.Node, AffineMap, GraphEditor], Crossed]


def _cross(
    node: ir.Node, affine: AffineMap, editor: GraphEditor, rules: dict[str, Rule]
) -> Crossed:
    if not is_op(node, *rules):
        return None
    reason = chosen_by_caller(node)
    if reason is not None:
        return reason
    if any(is_present(value) for value in node.outputs[1:]):
        what = "mask" if is_op(node, "Dropout") else "second output"
        return f"the {what} of {describe(node)} is used"
    # The sizes of a Resize only say what the shape of its output does.
    last = 3 if is_op(node, "Resize") else len(node.inputs)
    settings = (optional_input(node, k) for k in range(1, min(last, len(node.inputs))))
    if not is_op(node, "Dropout") and any(
        value is not None and why_it_varies(value) is not None for value in settings
    ):
        return f"what {describe(node)} does depends on the input"
    return rules[node.op_type](node, affine, editor)


# --- 1: nothing happens --------------------------------------------------------------------------


def _identity(_node: ir.Node, affine: AffineMap, _editor: GraphEditor) -> Crossed:
    return affine


def _dropout(node: ir.Node, affine: AffineMap, _editor: GraphEditor) -> Crossed:
    training = optional_input(node, 2)
    if training is None:
        return affine
    reason = why_it_varies(training)
    if reason is not None:
        return f"whether {describe(node)} drops values {reason}"
    return f"{describe(node)} is in training mode" if constant_array(training).any() else affine


def _cast(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
    source = node.inputs[0]
    assert source is not None
    is_same = editor.dtype(source) == ir.DataType(int_attribute(node, "to", 0))
    return affine if is_same else None


# --- 2: elements are moved about -----------------------------------------------------------------


def _before_reshape(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
    return _reshaped(affine, editor.shape(node.outputs[0]), _source_shape(node, editor))


def _after_reshape(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
    return _reshaped(affine, _source_shape(node, editor), editor.shape(node.outputs[0]))


def _reshaped(affine: AffineMap, shape: Shape | None, wanted: Shape | None) -> AffineMap | None:
    return None if shape is None or wanted is None else reshape(affine, shape, wanted)


def _before_transpose(node: ir.Node, affine: AffineMap, _editor: GraphEditor) -> Crossed:
    return permute(affine, np.argsort(_permutation(node, affine.rank)).tolist())


def _after_transpose(node: ir.Node, affine: AffineMap, _editor: GraphEditor) -> Crossed:
    return permute(affine, _permutation(node, affine.rank))


def _permutation(node: ir.Node, rank: int) -> list[int]:
    return ints_attribute(node, "perm") or list(reversed(range(rank)))


def _before_depth_to_space(node: ir.Node, affine: AffineMap, _editor: GraphEditor) -> Crossed:
    factor = int_attribute(node, "blocksize", 1)
    depth_first = string_attribute(node, "mode", "DCR") == "DCR"
    return unshuffle_pixels(affine, factor, depth_first=depth_first)


def _sliced(along: Callable[[AffineMap, int, Any, Any], AffineMap | None]) -> Rule:
    """Return the rule of a Slice: `along` takes a map, an axis, its length, the chosen places."""

    def cross(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
        shape, slices = _source_shape(node, editor), _slices(node, affine.rank)
        if shape is None or slices is None:
            return None
        crossed: AffineMap | None = affine
        for axis, cut in slices.items():
            length = shape[axis]
            chosen = np.arange(length)[cut] if isinstance(length, int) else None
            crossed = None if crossed is None else along(crossed, axis, length, chosen)
        return crossed

    return cross


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a value that a node takes.

    Attributes:
        axis: along which it is taken.
        length: of the value there.
        places: taken, in their order.
        drops_axis: True if the one place leaves no axis.
    """

    axis: int
    length: int
    places: Sequence[int]
    drops_axis: bool = False

    def before(self, affine: AffineMap) -> AffineMap:
        """Return the map of the part with all the axes of the value."""
        return _with_axis(affine, self.axis) if self.drops_axis else affine

    def after(self, affine: AffineMap) -> AffineMap | None:
        """Return the part of a map of the value."""
        taken = part(affine, self.axis, self.places)
        if taken is None or not self.drops_axis:
            return taken
        return taken.each(lambda array: np.squeeze(array, self.axis))


def _with_axis(affine: AffineMap, axis: int) -> AffineMap:
    return affine.each(lambda array: np.expand_dims(array, axis))


def window(node: ir.Node, output: ir.Value, editor: GraphEditor) -> Window | None:
    """Return the places that one output of a node takes of its first input, None if not known."""
    shape = _source_shape(node, editor) if is_op(node, "Slice", "Split", *_GATHERS) else None
    if shape is None or chosen_by_caller(node) is not None:
        return None
    axis, places, drops = _places(node, output, shape, editor)
    length = None if axis is None else shape[axis]
    if places is None or not isinstance(length, int):
        return None
    in_range = all(-length <= place < length for place in places)
    return Window(axis, length, [p % length for p in places], drops) if in_range else None


def _places(
    node: ir.Node, output: ir.Value, shape: Shape, editor: GraphEditor
) -> tuple[Any, list[int] | None, bool]:
    """Return the axis, the places along it, and True if it is dropped."""
    if is_op(node, "Slice"):
        cuts = [
            (axis, cut)
            for axis, cut in (_slices(node, len(shape)) or {}).items()
            if not (cut.start == 0 and cut.step == 1 and cut.stop >= _END)
        ]
        if len(cuts) != 1:
            return None, None, False
        ((axis, cut),) = cuts
        return axis, [*range(shape[axis])[cut]] if _is_int(shape[axis]) else None, False
    if is_op(node, *_GATHERS):
        axis = int_attribute(node, "axis", 0) % len(shape)
        places = constant_ints(optional_input(node, 1))
        rank = None if places is None else constant_array(node.inputs[1]).ndim  # type: ignore[arg-type]
        if is_op(node, "GatherND"):  # of whole entries of the first axis
            whole_entries = places is not None and _takes_entries(node)
            return 0, places if whole_entries else None, False
        return axis, places if rank in (0, 1) else None, rank == 0
    axis = int_attribute(node, "axis", 0) % len(shape)
    before = 0
    for value in node.outputs:
        taken = editor.shape(value)
        if taken is None or not _is_int(taken[axis]):
            return axis, None, False
        if value is output:
            return axis, [*range(before, before + taken[axis])], False
        before += taken[axis]
    return axis, None, False


def _takes_entries(node: ir.Node) -> bool:
    indices = node.inputs[1]
    assert indices is not None
    array = constant_array(indices)
    return array.ndim == 2 and array.shape[1] == 1 and not int_attribute(node, "batch_dims", 0)


def _is_int(length: Any) -> bool:
    return isinstance(length, int)


def _before_gather(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
    found = window(node, node.outputs[0], editor)
    if found is not None:
        return whole(found.before(affine), found.axis, found.length, found.places)
    # Along an axis of unknown length, the one place that is taken.
    taken = node.inputs[1] if is_op(node, "Gather") else None
    if taken is None or constant_array(taken).ndim != 0:
        return None
    return _with_axis(affine, int_attribute(node, "axis", 0) % (affine.rank + 1))


def _after_gather(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
    found = window(node, node.outputs[0], editor)
    return None if found is None else found.after(affine)


def _slices(node: ir.Node, rank: int) -> dict[int, slice] | None:
    """Return the slice of each axis that is cut; inputs since opset 10, attributes before."""
    given = [
        ints_attribute(node, name) or constant_ints(optional_input(node, at))
        for at, name in enumerate(("starts", "ends", "axes", "steps"), start=1)
    ]
    starts, ends = given[:2]
    if starts is None or ends is None:
        return None
    axes, steps = given[2] or range(len(starts)), given[3] or [1] * len(starts)
    cuts = zip(axes, starts, ends, steps, strict=True)
    return {axis % rank: slice(start, end, step) for axis, start, end, step in cuts}


# --- 3 to 5: values are averaged, chosen, repeated along some axes -------------------------------


def _along(axes_of: Callable[[ir.Node, int, GraphEditor], Sequence[int] | None]) -> Rule:
    """Return the rule of an operator that a map may cross if it is flat along some axes."""

    def cross(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
        axes = axes_of(node, affine.rank, editor)
        return None if axes is None else flatten_axes(affine, axes)

    return cross


def _image(_node: ir.Node, rank: int, _editor: GraphEditor) -> Sequence[int]:
    return range(2, rank)


def _averaged(node: ir.Node, rank: int, _editor: GraphEditor) -> Sequence[int] | None:
    """Return the axes an AveragePool works on, None if it counts padding."""
    counts_padding = bool(int_attribute(node, "count_include_pad", 0)) and (
        any(ints_attribute(node, "pads") or ())
        or string_attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        or bool(int_attribute(node, "ceil_mode", 0))  # the last window may reach beyond the value
    )
    return None if counts_padding else range(2, rank)


def _maximum(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:  # 4
    return _along(_image)(node, affine, editor) if (affine.scale >= 0).all() else None


def _padded(node: ir.Node, rank: int, _editor: GraphEditor) -> Sequence[int] | None:
    if string_attribute(node, "mode", "constant") not in ("reflect", "edge", "wrap"):
        return None
    # Inputs since opset 11, with axes since 18.
    pads = ints_attribute(node, "pads") or constant_ints(optional_input(node, 1))
    axes = constant_ints(optional_input(node, 3)) or list(range(rank))
    if pads is None or len(pads) != 2 * len(axes):
        return None
    ends = zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True)
    return [axis % rank for axis, begin, end in ends if begin or end]


def _resized(node: ir.Node, rank: int, editor: GraphEditor) -> Sequence[int] | None:
    """Return the axes that a Resize or an Upsample changes, None if it may do more."""
    is_known = string_attribute(node, "mode", "nearest") in ("nearest", "linear", "cubic")
    crops = string_attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
    if not is_known or crops:
        return None
    axes = [axis % rank for axis in ints_attribute(node, "axes") or range(rank)]
    if string_attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return axes
    scales = _scales(node, editor)
    if scales is None or len(scales) != len(axes):  # sizes, say: any axis may change
        shape, changed = _source_shape(node, editor), editor.shape(node.outputs[0])
        if shape is None or changed is None:
            return axes
        return [axis for axis in axes if shape[axis] != changed[axis]]
    return [axis for axis, scale in zip(axes, scales, strict=True) if scale != 1]


def _scales(node: ir.Node, editor: GraphEditor) -> list[float] | None:
    """Return the scales: an attribute before opset 9, then the second input, since 11 the third."""
    if "scales" in node.attributes:
        return list(node.attributes["scales"].as_floats())
    value = optional_input(node, 2 if is_op(node, "Resize") and editor.opset >= 11 else 1)
    if value is None or why_it_varies(value) is not None:
        return None
    return [float(number) for number in np.ravel(constant_array(value))]


def _before_mean(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
    axes = _reduced_axes(node, editor)
    if axes is not None and not int_attribute(node, "keepdims", 1):
        affine = affine.each(lambda array: np.expand_dims(array, axes))
    return None if axes is None else flatten_axes(affine, axes)


def _after_mean(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
    axes = _reduced_axes(node, editor)
    flat = None if axes is None else flatten_axes(affine, axes)
    if flat is None or int_attribute(node, "keepdims", 1):
        return flat
    return flat.each(lambda array: np.squeeze(array, axes))


def _before_sum(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
    count = _num_added(node, editor)
    mean = None if count is None else AffineMap(affine.scale, affine.shift / count)
    return None if mean is None else _before_mean(node, mean, editor)


def _after_sum(node: ir.Node, affine: AffineMap, editor: GraphEditor) -> Crossed:
    count = _num_added(node, editor)
    total = None if count is None else AffineMap(affine.scale, affine.shift * count)
    return None if total is None else _after_mean(node, total, editor)


def _num_added(node: ir.Node, editor: GraphEditor) -> np.longdouble | None:
    """Return the number of values that a ReduceSum adds, None if it is not known, or none."""
    axes, shape = _reduced_axes(node, editor), _source_shape(node, editor)
    lengths = [] if axes is None or shape is None else [shape[axis] for axis in axes]
    known = lengths and all(_is_int(length) and length > 0 for length in lengths)
    return np.longdouble(math.prod(lengths)) if known else None


def _reduced_axes(node: ir.Node, editor: GraphEditor) -> tuple[int, ...] | None:
    """Return the axes, an input since opset 18 or 13; None if the batch is among them."""
    axes, shape = ints_attribute(node, "axes"), _source_shape(node, editor)
    axes = axes or constant_ints(optional_input(node, 1))
    if not axes or shape is None:  # without axes it takes everything
        return None
    positive = tuple(sorted(axis % len(shape) for axis in axes))
    return None if 0 in positive else positive


# --- 6 -------------------------------------------------------------------------------------------


def _negated(_node: ir.Node, affine: AffineMap, _editor: GraphEditor) -> Crossed:
    return AffineMap(affine.scale, -affine.shift)


def _source_shape(node: ir.Node, editor: GraphEditor) -> Shape | None:
    source = node.inputs[0]
    assert source is not None
    return editor.shape(source)


_EITHER_WAY: dict[str, Rule] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "AveragePool": _along(_averaged),
    "GlobalAveragePool": _along(_image),
    "MaxPool": _maximum,
    "GlobalMaxPool": _maximum,
    "Pad": _along(_padded),
    "Resize": _along(_resized),
    "Upsample": _along(_resized),
    "Neg": _negated,
}
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_BEFORE = {
    **_EITHER_WAY,
    **dict.fromkeys(_RESHAPES, _before_reshape),
    "Transpose": _before_transpose,
    "DepthToSpace": _before_depth_to_space,
    "Slice": _sliced(whole),
    **dict.fromkeys(_GATHERS, _before_gather),
    "ReduceMean": _before_mean,
    "ReduceSum": _before_sum,
}
_AFTER = {
    **_EITHER_WAY,
    **dict.fromkeys(_RESHAPES, _after_reshape),
    "Transpose": _after_transpose,
    "Slice": _sliced(lambda affine, axis, _length, chosen: part(affine, axis, chosen)),
    **dict.fromkeys(_GATHERS, _after_gather),
    "ReduceMean": _after_mean,
    "ReduceSum": _after_sum,
}
