"""Fold BatchNormalization into the layer that feeds it, in an ONNX graph.

Before:  y = Conv(x, W, b);  z = BatchNormalization(y, gamma, beta, mean, var)
After:   z = Conv(x, W', b')          with (W', b') of `resdeploy.algebra.fold_batchnorm`

The layer may be a Conv, a ConvTranspose, a Gemm, or a MatMul with or without an Add of a constant;
a MatMul alone becomes a Gemm. A Gemm keeps its alpha, and its beta goes into the bias. Between
layer and BatchNormalization, an Identity or a Dropout (at inference) is stepped over. A second
BatchNormalization is composed with the first, so that the weights are still rounded once.

Refuses, and reports why, when
1. the BatchNormalization normalises by the statistics of the batch (training mode), or by more
   than the channel, as opset 7 allowed, or is older than that;
2. one of its parameters or statistics is computed at run time, or is an input of the model;
3. the value it reads, or one on the way, has another reader or is an output of its graph;
4. that value does not come from a layer named above, in the same graph;
5. the layer's weight or bias is computed at run time, or is an input of the model;
6. the layer's output channel is not the axis the BatchNormalization normalises (axis 1);
7. the folded weights would not be finite in their type, or do not fit.

A weight or bias that has other readers is cloned: each site gets its own. Branches, loop bodies and
local functions are folded like the graph around them; a BatchNormalization and its layer must lie
in the same one. Constants may come from anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy import algebra
from resdeploy.graph.editor import (
    GraphEditor,
    constant_array,
    constant_tensor,
    describe,
    describe_value,
    float_attribute,
    graph_editors,
    int_attribute,
    is_op,
    node_name,
    remove_if_unread,
    why_it_varies,
)
from resdeploy.schema import FoldedSite, FoldReport, RefusedSite

__all__ = ["fold_batchnorm"]

FloatArray = npt.NDArray[np.floating[Any]]

_STORAGE_TYPES = {
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}
# What the operator specification gives to a node without the attribute.
_DEFAULT_EPSILON = 1e-5
_OLDEST_OPSET = 7


def fold_batchnorm(model: ir.Model) -> FoldReport:
    """Fold every BatchNormalization of `model` that may be folded, in place.

    What was refused, and what has nothing to do with a fold, keeps every bit.
    """
    folded: list[FoldedSite] = []
    refused: list[RefusedSite] = []
    originals: dict[ir.Node, _Original] = {}
    for editor in graph_editors(model):
        # In graph order and at once, so that Conv -> BN -> BN folds both.
        for node in list(editor.graph.all_nodes()):
            if not is_op(node, "BatchNormalization"):
                continue
            match = _match(node, editor, originals)
            if isinstance(match, str):
                refused.append(RefusedSite(site=node_name(node), reason=match))
                continue
            folded.append(_report(match))
            originals[_rewrite(match, editor)] = match.original
    return FoldReport(folded=tuple(folded), refused=tuple(refused))


# --- the graph and what is known of it -----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Original:
    """A layer as it was before the first fold, and what was folded into it since.

    Attributes:
        weight: as stored.
        bias: with a Gemm's beta in it; (C,), (M, C), or None.
        maps: the BatchNorms, first one first.
    """

    weight: FloatArray
    bias: FloatArray | None
    maps: tuple[algebra.BatchNormParams, ...]


# --- match: the conditions of the module docstring, in order -------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """An affine layer: `adder` is the Add after a MatMul, or the node itself if it has a bias.

    Attributes:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        adder: the node that reads the bias, as its input `bias_index`.
        bias: that input, or None where there is none yet.
    """

    node: ir.Node
    adder: ir.Node
    bias_index: int
    weight: ir.Value
    bias: ir.Value | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """A legal fold, with the new weights and the layer they came from."""

    batchnorm: ir.Node
    layer: _Layer
    original: _Original
    weight: ir.TensorProtocol
    bias: ir.TensorProtocol
    max_ulp: float
    num_flushed: int


def _match(
    batchnorm: ir.Node, editor: GraphEditor, originals: Mapping[ir.Node, _Original]
) -> _Site | str:
    """Return the site, or the reason why it is refused."""
    reason = _not_one_map(batchnorm, editor.opset)  # 1
    if reason is not None:
        return reason
    for value in batchnorm.inputs[1:]:
        reason = why_it_varies(value)
        if reason is not None:  # 2
            return f"its parameters are not constant: {_quoted(value)} {reason}"
    value = batchnorm.inputs[0]
    assert value is not None
    layer = _producer(value, batchnorm)
    if isinstance(layer, str):  # 3, 4
        return layer
    reason = _not_constant(layer)  # 5
    if reason is not None:
        return reason
    if is_op(layer.node, "MatMul"):
        reason = _not_by_channel(layer, editor.rank(value))  # 6
        if reason is not None:
            return reason
    try:
        return _folded(batchnorm, layer, originals)
    except ValueError as error:  # 7; a NonFiniteFoldError, or shapes that do not fit
        return str(error)


def _not_one_map(batchnorm: ir.Node, opset: int) -> str | None:
    """Return why a BatchNormalization is not one map per channel, or None if it is."""
    if opset < _OLDEST_OPSET:
        return f"it is of opset {opset}; before opset {_OLDEST_OPSET} it has another meaning"
    reason = _chosen_by_caller(batchnorm, "epsilon", "training_mode", "spatial")
    if reason is not None:
        return reason
    # Before opset 14, the further outputs are what says that it is training.
    in_training = int_attribute(batchnorm, "training_mode", 0) or any(
        value.name for value in batchnorm.outputs[1:]
    )
    if in_training:
        return "it normalises by the statistics of the batch (it is in training mode)"
    if int_attribute(batchnorm, "spatial", 1) == 0:
        return "it normalises each pixel by itself (spatial = 0), not each channel"
    return None


def _producer(value: ir.Value, batchnorm: ir.Node) -> _Layer | str:
    """Return the layer that computes what the BatchNormalization reads, or why there is none."""
    while True:
        node = value.producer()
        if node is None:
            return f"its input is {describe_value(value)}, not the output of a layer"
        reason = _read_elsewhere(value)
        if reason is not None:
            return reason
        if node.graph is not batchnorm.graph:
            return f"its input, {describe_value(value)}, is computed in another graph than itself"
        layer = _layer(node)
        if layer is not None:
            reason = None if layer.node is node else _read_elsewhere(layer.node.outputs[0])
            return reason or layer
        reason = _not_passed_through(node)
        if reason is not None:
            return reason
        previous = node.inputs[0]
        assert previous is not None
        value = previous


def _layer(node: ir.Node) -> _Layer | None:
    """Return `node` as a layer, or None if it is something else."""
    if is_op(node, "Conv", "ConvTranspose", "Gemm"):
        weight, bias = node.inputs[1], (*node.inputs, None)[2]
        # An optional input that is left out may be there with an empty name.
        bias = None if bias is None or bias.name == "" else bias
        assert weight is not None
        return _Layer(node=node, adder=node, bias_index=2, weight=weight, bias=bias)
    if is_op(node, "MatMul"):
        weight = node.inputs[1]
        assert weight is not None
        return _Layer(node=node, adder=node, bias_index=2, weight=weight, bias=None)
    if is_op(node, "Add"):
        for bias_index, product in ((1, node.inputs[0]), (0, node.inputs[1])):
            bias = node.inputs[bias_index]
            before = None if product is None else product.producer()
            if before is None or bias is None or not is_op(before, "MatMul"):
                continue
            if before.graph is node.graph and why_it_varies(bias) is None:
                weight = before.inputs[1]
                assert weight is not None
                return _Layer(
                    node=before, adder=node, bias_index=bias_index, weight=weight, bias=bias
                )
    return None


def _read_elsewhere(value: ir.Value) -> str | None:
    """Return why `value` cannot change its meaning, or None if it has one reader alone."""
    if value.is_graph_output():
        return f"its input, {describe_value(value)}, is also an output of its graph"
    if len(value.uses()) == 1:
        return None
    others = f"its input, {describe_value(value)}, is read {len(value.uses())} times"
    around = [reader for reader, _ in value.uses()] + [value.producer()]
    if any(node is not None and _adds_two_streams(node) for node in around):
        return f"{others}: it is the residual stream"
    return others


def _adds_two_streams(node: ir.Node) -> bool:
    return is_op(node, "Add") and all(why_it_varies(value) is not None for value in node.inputs)


def _not_passed_through(node: ir.Node) -> str | None:
    """Return why `node` changes what it passes on, or None if it does not at inference."""
    if is_op(node, "Identity"):
        return None
    if not is_op(node, "Dropout"):
        return f"its input comes from {describe(node)}, not from a convolution or linear layer"
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return f"the mask of {describe(node)} is used"
    training = (*node.inputs, None, None)[2]
    if training is None or training.name == "":
        return None
    reason = why_it_varies(training)
    if reason is not None:
        return f"whether {describe(node)} drops values {reason}"
    return f"{describe(node)} is in training mode" if constant_array(training).any() else None


def _not_constant(layer: _Layer) -> str | None:
    """Return why a layer's weight and bias are not numbers known now, or None if they are."""
    for what, value in (("weight", layer.weight), ("bias", layer.bias)):
        reason = None if value is None else why_it_varies(value)
        if reason is not None:
            return f"the {what} of {describe(layer.node)} {reason}"
    return _chosen_by_caller(layer.node, "group", "transB", "beta")


