"""The passes between torch's exporter and the file, in their order and with the reason for it.

A pass that writes other operators than it reads needs a rule in `verify.normal_form` by which both
are the same: the reference comes through these passes, a file of another exporter does not, and its
layers would have no counterpart, hence no certificate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from resdeploy.data.preprocess import centre_and_scale, kind_for
from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.fold.take_pixels import take_pixels
from resdeploy.fold.write_zero_bias import write_zero_bias
from resdeploy.graph.exact_constants import compute_exactly, round_once
from resdeploy.graph.lower_opset import lower_opset
from resdeploy.graph.name_io import name_io
from resdeploy.graph.remove_no_ops import remove_no_ops
from resdeploy.graph.replace_padded_shortcut import replace_padded_shortcut
from resdeploy.graph.replace_reduce_mean import replace_reduce_mean
from resdeploy.graph.replace_split_sequence import replace_split_sequence
from resdeploy.graph.resolve_castlike import resolve_castlike
from resdeploy.graph.simplify import simplify
from resdeploy.graph.strip_metadata import strip_metadata
from resdeploy.schema.exports import PassReport
from resdeploy.schema.folds import FoldReport
from resdeploy.schema.recipes import Preprocess

__all__ = ["Optimized", "optimize", "simplified"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimized:
    """A graph ready to be written.

    Attributes:
        model: the graph.
        fold: the folded and the refused sites; empty if nothing was to be folded.
        passes: the changes of each pass.
        before_lowering: the graph in the opset that it was translated to; None if that is its own.
    """

    model: ir.Model
    fold: FoldReport
    passes: tuple[PassReport, ...]
    before_lowering: onnx.ModelProto | None = None


def optimize(
    model: ir.Model,
    *,
    opset: int,
    batch_dimension: str | None,
    fold: bool = True,
    embed: Preprocess | None = None,
    open_sides: Sequence[str] = (),
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Optimized:
    """Return `model` simplified and folded, in the opset asked for.

    Args:
        model: as translated; it is used up.
        opset: to write it in.
        batch_dimension: the name of an open batch dimension; None if it is fixed.
        fold: fold its BatchNorms.
        embed: the preprocessing of a model that is to take pixels: its centre is taken off them
            (`take_pixels`), its scale goes into the weights (`fold_batchnorm`).
        open_sides: of images, "height" or "width".
        input_names: of the inputs; () for those of `name_io`.
        output_names: likewise of the outputs.
        on_stage: told the name of each stage as it begins.

    Raises:
        UnsupportedModelError: a pass cannot handle the graph.
    """
    on_stage("simplify")
    model, reports = simplified(
        model,
        batch_dimension=batch_dimension,
        open_sides=open_sides,
        input_names=input_names,
        output_names=output_names,
    )
    on_stage("fold")
    centre_C, scale_C = (None, None) if embed is None else centre_and_scale(embed)
    report = fold_batchnorm(model, batchnorm=fold, input_scale=scale_C)
    round_once(model)
    if centre_C is not None:
        reports.append(take_pixels(model, centre_C, kind_for(embed)))
    is_older = opset < model.opset_imports[""]
    before_lowering = ir.to_proto(model) if is_older else None
    reports.append(lower_opset(model, opset))  # last: there are fewer operators to lower
    reports.append(strip_metadata(model))  # simplify leaves comments of its own
    model.producer_name = "resdeploy"
    model.producer_version = None
    return Optimized(
        model=model, fold=report, passes=tuple(reports), before_lowering=before_lowering
    )


def simplified(
    model: ir.Model,
    *,
    batch_dimension: str | None,
    open_sides: Sequence[str] = (),
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> tuple[ir.Model, list[PassReport]]:
    """Return `model` simplified, with its notes (`editor.NOTES`) and computed constants unrounded.

    Raises:
        UnsupportedModelError: a pass cannot handle the graph.
    """
    reports = [
        name_io(
            model,
            batch_dimension=batch_dimension,
            open_sides=open_sides,
            inputs=input_names,
            outputs=output_names,
        ),
        # Before simplify, which drops the module names nodes are called by.
        strip_metadata(model, keep_notes=True),
        resolve_castlike(model),  # before the next ones, which then see that these are constants
        write_zero_bias(model),
        compute_exactly(model),  # before simplify, which would compute them in float32
    ]
    model, report = simplify(model)
    reports += [
        report,
        remove_no_ops(model),  # the rest of simplify's work
        replace_reduce_mean(model),  # after simplify, which computes the axes
        replace_padded_shortcut(model),  # likewise the bounds of the slice
        replace_split_sequence(model),  # likewise the lengths
    ]
    return model, reports
