"""Fold BatchNormalization in an ONNX graph: find the layers each can go into, let the algebra fold.

Before:  y = Conv(x, W, b);  z = BatchNormalization(y, gamma, beta, mean, var)
After:   z = Conv(x, W', b')          with (W', b') of `resdeploy.fold.algebra`

At inference a BatchNormalization is an affine map per channel. `affine_flow` carries it up to the
layers that compute its input, or, where that fails, down to the layers that read its output;
`layers` defines a layer. A BatchNorm that was frozen, Mul and Add of constants, is such a map as
well. Several maps that reach one layer are composed, and its weights rounded once.

A BatchNorm of the model's own input, before a layer that pads with zeros, cannot take its shift
along: zeros would have to become the shift. With `split_input`, the scale alone is folded there,

After:   z = Conv(x + shift / scale, scale W, b)

with the sum written as an Add, as of a mean that is taken off the pixels.

With `layernorm`, the affine part of a LayerNormalization goes into the layers that read it. What
normalises stays, with scales of one and biases of zero.

Refuses, and reports why, when
1. it normalises by the statistics of the batch (training mode), or by more than the channel, as
   opset 7 allowed, or is older than that;
2. one of its parameters or statistics is computed at run time, or is an input of the model;
3. its map reaches no layer: `affine_flow` gives the obstacle;
4. a layer's weight or bias is computed at run time, or is an input of the model;
5. the folded weights would not be finite in their type, or lose their digits in its subnormal
   numbers, or do not fit.

Mul and Add that reach no layer are not reported: any scale and shift look like that.

A weight or bias that has other readers is cloned: each site gets its own. Branches, loop bodies and
local functions are folded like the graph around them; a BatchNormalization and its layer must lie
in the same one. Constants may come from anywhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from resdeploy.errors import UnsupportedModelError
from resdeploy.fold import algebra
from resdeploy.fold.affine_flow import Target, constant_operand, targets_above, targets_below
from resdeploy.fold.affine_map import (
    AffineMap,
    add_constant,
    along_axis,
    compose,
    multiply_by_constant,
)
from resdeploy.fold.layers import Layer, Layers
from resdeploy.graph.editor import (
    EPSILON_NOTE,
    GraphEditor,
    chosen_by_caller,
    constant_array,
    constant_tensor,
    float_attribute,
    graph_editors,
    int_attribute,
    is_op,
    is_present,
    module_name,
    optional_input,
    remove_if_unread,
    why_it_varies,
)
from resdeploy.schema.folds import FoldedSite, FoldReport, RefusedSite

__all__ = ["fold_batchnorm"]

# The operator specification's, for a node without the attribute.
_DEFAULT_EPSILON = 1e-5
_OLDEST_OPSET = 7
# Of a constant: weights of networks are smaller.
_LARGE = 2.0**20


def fold_batchnorm(
    model: ir.Model,
    *,
    batchnorm: bool = True,
    layernorm: bool = False,
    split_input: bool = False,
    input_scale: algebra.ExtendedArray | None = None,
) -> FoldReport:
    """Fold every BatchNormalization of `model` that may be folded, in place.

    Refused sites, and all that has nothing to do with a fold, keep every bit.

    Args:
        model: the one to fold.
        batchnorm: whether to fold them at all.
        layernorm: whether to fold the affine part of every LayerNormalization as well.
        split_input: whether to fold the scale alone of a BatchNorm of the model's input whose shift
            meets zero padding; an Add of a constant then stands in its place.
        input_scale: (C,); the folded model takes inputs that are still to be multiplied by it,
            channel by channel. A product takes zero padding along, so that no border differs.

    Raises:
        UnsupportedModelError: the input's scale reaches no layer.
    """
    folded: list[FoldedSite] = []
    refused: list[RefusedSite] = []
    is_calm = _is_calm(model)
    for editor in graph_editors(model):
        folder = _Folder(editor, is_calm=is_calm, split_input=split_input)
        waiting: list[_Norm] = []
        tried: set[ir.Node] = set()
        # Again after each success: a BatchNorm that another one reads can go where that one went,
        # and a Mul before it and an Add behind it are then a frozen one.
        while batchnorm or layernorm:
            norms = _norms(editor, layernorm=layernorm)
            waiting += [norm for norm in norms if norm.node not in tried]
            tried.update(norm.node for norm in waiting)
            left = [norm for norm in waiting if not folder.fold(norm)]
            if len(left) == len(waiting):
                break
            waiting = left
        if input_scale is not None and editor.graph is model.graph:
            # Last: a BatchNorm between the input and the first layer is then gone, if it can be.
            folder.fold_input_scale(input_scale)
        folder.finish()
        folded += folder.folded_sites()
        refused += folder.refused_sites(waiting)
    return FoldReport(folded=tuple(folded), refused=tuple(refused))


def _is_calm(model: ir.Model) -> bool:
    """True if no constant of a model makes anything much larger than it is."""
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    values = [
        value
        for root in roots
        for graph in (root, *root.subgraphs())
        for value in (*graph.initializers.values(), *(v for node in graph for v in node.outputs))
    ]
    for value in values:
        if why_it_varies(value) is None and constant_tensor(value).dtype.is_floating_point():
            array = constant_array(value)
            if max(-float(array.min(initial=0)), float(array.max(initial=0))) > _LARGE:
                return False
    return True


# --- BatchNorms in the graph ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Norm:
    """A node whose result is an affine map of one of its inputs, or of its Mul's.

    Attributes:
        node: the BatchNormalization, the LayerNormalization, or the Add of a frozen BatchNorm.
        product: the Mul of a frozen one.
        place: its place in the graph.
        name: its name in the model.
        num_consumers: the number of readers of its input.
    """

    node: ir.Node
    product: ir.Node | None = None
    place: int
    name: str
    num_consumers: int

    @property
    def input(self) -> ir.Value:
        """The value that the map is of, in the graph as it is now."""
        value = self.node.inputs[0]
        if self.product is not None:
            value = self.product.inputs[1 - (constant_operand(self.product) or 0)]
        assert value is not None
        return value

    @property
    def constants(self) -> list[ir.Value | None]:
        """Its parameters and statistics."""
        if self.product is None:
            return [value for value in self.node.inputs[1:] if value is None or value.name != ""]
        return [node.inputs[constant_operand(node) or 0] for node in (self.product, self.node)]


def _norms(editor: GraphEditor, *, layernorm: bool) -> Iterator[_Norm]:
    """Yield the BatchNorms in graph order, and the LayerNorms that have an affine part."""
    for place, node in enumerate(editor.graph.all_nodes()):
        product = None
        if is_op(node, "LayerNormalization"):
            if not layernorm or _has_no_affine_part(node):
                continue
        elif not is_op(node, "BatchNormalization"):
            product = _frozen_product(node)
            if product is None:
                continue
        statistics = node.inputs[3] if is_op(node, "BatchNormalization") else None
        name = module_name(node, statistics)
        norm = _Norm(node=node, product=product, place=place, name=name, num_consumers=1)
        yield replace(norm, num_consumers=len(norm.input.uses()))


def _frozen_product(node: ir.Node) -> ir.Node | None:
    """Return the Mul by a constant that alone feeds an Add of a constant, if `node` is such."""
    at = constant_operand(node) if is_op(node, "Add") else None
    value = None if at is None else node.inputs[1 - at]
    product = None if value is None else value.producer()
    if value is None or product is None or not is_op(product, "Mul"):
        return None
    alone = len(value.uses()) == 1 and not value.is_graph_output() and product.graph is node.graph
    return product if alone and constant_operand(product) is not None else None


def _has_no_affine_part(layernorm: ir.Node) -> bool:
    scale, bias = layernorm.inputs[1], optional_input(layernorm, 2)
    if why_it_varies(scale) is not None or scale is None or not (constant_array(scale) == 1).all():
        return False
    return bias is None or (why_it_varies(bias) is None and not constant_array(bias).any())


def _not_one_map(norm: _Norm, opset: int) -> str | None:
    """Return the reason why a norm is not one affine map, or None."""
    if opset < _OLDEST_OPSET:  # Mul and Add too: `axis` says where their constants stand
        return f"it is of opset {opset}; before opset {_OLDEST_OPSET} it has another meaning"
    reason = chosen_by_caller(norm.node)
    if reason is not None or not is_op(norm.node, "BatchNormalization"):
        return reason
    # Before opset 14, further outputs mean training.
    in_training = int_attribute(norm.node, "training_mode", 0) or any(
        value.name for value in norm.node.outputs[1:]
    )
    if in_training:
        return "it normalises by the statistics of the batch (it is in training mode)"
    if int_attribute(norm.node, "spatial", 1) == 0:
        return "it normalises each pixel by itself (spatial = 0), not each channel"
    return None


# --- folding -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Edited:
    """A layer, the maps folded into it so far, and its new numbers."""

    layer: Layer
    edit: algebra.AffineEdit
    result: algebra.FoldedAffine


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Way:
    """The fold of a norm that was found.

    Attributes:
        targets: the places of its map.
        layers: the layers there, with it folded in.
        centre: what stays, to be added to its input; None where everything is folded.
    """

    targets: list[Target]
    layers: list[_Edited]
    centre: algebra.ExtendedArray | None = None


class _Folder:
    """Folds one norm after the other, and writes the new weights at the end, rounded once."""

    def __init__(self, editor: GraphEditor, *, is_calm: bool, split_input: bool) -> None:
        self.editor = editor
        self._is_calm = is_calm
        self._split_input = split_input
        self._graph_layers = Layers.of(editor)
        self._layers: dict[ir.Node, _Edited] = {}
        self._folded: list[tuple[_Norm, _Way]] = []
        self._reasons: dict[ir.Node, str] = {}

    def fold(self, norm: _Norm) -> bool:
        """Fold a norm, or note the reason against it; False in that case."""
        if norm.node.graph is None:  # a frozen one that another norm's map has taken in
            return True
        try:
            outcome = self._find(norm)
        except ValueError as error:  # 5; a NonFiniteFoldError, or shapes that do not fit
            outcome = str(error)
        if isinstance(outcome, str):
            self._reasons[norm.node] = outcome
            return False
        self._layers.update({folded.layer.node: folded for folded in outcome.layers})
        self._folded.append((norm, outcome))
        if is_op(norm.node, "LayerNormalization"):
            self._take_affine_part(norm.node)
            return True
        # At once: with a dead reader, a following norm would have an input that is read twice.
        goes_up = outcome.targets[0].side == "after"
        source, constants = norm.input, norm.constants
        if outcome.centre is not None:
            source = self._add_centre(norm, outcome.centre)
        _bypass(norm.node, source, keep_name=goes_up)
        if norm.product is not None:
            _remove(norm.product)
        # Each once: a node before a part in two is on the way to both.
        absorbed = {node.node: node for target in outcome.targets for node in target.absorbed}
        for passed in absorbed.values():
            constants += [value for value in passed.node.inputs if value is not passed.source]
            _bypass(passed.node, passed.source, keep_name=True)
        for value in constants:
            if value is not None:
                remove_if_unread(value)
        return True

    def fold_input_scale(self, scale_C: algebra.ExtendedArray) -> None:
        """Fold a scale of the model's input into the layers that read it."""
        value = self.editor.graph.inputs[0]
        shape = value.shape
        assert shape is not None
        scale = along_axis(scale_C, 1, len(shape))
        targets = targets_below(value, AffineMap(scale, np.zeros_like(scale)), self._graph_layers)
        reason = targets if isinstance(targets, str) else None
        try:
            layers = [] if isinstance(targets, str) else [self._fold_into(t) for t in targets]
        except algebra.NonFiniteFoldError as error:  # 5
            reason = str(error)
        if reason is not None:
            raise UnsupportedModelError(
                f"The scale of the preprocessing cannot be folded: {reason}.",
                where=value.name,
                fix="export without --preprocess embed",
            )
        self._layers.update({folded.layer.node: folded for folded in layers})

    def finish(self) -> None:
        """Write the new weights."""
        for folded in self._layers.values():
            folded.layer.rewrite(folded.result, self.editor)

    def folded_sites(self) -> list[FoldedSite]:
        """Return the folded sites; values set to zero count for a layer's first one."""
        counted: set[ir.Node] = set()
        sites = []
        for norm, way in sorted(self._folded, key=lambda site: site[0].place):
            layers = [self._layers[folded.layer.node] for folded in way.layers]
            fresh = [folded for folded in layers if folded.layer.node not in counted]
            counted.update(folded.layer.node for folded in layers)
            sites.append(
                FoldedSite(
                    site=norm.name,
                    producer=", ".join(folded.layer.name for folded in layers),
                    op=", ".join(sorted({folded.layer.node.op_type for folded in layers})),
                    max_ulp=max(folded.result.max_ulp for folded in layers),
                    num_flushed=sum(folded.result.num_flushed for folded in fresh),
                    num_consumers=norm.num_consumers,
                    norm="layer" if is_op(norm.node, "LayerNormalization") else "batch",
                    keeps_shift=way.centre is not None,
                )
            )
        return sites

    def refused_sites(self, norms: Sequence[_Norm]) -> list[RefusedSite]:
        """Return the refused sites, without the arithmetic that looked like a norm."""
        return [
            RefusedSite(
                site=norm.name,
                reason=self._reasons[norm.node],
                num_consumers=norm.num_consumers,
            )
            for norm in norms
            if norm.product is None
        ]

    def _find(self, norm: _Norm) -> _Way | str:
        """Return the way in which a norm folds, or the reason against it."""
        reason = _not_one_map(norm, self.editor.opset)  # 1
        if reason is not None:
            return reason
        for value in norm.constants:
            reason = why_it_varies(value)
            if reason is not None:  # 2
                name = "one of them" if value is None else f"`{value.name}`"
                return f"its parameters are not constant: {name} {reason}"
        affine = self._affine_map(norm)
        if isinstance(affine, str):
            return affine
        above: list[Target] | str = "its statistics are those of each sample"
        if not is_op(norm.node, "LayerNormalization"):
            reader = norm.product or norm.node
            above = targets_above(norm.input, affine, reader, self._graph_layers)
        targets = above
        if isinstance(targets, str):
            targets = targets_below(norm.node.outputs[0], affine, self._graph_layers)
            if isinstance(targets, str):  # 3, 4
                return self._scale_alone(norm, affine) or f"{above}; {targets}"
        return self._way(targets)

    def _way(self, targets: list[Target], centre: algebra.ExtendedArray | None = None) -> _Way:
        layers = [self._fold_into(target) for target in targets]
        return _Way(targets=targets, layers=layers, centre=centre)

    def _scale_alone(self, norm: _Norm, affine: AffineMap) -> _Way | None:
        """Return the fold of the scale of a BatchNorm of the model's input, None where none is."""
        is_first = is_op(norm.node, "BatchNormalization") and norm.input.is_graph_input()
        if not self._split_input or not is_first or not affine.scale.all():
            return None
        result = norm.node.outputs[0]
        targets = targets_below(result, affine.without_shift(), self._graph_layers)
        return None if isinstance(targets, str) else self._way(targets, affine.shift / affine.scale)

    def _add_centre(self, norm: _Norm, centre: algebra.ExtendedArray) -> ir.Value:
        """Return the input of a norm with `centre` added to it."""
        node, source = norm.node, norm.input
        (gamma, *_) = norm.constants
        assert gamma is not None
        dtype = constant_tensor(gamma).dtype
        numbers = ir.tensor(centre.astype(dtype.numpy()), dtype=dtype)
        constant = self.editor.add(f"{norm.name}.centre", numbers, reader=node)
        added = ir.node("Add", [source, constant], name=node.name)
        assert node.graph is not None
        node.graph.insert_before(node, added)
        value = added.outputs[0]
        value.name = self.editor.new_name(f"{source.name}_centred")
        value.type, value.shape = source.type, source.shape
        return value

    def _affine_map(self, norm: _Norm) -> AffineMap | str:
        shape = self.editor.shape(norm.input)
        if shape is None:
            return "the number of axes of its input is not known"
        rank = len(shape)
        if is_op(norm.node, "BatchNormalization"):
            scale_C, shift_C = algebra.scale_and_shift(_params(norm.node))
            if rank < 2:
                return "its input has no axis of channels"
            return AffineMap(along_axis(scale_C, 1, rank), along_axis(shift_C, 1, rank))
        scale, *shifts = (constant_array(value) for value in norm.constants if value is not None)
        nothing = np.zeros((1,) * rank, np.longdouble)
        identity = AffineMap(nothing + 1, nothing)
        product = multiply_by_constant(identity, scale, shape)
        total = add_constant(identity, shifts[0], shape) if shifts else identity
        if total is None:
            return "its shift is not the same for each sample"
        if product is None:
            return "its scale is not the same for each sample"
        return compose(product, total)

    def _fold_into(self, target: Target) -> _Edited:
        layer = target.layer
        edit = algebra.no_edit(layer.affine.num_outputs, None)
        if layer.node in self._layers:
            edit = self._layers[layer.node].edit
        if target.side == "after":
            edit = algebra.map_after(edit, target.scale, target.shift)
        else:
            weight = constant_array(layer.weight)
            shift = np.longdouble(layer.affine.alpha) * target.shift
            edit = algebra.map_before(edit, weight, layer.affine.shape, target.scale, shift)
        return _Edited(layer, edit, layer.apply(edit, is_calm=self._is_calm))

    def _take_affine_part(self, layernorm: ir.Node) -> None:
        """Leave a LayerNormalization its statistics: scales of one, biases of zero."""
        for at, number in ((1, 1), (2, 0)):
            value = optional_input(layernorm, at)
            if value is not None:
                tensor = constant_tensor(value)
                plain = np.full(tensor.shape.numpy(), number, tensor.dtype.numpy())
                new = self.editor.replace(
                    value, ir.tensor(plain, dtype=tensor.dtype), reader=layernorm
                )
                layernorm.replace_input_with(at, new)
                remove_if_unread(value)


