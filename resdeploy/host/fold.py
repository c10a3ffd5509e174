"""Fold BatchNorm in a torch module: find the layers each can go into, let the algebra fold.

Before:  y = conv(x, W, b);  z = batch_norm(y, gamma, beta, mean, var)
After:   z = conv(x, W', b')          with (W', b') of `resdeploy.algebra`

A BatchNorm in evaluation mode is an affine map per channel. `affine_flow` carries it up to the
layers that compute what it reads, or, where that fails, down to the layers that read what it
computes. InstanceNorm with running statistics and a frozen BatchNorm written as x * scale + shift
are the same map. Weights made from constants (weight_norm, spectral_norm, pruning) are computed
first.

On request, the affine part of a LayerNorm is carried down in the same way; the LayerNorm stays, as
its statistics are those of each sample, with a scale of one and a shift of zero.

Refuses, and reports why, when
1. it normalises by the statistics of the batch (training mode, or none are tracked);
2. one of its parameters or statistics is computed at run time;
3. its map reaches no layer: `affine_flow` says what stands in the way;
4. a layer's weight or bias is computed at run time;
5. the folded weights would not be finite in their type, or a channel would vanish.

A weight or bias that several call sites read is cloned: each site gets its own.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from resdeploy import algebra
from resdeploy.affine_map import AffineMap, along_axis
from resdeploy.errors import UnsupportedModelError
from resdeploy.host.affine_flow import Target, targets_above, targets_below
from resdeploy.host.layers import Layer, describe, node_shape
from resdeploy.host.program import CLONE_MARK, ProgramEditor
from resdeploy.host.trace import module_class, trace
from resdeploy.host.trace_refusals import module_path
from resdeploy.schema.folds import FoldedSite, FoldReport, RefusedSite

__all__ = ["FoldedModel", "fold_batchnorm", "fold_program"]

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldedModel:
    """A module with its BatchNorms folded where that is legal.

    Attributes:
        program: the folded graph with its weights, as `torch.export` holds it.
        report: what was folded, what was refused and why.
    """

    program: torch.export.ExportedProgram
    report: FoldReport

    @property
    def module(self) -> nn.Module:
        """The folded model as a callable module with the same positional inputs."""
        return self.program.module()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the weights by the names of the original module.

        A folded layer has gained a `bias`, a folded BatchNorm has lost its entries; a network of
        resdeploy built with `norm="none"` loads this when the fold is complete.

        Raises:
            UnsupportedModelError: a layer is called more than once, so that its call sites now
                need different weights; only `module` and an exported graph can hold them.
        """
        clones = sorted(name for name in self.program.state_dict if CLONE_MARK in name)
        if clones:
            raise UnsupportedModelError(
                "A layer is called more than once, and each call now has weights of its own.",
                where=clones[0].partition(CLONE_MARK)[0],
                fix="export the folded graph to ONNX, which can hold them",
            )
        return dict(self.program.state_dict)


def fold_batchnorm(
    module: nn.Module,
    example_inputs: Sequence[torch.Tensor],
    *,
    dynamic_batch: bool = True,
    layernorm: bool = False,
) -> FoldedModel:
    """Fold every BatchNorm of `module` that may be folded; `module` is not changed.

    Args:
        module: in eval mode; a BatchNorm left in training mode is refused.
        example_inputs: positional inputs to trace with, axis 0 the batch (see `trace`).
        dynamic_batch: whether the folded graph takes any batch size.
        layernorm: fold the affine parts of LayerNorms too, into the layers after them.

    Raises:
        UnsupportedModelError: the module cannot be traced.
    """
    program = trace(module, example_inputs, dynamic_batch=dynamic_batch)
    return fold_program(program, layernorm=layernorm)