def _not_by_channel(layer: _Layer, rank: int | None) -> str | None:
    """Return why a MatMul's features are not on axis 1, or None if they are."""
    if rank is None:
        return f"the number of axes of what {describe(layer.node)} computes is not known"
    if rank != 2 or len(constant_tensor(layer.weight).shape) != 2:
        return (
            f"{describe(layer.node)} has its features on the last axis of a rank-{rank} value, "
            f"but it normalises axis 1"
        )
    return None


def _chosen_by_caller(node: ir.Node, *names: str) -> str | None:
    """Return why attributes are not known here: in a function they may be its parameters."""
    for name in names:
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.is_ref():
            return f"{name} of {describe(node)} is chosen by whoever calls the function"
    return None


# --- the numbers ---------------------------------------------------------------------------------


def _folded(batchnorm: ir.Node, layer: _Layer, originals: Mapping[ir.Node, _Original]) -> _Site:
    """Return the site with its new weights.

    Raises:
        NonFiniteFoldError: they would not be finite.
        ValueError: the channels do not match, or the weights are not floating point.
    """
    weight_tensor = constant_tensor(layer.weight)
    dtype = _STORAGE_TYPES.get(weight_tensor.dtype, str(weight_tensor.dtype))
    before = originals.get(layer.node)
    if before is None:
        before = _Original(weight=constant_array(layer.weight), bias=_bias(layer), maps=())
    maps = (*before.maps, _params(batchnorm))
    original = _Original(weight=before.weight, bias=before.bias, maps=maps)
    bn = _composed(maps)
    num_channels = len(bn.mean)
    by_row = original.bias is not None and original.bias.ndim > 1 and len(original.bias) > 1
    bias_C = None if original.bias is None or by_row else original.bias
    if bias_C is not None:
        bias_C = np.broadcast_to(bias_C.reshape(-1), (num_channels,))
    affine = _fold_weight(layer.node, original.weight, bias_C, bn, dtype)
    bias, max_ulp, num_flushed = affine.bias, affine.max_ulp, affine.num_flushed
    if by_row:
        assert original.bias is not None
        rows = _fold_bias_rows(original.bias, bn, dtype)
        bias, max_ulp = rows.bias.reshape(-1, num_channels), max(max_ulp, rows.max_ulp)
        num_flushed += rows.num_flushed
    # Converted to the layer's type: from opset 15 on, the BatchNormalization may have another.
    stored = weight_tensor.dtype.numpy()
    return _Site(
        batchnorm=batchnorm,
        layer=layer,
        original=original,
        weight=ir.tensor(affine.weight.astype(stored), dtype=weight_tensor.dtype),
        bias=ir.tensor(bias.astype(stored), dtype=weight_tensor.dtype),
        max_ulp=max_ulp,
        num_flushed=num_flushed,
    )


