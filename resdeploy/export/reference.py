"""The reference graph of a trained model: in float64, folded, and shown to be that model.

A candidate's nodes and weights are compared with this graph. That it is the model is not taken for
granted: its outputs, by an evaluator in numpy, must be those of the module in PyTorch, both in
float64, to within a hundredth of the noise of float32.
"""

import copy
import gc
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from resdeploy.data.named_inputs import by_name
from resdeploy.errors import UnsupportedModelError
from resdeploy.export.embedded import split_preprocess
from resdeploy.export.exact_numbers import python_numbers, recover_numbers
from resdeploy.export.run_module import AllFloat64
from resdeploy.export.signature import bind
from resdeploy.export.source import SourceModel, example_samples, stated_metadata
from resdeploy.export.trace import BATCH_DIMENSION, trace
from resdeploy.export.translate import translate
from resdeploy.fold.pipeline import optimize
from resdeploy.graph.float64 import evaluate_float64
from resdeploy.schema.folds import FoldReport
from resdeploy.schema.recipes import Preprocess
from resdeploy.verify.certify import Reference
from resdeploy.verify.compare import level_infinities
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.named_outputs import exact_columns, exact_reasons, float_columns

__all__ = ["reference_graph", "reference_or_reason"]

_MOST_OF_THE_NOISE = 0.01


def reference_graph(source: SourceModel, golden: Golden, *, batch: int | None = None) -> Reference:
    """Return the reference graph of `source`.

    Args:
        source: the trained model; it is copied, not changed.
        golden: its outputs, made by `golden_for`.
        batch: the one batch size that it takes; None if it takes any.

    Raises:
        UnsupportedModelError: the model cannot be traced or translated, or its graph does not
            compute in float64 what the module does.
    """
    module, preprocess = split_preprocess(copy.deepcopy(source.module).double())
    model, folds = _folded(module, source, preprocess, batch)
    # The traced program and the evaluator are circles of references: each holds the weights.
    gc.collect()
    _check(model, golden, source.description)
    gc.collect()
    return Reference(
        model=model,
        bias_magnitudes=_bias_magnitudes(module, folds),
        is_exact=True,
        metadata=stated_metadata(source),
    )


def reference_or_reason(
    source: SourceModel, golden: Golden, *, batch: int | None = None
) -> Reference | str:
    """Return the reference graph, or the reason for its absence: outputs can still be judged."""
    try:
        return reference_graph(source, golden, batch=batch)
    except UnsupportedModelError as error:
        return error.what


def _folded(
    module: nn.Module, source: SourceModel, preprocess: Preprocess | None, fixed: int | None
) -> tuple[onnx.ModelProto, FoldReport]:
    """Return a module's graph, folded, and the folds."""
    with AllFloat64():
        args, kwargs = bind(module, example_samples(source), torch.float64)
        try:
            program = trace(module, args, by_name=kwargs, open_sides=source.open_sides)
            batch: str | None = BATCH_DIMENSION
        except UnsupportedModelError:
            samples = example_samples(source, batch_size=fixed or 2)
            args, kwargs = bind(module, samples, torch.float64)
            program = trace(
                module,
                args,
                by_name=kwargs,
                dynamic_batch=False,
                open_sides=source.open_sides,
            )
            batch = None
    opset = 18
    numbers = python_numbers(program)
    model = translate(program, opset=opset)
    recover_numbers(model, numbers)
    optimized = optimize(
        model,
        opset=opset,
        batch_dimension=batch,
        embed=preprocess,
        open_sides=source.open_sides,
        input_names=source.input_names,
    )
    return ir.to_proto(optimized.model), optimized.fold


def _check(model: onnx.ModelProto, golden: Golden, where: str) -> None:
    """Raise unless `model` computes what the reference does, on the first input."""
    # A graph of fixed batch takes as many, of which some are then repeated.
    count = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    samples = np.resize(golden.inputs, (count, *golden.inputs.shape[1:]))
    expected_NK = np.resize(golden.reference, (count, golden.reference.shape[1]))
    feeds = by_name(samples, [value.name for value in model.graph.input])
    found = [*evaluate_float64(model, feeds).values()]
    outputs_NK, expected_NK = level_infinities(
        float_columns(found, golden.info.outputs), expected_NK
    )
    wrong = exact_reasons(exact_columns(found, golden.info.outputs)[:1], golden)
    if wrong:
        raise UnsupportedModelError(
            f"The graph traced from the model is no reference: {wrong[0]}.", where=where
        )
    noise = np.linalg.norm(np.resize(golden.yardstick, count))
    error = np.linalg.norm(outputs_NK - expected_NK)
    if not error <= _MOST_OF_THE_NOISE * noise:
        raise UnsupportedModelError(
            f"The graph traced from the model errs by {error / noise:.3g} of float32's noise "
            "in float64, so it is no reference.",
            where=where,
        )


def _bias_magnitudes(module: nn.Module, report: FoldReport) -> Mapping[str, np.ndarray]:
    """Return the sum of magnitudes behind each folded bias, by the name of its layer."""
    found: dict[str, np.ndarray] = {}
    for site in report.folded:
        try:
            norm = module.get_submodule(site.site)
            layer = module.get_submodule(site.producer)
        except AttributeError:
            continue  # a call that is no module's
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            continue
        assert norm.running_var is not None
        with torch.no_grad():
            gamma = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight
            beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
            scale = (gamma / torch.sqrt(norm.running_var + norm.eps)).abs()
            terms = [beta.abs(), scale * norm.running_mean.abs()]
            bias = getattr(layer, "bias", None)
            if isinstance(bias, torch.Tensor) and bias.shape == scale.shape:
                terms.append(scale * bias.abs())
            magnitude = torch.stack(terms).sum(dim=0).numpy()
        if site.producer in found and found[site.producer].shape == magnitude.shape:
            magnitude = np.maximum(found[site.producer], magnitude)
        found[site.producer] = magnitude
    return found