def fold_program(
    program: torch.export.ExportedProgram,
    *,
    batchnorm: bool = True,
    layernorm: bool = False,
    input_scale: algebra.ExtendedArray | None = None,
) -> FoldedModel:
    """Fold a functional exported program, which is used up: go on with the result.

    Args:
        program: of one input.
        batchnorm: fold the BatchNorms.
        layernorm: fold the affine parts of LayerNorms too.
        input_scale: (C,); the folded program takes inputs that are still to be multiplied by it,
            channel by channel. A product takes zero padding along, so that no border differs.

    Raises:
        UnsupportedModelError: the input's scale reaches no layer.
    """
    folder = _Folder(ProgramEditor(program))
    waiting = _norms(folder.editor, layernorm=layernorm) if batchnorm or layernorm else []
    # Again after each success: a BatchNorm that another one reads can go where that one went.
    while waiting:
        refused = [norm for norm in waiting if not folder.fold(norm)]
        if len(refused) == len(waiting):
            break
        waiting = refused
    if input_scale is not None:
        # Last: a BatchNorm between the input and the first layer is then gone, if it can be.
        folder.fold_input_scale(input_scale)
    return FoldedModel(folder.finish(), folder.report(refused=waiting))


# --- what is a BatchNorm -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Norm:
    """One call of something that is a BatchNorm, or a refusal to call it one.

    Attributes:
        result: the node whose value is the normalised one.
        input: the value it normalises.
        name: its name in the model.
        constants: the nodes it takes parameters and statistics from.
        statistics: gamma, beta, mean and var among them, or None for an arithmetic form.
        arithmetic: for x * scale + shift: the nodes of scale and shift.
        eps: what is added to the variance.
        refusal: why it is none that could be folded.
        num_consumers: how many nodes read its input.
        is_layer_norm: whether only its affine part, gamma and beta, is to be folded.
    """

    result: fx.Node
    input: fx.Node
    name: str
    constants: tuple[fx.Node, ...] = ()
    statistics: tuple[fx.Node | None, ...] = ()
    arithmetic: tuple[fx.Node, fx.Node] | None = None
    eps: float = 0.0
    refusal: str | None = None
    num_consumers: int = 1
    is_layer_norm: bool = False


_NO_STATISTICS = "it tracks no running statistics, so it normalises by those of the batch"
_TRAINING = "it normalises by the statistics of the batch (it is in training mode)"


def _norms(editor: ProgramEditor, *, layernorm: bool) -> list[_Norm]:
    """Return the BatchNorms in graph order, and the LayerNorms among them if `layernorm`."""
    found = [_as_norm(node, editor) for node in editor.graph.nodes]
    if layernorm:
        found += [_as_layer_norm(node, editor) for node in editor.graph.nodes]
    return [replace(n, num_consumers=len(n.input.users)) for n in found if n is not None]


def _as_norm(node: fx.Node, editor: ProgramEditor) -> _Norm | None:
    arguments: Sequence[Any] = node.args
    if node.target is aten.batch_norm.default:
        x, gamma, beta, mean, var, training, _, eps, *_ = arguments
        return _plain_norm(node, x, (gamma, beta, mean, var), eps, editor, training=bool(training))
    if node.target is aten._native_batch_norm_legit_no_training.default:
        x, gamma, beta, mean, var, _, eps = arguments
        result = next(user for user in node.users if user.args[1] == 0)
        return _plain_norm(result, x, (gamma, beta, mean, var), eps, editor, training=False)
    if node.target is aten.instance_norm.default:
        x, gamma, beta, mean, var, uses_input, _, eps, *_ = arguments
        if uses_input or mean is None:
            return None  # each sample has statistics of its own: not an affine map at all
        return _plain_norm(node, x, (gamma, beta, mean, var), eps, editor, training=False)
    if node.target is aten._native_batch_norm_legit.no_stats:
        return _Norm(node, arguments[0], _name(node, editor), refusal=_NO_STATISTICS)
    if node.target in (
        aten._native_batch_norm_legit_functional.default,
        aten._native_batch_norm_legit.default,
    ):
        return _Norm(node, arguments[0], _name(node, editor, arguments[3]), refusal=_TRAINING)
    return _arithmetic_norm(node, editor)


def _current_input(norm: _Norm) -> fx.Node:
    """Return the value that a norm reads in the graph as it is now."""
    call = norm.result
    if norm.arithmetic is not None or call.target is operator.getitem:
        call = call.args[0]  # type: ignore[assignment]
    return call.args[0]  # type: ignore[return-value]


