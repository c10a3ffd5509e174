"""Fold BatchNorm in a torch module: match call sites of its functional graph, let the algebra fold.

Before:  y = conv(x, W, b);  z = batch_norm(y, gamma, beta, mean, var)
After:   z = conv(x, W', b')          with (W', b') of `resdeploy.algebra.fold_batchnorm`

Between the two, operations that change nothing at inference (dropout, clone) are stepped over.

Refuses, and reports why, when
1. the BatchNorm normalises by the statistics of the batch (training mode, or none are tracked);
2. one of its parameters or statistics is computed at run time;
3. the value it reads, or one on the way, has another reader or is an output of the model;
4. that value does not come from a convolution or a linear layer;
5. the layer's weight or bias is computed at run time;
6. the layer's output channel is not the axis the BatchNorm normalises (axis 1);
7. the folded weights would not be finite in their type.

A weight or bias that several call sites read is cloned: each site gets its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from resdeploy import algebra
from resdeploy.errors import UnsupportedModelError
from resdeploy.host.program import CLONE_MARK, ProgramEditor
from resdeploy.host.trace import module_path, trace
from resdeploy.schema import FoldedSite, FoldReport, RefusedSite

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
    module: nn.Module, example_inputs: Sequence[torch.Tensor], *, dynamic_batch: bool = True
) -> FoldedModel:
    """Fold every BatchNorm of `module` that may be folded; `module` is not changed.

    Args:
        module: in eval mode; a BatchNorm left in training mode is refused.
        example_inputs: positional inputs to trace with, axis 0 the batch (see `trace`).
        dynamic_batch: whether the folded graph takes any batch size.

    Raises:
        UnsupportedModelError: the module cannot be traced.
    """
    return fold_program(trace(module, example_inputs, dynamic_batch=dynamic_batch))


def fold_program(program: torch.export.ExportedProgram) -> FoldedModel:
    """Fold a functional exported program, which is used up: go on with the result."""
    editor = ProgramEditor(program)
    folded: list[FoldedSite] = []
    refused: list[RefusedSite] = []
    # In graph order and at once, so that conv -> BN -> BN folds both.
    for node in list(editor.graph.nodes):
        batchnorm = _batchnorm_call(node)
        if batchnorm is None:
            continue
        name = _site_name(batchnorm, editor)
        match = _match(batchnorm, editor)
        if isinstance(match, str):
            refused.append(RefusedSite(site=name, reason=match))
            continue
        _rewrite(match, editor)
        folded.append(
            FoldedSite(
                site=name,
                producer=module_path(match.layer.node) or editor.owner(match.weight),
                op=match.layer.kind.name,
                max_ulp=match.affine.max_ulp,
                num_flushed=match.affine.num_flushed,
            )
        )
    return FoldedModel(editor.finish(), FoldReport(folded=tuple(folded), refused=tuple(refused)))


# --- what a BatchNorm and a layer look like in ATen ----------------------------------------------


@dataclass(frozen=True)
class _BatchNormCall:
    """One BatchNorm call: the node that computes, the node whose value is its result."""

    result: fx.Node
    input: fx.Node
    gamma: fx.Node | None
    beta: fx.Node | None
    mean: fx.Node | None
    var: fx.Node | None
    uses_batch_statistics: bool
    eps: float


def _batchnorm_call(node: fx.Node) -> _BatchNormCall | None:
    """Return `node` as a BatchNorm call, or None if it is something else."""
    if node.target is aten.batch_norm.default:
        x, gamma, beta, mean, var, training, _, eps, *_ = node.args
        return _BatchNormCall(node, x, gamma, beta, mean, var, bool(training), eps)  # type: ignore[arg-type]
    if node.target is aten._native_batch_norm_legit_no_training.default:
        x, gamma, beta, mean, var, _, eps = node.args
        return _BatchNormCall(_first_result(node), x, gamma, beta, mean, var, False, eps)  # type: ignore[arg-type]
    if node.target in (
        aten._native_batch_norm_legit_functional.default,
        aten._native_batch_norm_legit.default,
        aten._native_batch_norm_legit.no_stats,
    ):
        has_statistics = node.target is not aten._native_batch_norm_legit.no_stats
        x, gamma, beta, mean, var = (
            *node.args[:3],
            *(node.args[3:5] if has_statistics else (None, None)),
        )
        return _BatchNormCall(node, x, gamma, beta, mean, var, True, 0.0)  # type: ignore[arg-type]
    return None


def _first_result(node: fx.Node) -> fx.Node:
    """Return the getitem that takes the normalised value out of the three that the op returns."""
    return next(user for user in node.users if user.args[1] == 0)


@dataclass(frozen=True)
class _LayerKind:
    """A kind of affine layer: where its arguments stand and which axis is its output channel."""

    name: str
    is_linear: bool = False


_LAYERS: Mapping[Any, _LayerKind] = {
    aten.conv1d.default: _LayerKind("conv1d"),
    aten.conv2d.default: _LayerKind("conv2d"),
    aten.conv3d.default: _LayerKind("conv3d"),
    aten.conv1d.padding: _LayerKind("conv1d"),
    aten.conv2d.padding: _LayerKind("conv2d"),
    aten.conv3d.padding: _LayerKind("conv3d"),
    aten.linear.default: _LayerKind("linear", is_linear=True),
}

# Change nothing at inference; dropout only while it is not training.
_PASS_THROUGH = {aten.clone.default, aten.detach.default, aten.contiguous.default}
_DROPOUT = {aten.dropout.default, aten.feature_dropout.default}


def _passes_through(node: fx.Node) -> bool:
    return node.target in _PASS_THROUGH or (node.target in _DROPOUT and node.args[2] is False)


@dataclass(frozen=True)
class _Layer:
    node: fx.Node
    kind: _LayerKind


@dataclass(frozen=True)
class _Site:
    """A legal fold, with the new weights."""

    batchnorm: _BatchNormCall
    layer: _Layer
    weight: fx.Node
    bias: fx.Node | None
    affine: algebra.FoldedAffine


# --- match: the conditions of the module docstring, in order -------------------------------------


def _match(batchnorm: _BatchNormCall, editor: ProgramEditor) -> _Site | str:
    """Return the site, or the reason why it is refused."""
    if batchnorm.mean is None or batchnorm.var is None:  # 1
        return "it tracks no running statistics, so it normalises by those of the batch"
    if batchnorm.uses_batch_statistics:  # 1
        return "it normalises by the statistics of the batch (it is in training mode)"
    statistics = (batchnorm.gamma, batchnorm.beta, batchnorm.mean, batchnorm.var)
    if not all(editor.is_constant(node) for node in statistics if node is not None):  # 2
        return "its parameters are computed at run time"
    layer = _producer(batchnorm)
    if isinstance(layer, str):  # 3, 4
        return layer
    weight, bias = _weight_and_bias(layer)
    if not editor.is_constant(weight):  # 5
        return f"the weight of {_describe(layer.node)} is computed at run time"
    if bias is not None and not editor.is_constant(bias):  # 5
        return f"the bias of {_describe(layer.node)} is computed at run time"
    if layer.kind.is_linear and _rank(batchnorm.input) != 2:  # 6
        return (
            f"{_describe(layer.node)} has its features on the last axis of a rank-"
            f"{_rank(batchnorm.input)} value, but it normalises axis 1"
        )
    affine = _fold_affine(batchnorm, editor, weight, bias)
    if isinstance(affine, str):  # 7
        return affine
    return _Site(batchnorm, layer, weight, bias, affine)


def _producer(batchnorm: _BatchNormCall) -> _Layer | str:
    """Return the layer that computes what the BatchNorm reads, or why there is none."""
    value = batchnorm.input
    while True:
        reason = _read_elsewhere(value)
        if reason is not None:
            return reason
        if value.target in _LAYERS:
            return _Layer(value, _LAYERS[value.target])
        if not _passes_through(value):
            return (
                f"its input comes from {_describe(value)}, not from a convolution or linear layer"
            )
        value = value.args[0]  # type: ignore[assignment]


def _read_elsewhere(value: fx.Node) -> str | None:
    """Return why `value` cannot change its meaning, or None if the BatchNorm alone reads it."""
    if any(user.op == "output" for user in value.users):
        return f"its input, {_describe(value)}, is also an output of the model"
    if len(value.users) == 1 or value.op == "placeholder":
        return None
    others = f"its input, {_describe(value)}, is read {len(value.users)} times"
    if any(_is_addition(user) for user in value.users) or _is_addition(value):
        return f"{others}: it is the residual stream"
    return others


def _is_addition(node: fx.Node) -> bool:
    return node.target in (aten.add.Tensor, aten.add_.Tensor)


def _fold_affine(
    batchnorm: _BatchNormCall, editor: ProgramEditor, weight: fx.Node, bias: fx.Node | None
) -> algebra.FoldedAffine | str:
    assert batchnorm.mean is not None
    assert batchnorm.var is not None
    tensor = editor.tensor(weight)
    dtype = str(tensor.dtype).removeprefix("torch.")
    params = algebra.BatchNormParams(
        gamma=None if batchnorm.gamma is None else _as_array(editor.tensor(batchnorm.gamma)),
        beta=None if batchnorm.beta is None else _as_array(editor.tensor(batchnorm.beta)),
        mean=_as_array(editor.tensor(batchnorm.mean)),
        var=_as_array(editor.tensor(batchnorm.var)),
        eps=batchnorm.eps,
    )
    try:
        return algebra.fold_batchnorm(
            _as_array(tensor),
            None if bias is None else _as_array(editor.tensor(bias)),
            params,
            dtype=dtype,
        )
    except algebra.NonFiniteFoldError as error:
        return str(error)


def _weight_and_bias(layer: _Layer) -> tuple[fx.Node, fx.Node | None]:
    arguments = layer.node.args
    weight: Any = arguments[1]
    bias: Any = arguments[2] if len(arguments) > 2 else None
    return weight, bias


def _rank(node: fx.Node) -> int:
    return len(node.meta["val"].shape)


def _as_array(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    tensor = tensor.detach().cpu()
    # numpy has no bfloat16; float32 holds its every number.
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _describe(node: fx.Node) -> str:
    """Return a node by the name of its module and its operator, as a user would recognise it."""
    path = module_path(node)
    if node.op == "placeholder":
        return f"the model's input `{node.name}`"
    return f"`{path}` ({node.name})" if path else f"`{node.name}`"


def _site_name(batchnorm: _BatchNormCall, editor: ProgramEditor) -> str:
    """Return the BatchNorm's name: of its module, else of its statistics, else of its node."""
    path = module_path(batchnorm.result)
    if path:
        return path
    if batchnorm.mean is not None and editor.is_constant(batchnorm.mean):
        return editor.owner(batchnorm.mean) or batchnorm.result.name
    return batchnorm.result.name


# --- rewrite: no conditions here -----------------------------------------------------------------


def _rewrite(site: _Site, editor: ProgramEditor) -> None:
    """Give the layer its new weights and let it take the BatchNorm's place."""
    layer = site.layer.node
    dtype = editor.tensor(site.weight).dtype
    weight = torch.from_numpy(site.affine.weight).to(dtype)
    bias = torch.from_numpy(site.affine.bias).to(dtype)
    if site.bias is None:
        owner = editor.owner(site.weight)
        name = f"{owner}.bias" if owner else "bias"
        new_bias = editor.add(name, bias, beside=site.weight)
    else:
        new_bias = editor.replace(site.bias, bias, reader=layer)
    new_weight = editor.replace(site.weight, weight, reader=layer)
    layer.args = (layer.args[0], new_weight, new_bias, *layer.args[3:])
    site.batchnorm.result.replace_all_uses_with(site.batchnorm.input)
    # At once: a dead reader would make a following BatchNorm believe its input is read twice.
    editor.erase_unused(site.batchnorm.result)