def _fold_weight(
    node: ir.Node,
    weight: FloatArray,
    bias_C: FloatArray | None,
    bn: algebra.BatchNormParams,
    dtype: str,
) -> algebra.FoldedAffine:
    """Return the folded layer, its weight in the layout of `node`."""
    if not is_op(node, "ConvTranspose"):
        by_column = is_op(node, "MatMul") or (
            is_op(node, "Gemm") and not int_attribute(node, "transB", 0)
        )
        axis = 1 if by_column else 0
        return algebra.fold_batchnorm(weight, bias_C, bn, dtype=dtype, channel_axis=axis)
    # (I, O/G, ...): the output channel is the group and the second axis, taken together.
    groups = int_attribute(node, "group", 1)
    inputs, outputs_per_group, *kernel = weight.shape
    if inputs % groups:
        raise ValueError(f"{describe(node)} has {inputs} input channels in {groups} groups")
    by_group = weight.reshape(groups, inputs // groups, outputs_per_group, *kernel).swapaxes(1, 2)
    by_output = by_group.reshape(groups * outputs_per_group, inputs // groups, *kernel)
    affine = algebra.fold_batchnorm(by_output, bias_C, bn, dtype=dtype, channel_axis=0)
    folded = affine.weight.reshape(by_group.shape).swapaxes(1, 2).reshape(weight.shape)
    return algebra.FoldedAffine(
        weight=np.ascontiguousarray(folded),
        bias=affine.bias,
        max_ulp=affine.max_ulp,
        num_flushed=affine.num_flushed,
    )


def _fold_bias_rows(
    bias: FloatArray, bn: algebra.BatchNormParams, dtype: str
) -> algebra.FoldedAffine:
    """Return the fold of a bias that differs by row, (M, 1) or (M, C): a layer of M * C outputs."""
    num_rows = len(bias)
    bias_MC = np.broadcast_to(bias, (num_rows, len(bn.mean)))
    tiled = algebra.BatchNormParams(
        gamma=None if bn.gamma is None else np.tile(bn.gamma, num_rows),
        beta=None if bn.beta is None else np.tile(bn.beta, num_rows),
        mean=np.tile(bn.mean, num_rows),
        var=np.tile(bn.var, num_rows),
        eps=bn.eps,
    )
    no_weight = np.zeros((bias_MC.size, 1), np.float32)
    return algebra.fold_batchnorm(no_weight, bias_MC.reshape(-1), tiled, dtype=dtype)


def _params(batchnorm: ir.Node) -> algebra.BatchNormParams:
    gamma, beta, mean, var = (
        constant_array(value) for value in batchnorm.inputs[1:5] if value is not None
    )
    if mean.ndim != 1 or not gamma.shape == beta.shape == mean.shape == var.shape:
        raise ValueError("its parameters are not of one shape (C,)")
    eps = float_attribute(batchnorm, "epsilon", _DEFAULT_EPSILON)
    return algebra.BatchNormParams(gamma=gamma, beta=beta, mean=mean, var=var, eps=eps)


def _composed(maps: tuple[algebra.BatchNormParams, ...]) -> algebra.BatchNormParams:
    """Return BatchNorms one after the other as one: its gamma the scale, its beta the shift."""
    if len(maps) == 1:
        return maps[0]
    scale_C, shift_C = algebra.scale_and_shift(maps[0])
    for bn in maps[1:]:
        next_scale_C, next_shift_C = algebra.scale_and_shift(bn)
        scale_C, shift_C = next_scale_C * scale_C, next_scale_C * shift_C + next_shift_C
    zeros = np.zeros_like(scale_C)
    return algebra.BatchNormParams(gamma=scale_C, beta=shift_C, mean=zeros, var=zeros + 1, eps=0.0)


def _bias(layer: _Layer) -> FloatArray | None:
    """Return the bias as it is added, times the beta of a Gemm."""
    if layer.bias is None:
        return None
    bias = constant_array(layer.bias)
    if is_op(layer.node, "Gemm"):
        return bias.astype(np.longdouble) * np.longdouble(float_attribute(layer.node, "beta", 1.0))
    return bias


# --- rewrite: no conditions here -----------------------------------------------------------------


def _rewrite(site: _Site, editor: GraphEditor) -> ir.Node:
    """Let the layer, with its new weights, take the BatchNormalization's place; return it."""
    batchnorm, layer = site.batchnorm, site.layer
    old = [layer.weight, layer.bias, *batchnorm.inputs[1:]]
    weight = editor.replace(layer.weight, site.weight, reader=layer.node)
    layer.node.replace_input_with(1, weight)
    if layer.bias is None:
        bias = editor.add(_bias_name(layer.weight), site.bias, reader=layer.node)
    else:
        bias = editor.replace(layer.bias, site.bias, reader=layer.node)
    node = layer.node
    if layer.adder is node and is_op(node, "MatMul"):
        node = _gemm_from_matmul(node, bias)
    else:
        if len(layer.adder.inputs) <= layer.bias_index:
            layer.adder.resize_inputs(layer.bias_index + 1)
        layer.adder.replace_input_with(layer.bias_index, bias)
    if "beta" in node.attributes:
        node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    _bypass(batchnorm)
    for value in old:
        if value is not None:
            remove_if_unread(value)
    return node


def _gemm_from_matmul(matmul: ir.Node, bias: ir.Value) -> ir.Node:
    """Put a Gemm in the place of a MatMul of two matrices: it adds the bias as well."""
    assert matmul.graph is not None
    gemm = ir.node("Gemm", [*matmul.inputs, bias], name=matmul.name)
    gemm.metadata_props.update(matmul.metadata_props)
    before, after = matmul.outputs[0], gemm.outputs[0]
    after.type, after.shape = before.type, before.shape
    matmul.graph.insert_after(matmul, gemm)
    before.replace_all_uses_with(after)
    matmul.graph.remove(matmul, safe=True)
    after.name = before.name
    return gemm


def _bypass(batchnorm: ir.Node) -> None:
    """Remove a BatchNormalization; its input is now its output, and takes over its name."""
    value, result = batchnorm.inputs[0], batchnorm.outputs[0]
    assert value is not None
    assert batchnorm.graph is not None
    result.replace_all_uses_with(value, replace_graph_outputs=True)
    batchnorm.graph.remove(batchnorm, safe=True)
    # A name keeps its meaning: the numbers of `z` are still called z, as the outputs must be.
    value.name = result.name
    value.type, value.shape = result.type or value.type, result.shape or value.shape


def _report(site: _Site) -> FoldedSite:
    return FoldedSite(
        site=node_name(site.batchnorm),
        producer=node_name(site.layer.node),
        op=site.layer.node.op_type,
        max_ulp=site.max_ulp,
        num_flushed=site.num_flushed,
    )


def _bias_name(weight: ir.Value) -> str:
    """Return `layer.bias` for `layer.weight`, else a name like it."""
    name = weight.name or "folded"
    stem = name.removesuffix("weight")
    return f"{stem}bias" if stem != name and stem.endswith((".", "_", "/")) else f"{name}_bias"


def _quoted(value: ir.Value | None) -> str:
    return "one of them" if value is None else f"`{value.name}`"