def _plain_norm(
    result: fx.Node,
    x: fx.Node,
    statistics: tuple[fx.Node | None, ...],
    eps: float,
    editor: ProgramEditor,
    *,
    training: bool,
) -> _Norm:
    mean, var = statistics[2:]
    refusal = None
    if mean is None or var is None:  # 1
        refusal = _NO_STATISTICS
    elif training:  # 1
        refusal = _TRAINING
    constants = tuple(node for node in statistics if node is not None)
    name = _name(result, editor, mean)
    return _Norm(result, x, name, constants, statistics, eps=eps, refusal=refusal)


def _as_layer_norm(node: fx.Node, editor: ProgramEditor) -> _Norm | None:
    """Return a LayerNorm whose affine part does something."""
    if node.target is not aten.layer_norm.default:
        return None
    arguments: Sequence[Any] = node.args
    x, _, gamma, beta, *_ = (*arguments, None, None)
    does_nothing = all(
        c is None or ((value := editor.constant(c)) is not None and bool((value == neutral).all()))
        for c, neutral in ((gamma, 1), (beta, 0))
    )
    if does_nothing:
        return None
    constants = tuple(c for c in (gamma, beta) if c is not None)
    return _Norm(node, x, _name(node, editor, gamma), constants, (gamma, beta), is_layer_norm=True)


def _arithmetic_norm(node: fx.Node, editor: ProgramEditor) -> _Norm | None:
    """Return x * scale + shift with constant tensors as a norm: a BatchNorm that was frozen."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    product, shift = node.args
    is_product = isinstance(product, fx.Node) and product.target is aten.mul.Tensor
    if not is_product or not isinstance(shift, fx.Node):
        return None
    assert isinstance(product, fx.Node)
    x, scale = product.args
    if not isinstance(x, fx.Node) or not isinstance(scale, fx.Node) or len(product.users) != 1:
        return None
    if editor.constant(scale) is None or editor.constant(shift) is None:
        return None
    rank = len(node_shape(x))
    if rank < 2 or any(_spans_batch(editor.constant(c), rank) for c in (scale, shift)):
        return None
    return _Norm(node, x, _name(node, editor), (scale, shift), arithmetic=(scale, shift))


def _of_rank(array: np.ndarray[Any, Any], rank: int) -> algebra.ExtendedArray:
    """Return an array that is broadcast to a value of `rank` as one of that rank."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape).astype(np.longdouble)


def _spans_batch(constant: torch.Tensor | None, rank: int) -> bool:
    """Whether a constant has a value of its own for each sample."""
    return (
        constant is None
        or constant.ndim > rank
        or (constant.ndim == rank and constant.shape[0] != 1)
    )


def _name(result: fx.Node, editor: ProgramEditor, mean: fx.Node | None = None) -> str:
    """Return a BatchNorm's name: of its module, else of its statistics, else of its node."""
    path = module_path(result)
    if path:
        return path
    if mean is not None and editor.is_constant(mean):
        return editor.owner(mean) or result.name
    return result.name


# --- folding -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _FoldedLayer:
    """A layer with everything that was folded into it so far."""

    layer: Layer
    edit: algebra.AffineEdit
    result: algebra.FoldedAffine