def _params(batchnorm: ir.Node) -> algebra.BatchNormParams:
    gamma, beta, mean, var = (
        constant_array(value) for value in batchnorm.inputs[1:5] if value is not None
    )
    if mean.ndim != 1 or not gamma.shape == beta.shape == mean.shape == var.shape:
        raise ValueError("its parameters are not of one shape (C,)")
    eps = float_attribute(batchnorm, "epsilon", _DEFAULT_EPSILON)
    note = batchnorm.metadata_props.get(EPSILON_NOTE)
    if note is not None and np.float32(exact := float(note)) == eps:
        eps = exact
    return algebra.BatchNormParams(gamma=gamma, beta=beta, mean=mean, var=var, eps=eps)


def _bypass(node: ir.Node, source: ir.Value, *, keep_name: bool) -> None:
    """Remove a node; its input takes the place of its output.

    A name keeps its meaning where `keep_name`: the numbers of `z` are still called z, as the
    outputs of a model must be. Where its readers have changed instead, no value has those numbers.
    """
    result = node.outputs[0]
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    _remove(node)
    if keep_name:
        source.name = result.name
        source.type, source.shape = result.type or source.type, result.shape or source.shape


def _remove(node: ir.Node) -> None:
    assert node.graph is not None
    assert not any(is_present(value) for value in node.outputs)
    node.graph.remove(node, safe=True)
