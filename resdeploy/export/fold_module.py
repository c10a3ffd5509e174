"""Fold the BatchNorms of a module: a copy of the same class, with identities in their places.

The fold itself is that of the ONNX graph (`fold.fold_batchnorm`). The path of its module, which
each node carries from the trace, says whose parameters a folded weight and bias are.

Refuses, beyond what the trace refuses, when the structure of the module cannot hold what the graph
can:

1. a norm or a layer is a function call, or a module of another kind than torch's own;
2. a layer is called more than once, or shares its weight with another part;
3. one call of a norm folds and another does not;
4. the weight of a layer is computed (weight_norm, pruning), so there is nothing to write it to;
5. the copy does not compute what the module does. Arithmetic in a forward pass that the fold has
   taken in is still there, and shows here.

`export` folds all of these completely: a file has no structure to keep.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.trace import BATCH_DIMENSION, trace
from resdeploy.export.translate import translate
from resdeploy.fold.fold_batchnorm import fold_batchnorm as fold_graph
from resdeploy.fold.layers import Layer, Layers
from resdeploy.fold.pipeline import simplified
from resdeploy.graph.editor import PATH_NOTE, constant_array, graph_editors
from resdeploy.graph.exact_constants import round_once
from resdeploy.schema.folds import FoldReport
from resdeploy.schema.verdicts import Comparison, GoldenInfo
from resdeploy.verify.end_to_end import judge_end_to_end
from resdeploy.verify.golden_file import Golden

__all__ = ["FoldedModule", "fold_batchnorm"]

_LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm)
# Sizes of images that networks are made for, of sequences, of volumes.
_GUESSED_SIZES = {1: (64, 1024), 2: (32, 224, 64, 28, 299), 3: (16, 32, 112)}
_NUM_SAMPLES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedModule:
    """A module with its BatchNorms folded where that is legal.

    Attributes:
        module: a copy of the original, of the same class.
        report: what was folded, what was refused and why, and the comparison with the original.
    """

    module: nn.Module
    report: FoldReport


def fold_batchnorm(
    module: nn.Module,
    example: Tensor | Sequence[Tensor] | None = None,
    *,
    layernorm: bool = False,
) -> FoldedModule:
    """Fold every BatchNorm of `module` that may be folded; `module` is not changed.

    Args:
        module: in eval mode.
        example: its inputs, axis 0 the batch; of one sample is enough. None to guess the input
            from the first layer, and the usual sizes of images.
        layernorm: fold the affine parts of LayerNorms too, into the layers after them.

    Raises:
        UnsupportedModelError: the module cannot be traced, or cannot hold its fold; or no guessed
            input fits.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example or _guess(module))
    inputs = tuple(torch.cat([x, x]) if len(x) == 1 else x for x in inputs)
    model, _ = simplified(
        translate(trace(module, inputs), opset=18), batch_dimension=BATCH_DIMENSION
    )
    report = fold_graph(model, layernorm=layernorm)
    round_once(model)
    folded = _with_folds(module, model, report)
    comparison = _compare(folded, module, inputs)
    if not comparison.passed:  # 5
        raise _cannot_hold(
            f"with the norms taken out, it computes something else ({comparison.reasons[0]})", ""
        )
    return FoldedModule(module=folded, report=replace(report, comparison=comparison))


def _guess(module: nn.Module) -> tuple[Tensor]:
    """Return an input that the module takes, by its first layer."""
    layer = next((part for part in module.modules() if isinstance(part, _LAYERS)), None)
    for shape in _shapes(layer):
        x = torch.zeros(2, *shape).to(next(module.parameters()))
        try:
            with torch.no_grad():
                copy.deepcopy(module)(x)
        except Exception:
            continue
        return (torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x),)
    raise UnsupportedModelError(
        "What the module takes as its input cannot be guessed.",
        where=type(module).__name__,
        fix="give an example: fold_batchnorm(module, torch.randn(1, 3, 224, 224))",
    )


def _shapes(layer: nn.Module | None) -> Iterator[tuple[int, ...]]:
    if isinstance(layer, nn.Linear):
        yield (layer.in_features,)
    elif isinstance(layer, nn.modules.conv._ConvNd):
        num_axes = len(layer.kernel_size)
        for size in _GUESSED_SIZES[num_axes]:
            yield (layer.in_channels, *[size] * num_axes)


# --- from the graph back into the module ---------------------------------------------------------