class _Folder:
    """Folds one norm after the other, and writes the new weights at the end, rounded once."""

    def __init__(self, editor: ProgramEditor) -> None:
        self.editor = editor
        self._layers: dict[fx.Node, _FoldedLayer] = {}
        self._folded: list[tuple[_Norm, list[fx.Node]]] = []
        self._reasons: dict[fx.Node, str] = {}

    def fold(self, norm: _Norm) -> bool:
        """Fold a norm, or note why not; return whether it was folded."""
        # The value it read may have been another norm's, which is gone.
        norm = replace(norm, input=_current_input(norm))
        outcome = self._find(norm)
        if isinstance(outcome, str):
            self._reasons[norm.result] = outcome
            return False
        layers, absorbed = outcome
        self._layers.update({folded.layer.node: folded for folded in layers})
        self._folded.append((norm, [folded.layer.node for folded in layers]))
        if norm.is_layer_norm:
            return True
        # At once: a dead reader would make a following BatchNorm believe its input is read twice.
        norm.result.replace_all_uses_with(norm.input)
        self.editor.erase_unused(norm.result)
        for node in absorbed:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            self.editor.erase_unused(node)
        return True

    def fold_input_scale(self, scale_C: algebra.ExtendedArray) -> None:
        """Fold a scale of the model's input into the layers that read it."""
        value = next(node for node in self.editor.graph.nodes if self.editor.is_input(node))
        rank = len(node_shape(value))
        scale = along_axis(scale_C, 1, rank)
        targets = targets_below(value, AffineMap(scale, np.zeros_like(scale)))
        reason = targets if isinstance(targets, str) else None
        try:
            layers = [] if isinstance(targets, str) else [self._fold_into(t) for t in targets]
        except (algebra.NonFiniteFoldError, _RunTimeWeightError) as error:  # 4, 5
            reason = str(error)
        if reason is not None:
            raise UnsupportedModelError(
                f"The scale of the preprocessing cannot be folded: {reason}.",
                where=value.name,
                fix="export without --preprocess embed",
            )
        self._layers.update({folded.layer.node: folded for folded in layers})

    def finish(self) -> torch.export.ExportedProgram:
        """Write the new weights and return the program."""
        for folded in self._layers.values():
            self._write(folded)
        for norm, _ in self._folded:
            if norm.is_layer_norm:
                self._make_plain(norm)
        return self.editor.finish()

    def report(self, *, refused: Sequence[_Norm]) -> FoldReport:
        """Return what was folded and refused; values set to zero count for a layer's first site."""
        reasons = [
            RefusedSite(
                site=norm.name,
                reason=self._reasons[norm.result],
                num_consumers=norm.num_consumers,
            )
            for norm in refused
            # Arithmetic that goes nowhere is a scale like any other, unless it says what it is.
            if norm.arithmetic is None or "BatchNorm" in module_class(norm.result)
        ]
        counted: set[fx.Node] = set()
        sites = []
        for norm, nodes in self._folded:
            layers = [self._layers[node] for node in nodes]
            fresh = [f for f in layers if f.layer.node not in counted]
            counted.update(nodes)
            sites.append(
                FoldedSite(
                    site=norm.name,
                    producer=", ".join(_layer_name(f.layer, self.editor) for f in layers),
                    op=", ".join(sorted({f.layer.op for f in layers})),
                    max_ulp=max(f.result.max_ulp for f in layers),
                    num_flushed=sum(f.result.num_flushed for f in fresh),
                    num_consumers=norm.num_consumers,
                    norm="layer" if norm.is_layer_norm else "batch",
                )
            )
        return FoldReport(folded=tuple(sites), refused=tuple(reasons))

    def _find(self, norm: _Norm) -> tuple[list[_FoldedLayer], list[fx.Node]] | str:
        """Return the layers with the norm folded in, and what it absorbs; or why there are none."""
        if norm.refusal is not None:  # 1
            return norm.refusal
        if any(self.editor.constant(node) is None for node in norm.constants):  # 2
            return "its parameters are computed at run time"
        try:
            affine = self._affine_map(norm)
            targets = (
                "its statistics are those of each sample"
                if norm.is_layer_norm
                else targets_above(norm.input, affine, self.editor.constant)
            )
            if isinstance(targets, str):
                below = targets_below(norm.result, affine)
                if isinstance(below, str):  # 3
                    return f"{targets}; {below}"
                targets = below
            layers = [self._fold_into(target) for target in targets]
            # Each once: what lies before a part in two is on the way to both.
            absorbed = dict.fromkeys(node for target in targets for node in target.absorbed)
            return layers, list(absorbed)
        except algebra.NonFiniteFoldError as error:  # 5
            return str(error)
        except _RunTimeWeightError as error:  # 4
            return str(error)

    def _affine_map(self, norm: _Norm) -> AffineMap:
        rank = len(node_shape(norm.input))
        if norm.arithmetic is not None:
            scale, shift = (_as_array(self.editor.constant(c)) for c in norm.arithmetic)
            return AffineMap(*(_of_rank(array, rank) for array in (scale, shift)))
        if norm.is_layer_norm:
            weight, bias = norm.statistics
            scale = np.ones(1) if weight is None else _as_array(self.editor.constant(weight))
            shift = np.zeros(1) if bias is None else _as_array(self.editor.constant(bias))
            return AffineMap(*(_of_rank(array, rank) for array in (scale, shift)))
        gamma, beta, mean, var = (
            None if node is None else _as_array(self.editor.constant(node))
            for node in norm.statistics
        )
        assert mean is not None
        assert var is not None
        scale_C, shift_C = algebra.scale_and_shift(
            algebra.BatchNormParams(gamma=gamma, beta=beta, mean=mean, var=var, eps=norm.eps)
        )
        return AffineMap(along_axis(scale_C, 1, rank), along_axis(shift_C, 1, rank))

    def _fold_into(self, target: Target) -> _FoldedLayer:
        layer = target.layer
        weight = self._constant(layer.weight, layer, "weight")
        bias = None if layer.bias is None else self._constant(layer.bias, layer, "bias")
        dtype = str(layer.weight.meta["val"].dtype).removeprefix("torch.")
        if layer.node in self._layers:
            edit = self._layers[layer.node].edit
        else:
            num_outputs = int(node_shape(layer.node)[-1 if layer.is_linear else 1])
            edit = algebra.no_edit(
                num_outputs, bias, factors=(layer.product_factor, layer.bias_factor)
            )
        if target.side == "after":
            edit = algebra.map_after(edit, target.scale, target.shift)
        else:
            edit = algebra.map_before(edit, weight, layer.shape, target.scale, target.shift)
        result = algebra.apply_edit(weight, edit, dtype=dtype, shape=layer.shape)
        return _FoldedLayer(layer, edit, result)

    def _constant(self, node: fx.Node, layer: Layer, role: str) -> np.ndarray[Any, Any]:
        tensor = self.editor.constant(node)
        if tensor is None:
            raise _RunTimeWeightError(
                f"the {role} of {describe(layer.node)} is computed at run time"
            )
        return _as_array(tensor)

    def _write(self, folded: _FoldedLayer) -> None:
        """Give a layer its new weight and bias."""
        layer = folded.layer
        dtype = layer.weight.meta["val"].dtype
        path = _layer_name(layer, self.editor)
        weight = self.editor.replace(
            layer.weight,
            layer.stored_weight(torch.from_numpy(folded.result.weight).to(dtype)),
            name=f"{path}.weight",
            reader=layer.node,
        )
        bias_tensor = torch.from_numpy(folded.result.bias).to(dtype)
        if layer.bias is None:
            bias = self.editor.add(f"{path}.bias", bias_tensor, beside=weight)
        else:
            bias = self.editor.replace(
                layer.bias, bias_tensor, name=f"{path}.bias", reader=layer.node
            )
        layer.rewrite(weight, bias)

    def _make_plain(self, norm: _Norm) -> None:
        """Let a LayerNorm scale by one and shift by zero: its affine part is in a layer."""
        for at, node, fill in zip((2, 3), norm.statistics, (1.0, 0.0), strict=True):
            if node is None:
                continue
            plain = torch.full(node_shape(node), fill, dtype=node.meta["val"].dtype)
            name = f"{norm.name}.{'weight' if at == 2 else 'bias'}"
            new = self.editor.replace(node, plain, name=name, reader=norm.result)
            norm.result.update_arg(at, new)


class _RunTimeWeightError(Exception):
    """A layer's weight is no constant."""


def _layer_name(layer: Layer, editor: ProgramEditor) -> str:
    """Return the name of the module a layer's weight belongs to, else of its call."""
    if editor.is_constant(layer.weight) and editor.owner(layer.weight):
        return editor.owner(layer.weight)
    return module_path(layer.node) or layer.node.name


def _as_array(tensor: torch.Tensor | None) -> np.ndarray[Any, np.dtype[Any]]:
    assert tensor is not None
    tensor = tensor.detach().cpu()
    # numpy has no bfloat16; float32 holds its every number.
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
