"""Write a shortcut that skips pixels and pads channels as one convolution.

Before:  y = Pad(Slice(x; every s-th row and column), b zero channels before, a after)
After:   y = Conv(x, W)          1x1, strides s, W[b + c, c] = 1 and zeros elsewhere

Option A of He et al. (2016, section 4.2). The same bits for finite x: every output is one input
times one, plus zeros (a negative zero becomes positive). An infinity, which a float32 network that
works has none of, would spread to the other channels as NaN. Where a provider rounds the inputs of
convolutions, as CUDA does with --tf32, it rounds the shortcut too.

Why, measured in turn on one core (`benchmarks/export/shortcut.py`): a ResNet-20 takes 0.95 of the
time at batch 1 and 0.97 at batch 8. ONNX Runtime has no blocked kernels for Slice and Pad, and so
reorders the whole map there and back; the convolution stays in the blocked layout, and the Add goes
into it. A MaxPool of one pixel in the Slice's place reaches 0.98. In int8 the Pad alone needs
float32: with it, 4 QuantizeLinear and 4 DequantizeLinear run, with the convolution one of each.

Leaves it as it is when
1. the Slice is not known to take every s-th row and column of whole channels, from the first on;
2. the Pad adds anything but zeros, or anywhere but to the channels;
3. something else reads the Slice's output;
4. x is not known to be an image of floats with at most 64 channels: the products grow with their
   square, and from 128 on the convolution was no faster.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from resdeploy.graph.editor import (
    GraphEditor,
    constant_array,
    constant_ints,
    each_node,
    is_op,
    node_name,
    optional_input,
    remove_if_unread,
    string_attribute,
    take_place_of,
    why_it_varies,
)
from resdeploy.schema.exports import PassReport

__all__ = ["MOST_CHANNELS", "replace_padded_shortcut"]

MOST_CHANNELS = 64

_IMAGE_RANK = 4
_END = np.iinfo(np.int32).max
_FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Site:
    slice: ir.Node
    pad: ir.Node
    dtype: ir.DataType
    num_channels: int
    before: int
    after: int
    strides: tuple[int, int]


def replace_padded_shortcut(model: ir.Model) -> PassReport:
    """Replace each such shortcut, in place."""
    num_changed = 0
    for node, editor in each_node(model):
        site = _match(node, editor)
        if site is not None:
            _rewrite(site, editor)
            num_changed += 1
    return PassReport(name="replace_padded_shortcut", num_changed=num_changed)


def _match(pad: ir.Node, editor: GraphEditor) -> _Site | None:
    if not is_op(pad, "Pad") or pad.inputs[0] is None:
        return None
    sliced = pad.inputs[0]
    node = sliced.producer()
    if node is None or not is_op(node, "Slice") or node.inputs[0] is None:
        return None
    alone = len(sliced.uses()) == 1 and not sliced.is_graph_output()
    shape, dtype = editor.shape(node.inputs[0]), editor.dtype(node.inputs[0])
    if not alone or node.graph is not pad.graph:  # 3
        return None
    if shape is None or len(shape) != _IMAGE_RANK or dtype not in _FLOATS:  # 4
        return None
    num_channels, strides, padding = shape[1], _strides(node), _zero_channels(pad)
    if strides is None or padding is None:  # 1, 2
        return None
    if not isinstance(num_channels, int) or num_channels > MOST_CHANNELS:  # 4
        return None
    assert dtype is not None
    return _Site(
        slice=node,
        pad=pad,
        dtype=dtype,
        num_channels=num_channels,
        before=padding[0],
        after=padding[1],
        strides=strides,
    )


def _strides(node: ir.Node) -> tuple[int, int] | None:
    """Return the steps along rows and columns, of which every s-th is taken; None otherwise."""
    if len(node.inputs) < 5:
        return None
    cuts = [constant_ints(value) for value in node.inputs[1:5]]
    starts, ends, axes, steps = cuts
    if starts is None or ends is None or axes is None or steps is None:
        return None
    if any(starts) or min(ends) < _END or min(steps) < 1:
        return None
    step_of = {axis % _IMAGE_RANK: step for axis, step in zip(axes, steps, strict=True)}
    if step_of.get(0, 1) != 1 or step_of.get(1, 1) != 1:
        return None
    return step_of.get(2, 1), step_of.get(3, 1)


def _zero_channels(pad: ir.Node) -> tuple[int, int] | None:
    """Return the number of zero channels before and after; None for any other padding."""
    value, axes_input = optional_input(pad, 2), optional_input(pad, 3)
    if string_attribute(pad, "mode", "constant") != "constant":
        return None
    if value is not None and (why_it_varies(value) is not None or constant_array(value).any()):
        return None
    pads = constant_ints(optional_input(pad, 1))
    axes = list(range(_IMAGE_RANK)) if axes_input is None else constant_ints(axes_input)
    if pads is None or axes is None or min(pads) < 0:
        return None
    befores = dict(zip((axis % _IMAGE_RANK for axis in axes), pads, strict=False))
    afters = dict(zip((axis % _IMAGE_RANK for axis in axes), pads[len(axes) :], strict=False))
    if any(befores.get(axis, 0) or afters.get(axis, 0) for axis in (0, 2, 3)):
        return None
    return befores.get(1, 0), afters.get(1, 0)


def _rewrite(site: _Site, editor: GraphEditor) -> None:
    pad, graph = site.pad, site.pad.graph
    assert graph is not None
    num_outputs = site.before + site.num_channels + site.after
    weight_OI11 = np.eye(num_outputs, site.num_channels, k=-site.before)[:, :, None, None]
    name = node_name(pad)
    conv = ir.node(
        "Conv",
        [site.slice.inputs[0]],
        attributes={"kernel_shape": [1, 1], "strides": list(site.strides)},
        name=name.removesuffix("/Pad") + "/Conv" if name.endswith("/Pad") else name,
    )
    graph.insert_after(pad, conv)
    tensor = ir.tensor(weight_OI11.astype(site.dtype.numpy()))
    weight = editor.add(f"{name.removesuffix('/Pad')}.weight", tensor, reader=conv)
    conv.resize_inputs(2)
    conv.replace_input_with(1, weight)
    take_place_of(pad.outputs[0], conv.outputs[0])
    constants = [v for node in (pad, site.slice) for v in node.inputs[1:] if v is not None]
    graph.remove([pad, site.slice], safe=True)
    for constant in constants:
        remove_if_unread(constant)