def _with_folds(module: nn.Module, model: ir.Model, report: FoldReport) -> nn.Module:
    """Return a copy of `module` with the weights of the folded graph, without the folded norms."""
    folded = copy.deepcopy(module)
    layers = list(Layers.of(next(iter(graph_editors(model)))).reading.values())
    calls = Counter(layer.node.metadata_props.get(PATH_NOTE) for layer in layers)
    by_path = {layer.node.metadata_props.get(PATH_NOTE): layer for layer in layers}
    sharing = Counter(id(p) for _, p in folded.named_parameters(remove_duplicate=False))
    refused = {site.site for site in report.refused}
    for site in report.folded:
        norm = _part(folded, site.site, _NORMS, "normalises")
        if site.site in refused:  # 3
            raise _cannot_hold("one call of it folds and another does not", site.site)
        if isinstance(norm, nn.LayerNorm):
            nn.init.ones_(norm.weight)
            if norm.bias is not None:
                nn.init.zeros_(norm.bias)
    for path in dict.fromkeys(p for site in report.folded for p in site.producer.split(", ")):
        part = _part(folded, path, _LAYERS, "computes a layer")
        weight = part._parameters.get("weight")
        if weight is None:  # 4
            raise _cannot_hold("its weight is computed from others", path)
        if calls[path] != 1:  # 2
            raise _cannot_hold(f"it is called {calls[path]} times", path)
        if sharing[id(weight)] != 1:  # 2
            raise _cannot_hold("it shares its weight with another part", path)
        _write(part, by_path[path], path)
    for site in report.folded:
        if site.norm == "batch":
            parent, _, name = site.site.rpartition(".")
            setattr(folded.get_submodule(parent), name, nn.Identity())
    return folded


def _part(module: nn.Module, path: str, kinds: tuple[type[nn.Module], ...], what: str) -> nn.Module:
    """Return the part of that name, if it is of one of these kinds."""
    try:
        part = module.get_submodule(path)
    except AttributeError:
        part = None
    if not isinstance(part, kinds):  # 1
        raise _cannot_hold(f"it {what} by itself, not by a module of torch's", path)
    return part


def _cannot_hold(reason: str, path: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The module cannot hold its fold: {reason}.",
        where=path or "the module itself",
        fix="export it to ONNX: the file is folded completely",
    )


def _write(part: nn.Module, layer: Layer, path: str) -> None:
    """Give a part the weight and bias of its layer in the graph."""
    weight, old = constant_array(layer.weight), part.weight
    assert isinstance(old, Tensor)
    if isinstance(part, nn.Linear) and layer.affine.shape.transposed:
        weight = weight.T
    bias = layer.own_bias()
    fits = weight.shape == tuple(old.shape) and layer.affine.alpha == 1
    if not fits or bias is None or bias.size != layer.affine.num_outputs:
        raise _cannot_hold("the graph has it in another form", path)
    with torch.no_grad():
        old.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        new = torch.from_numpy(bias.ravel().astype(np.float64)).to(old)
    part.bias = nn.Parameter(new, requires_grad=old.requires_grad)


# --- the judgement -------------------------------------------------------------------------------


def _compare(folded: nn.Module, module: nn.Module, example: Sequence[Tensor]) -> Comparison:
    """Return the verdict on the copy; its yardstick is the module's own rounding error."""
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(_NUM_SAMPLES, *x.shape[1:], generator=generator).to(x)
        if x.is_floating_point()
        else x[torch.arange(_NUM_SAMPLES) % len(x)]
        for x in example
    ]
    exact = [x.double() if x.is_floating_point() else x for x in inputs]
    reference = _run(copy.deepcopy(module).double(), exact)
    golden = Golden(
        inputs=np.zeros((_NUM_SAMPLES, 0), np.float32),  # the inputs may be several, of any type
        reference=reference,
        noise_l2=np.linalg.norm(_run(module, inputs) - reference, axis=1),
        labels=None,
        info=GoldenInfo(
            source="the module before the fold, in float64",
            inputs="normal noise, seed 0",
            num_inputs=_NUM_SAMPLES,
        ),
    )
    try:
        outputs = _run(folded, inputs)
    except UnsupportedModelError:
        raise
    except Exception as error:  # the module's own code, which may read what is gone
        raise _cannot_hold(f"with the norms taken out, it fails ({error})", "") from error
    return judge_end_to_end(outputs, golden)


def _run(module: nn.Module, inputs: Sequence[Tensor]) -> np.ndarray:
    """Return all outputs side by side, (N, K), in float64."""
    with torch.no_grad():
        outputs = [y for y in tree_leaves(module(*inputs)) if isinstance(y, Tensor)]
    if any(y.ndim == 0 or len(y) != len(inputs[0]) for y in outputs):
        shapes = ", ".join(str(tuple(y.shape)) for y in outputs)
        raise UnsupportedModelError(
            f"An output has no row for each sample, so the fold cannot be judged ({shapes}).",
            where=type(module).__name__,
            fix="export it to ONNX: the file is folded completely",
        )
    return torch.cat([y.double().reshape(len(y), -1) for y in outputs], dim=1).cpu().numpy()
