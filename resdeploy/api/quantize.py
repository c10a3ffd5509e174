"""`resdeploy.quantize`: a model in lower precision, within a budget for its outputs."""

from collections.abc import Mapping
from typing import Literal, get_args

from resdeploy.api.arguments import (
    Data,
    OnStage,
    PathLike,
    data_of,
    one_of,
    optional_path,
    path_of,
    silent,
)
from resdeploy.api.sources import as_onnx
from resdeploy.schema.quants import (
    CalibrationMethod,
    Choice,
    IntegerTypes,
    OutputKind,
    QuantizedPrecision,
    QuantReport,
    QuantSpec,
)

__all__ = ["quantize"]


def quantize(
    model: PathLike,
    out: PathLike,
    *,
    calibration: Data,
    precision: QuantizedPrecision = "int8",
    recipe: str | None = None,
    method: Literal["auto"] | CalibrationMethod = "auto",
    types: IntegerTypes | None = None,
    target: PathLike | None = None,
    reduce_range: bool | None = None,
    equalize: Choice = "auto",
    pixel_grid: Choice = "auto",
    refine: Choice = "auto",
    rounding: Choice = "auto",
    bias_correction: Choice = "auto",
    max_flips: float | None = None,
    max_drop: float | None = None,
    max_error: float | None = None,
    output_kind: OutputKind | Mapping[str, OutputKind] | None = None,
    keep_io: bool = True,
    force: bool = False,
    on_stage: OnStage = silent,
    on_warning: OnStage = silent,
) -> QuantReport:
    """Lower the precision of a folded ONNX file, and measure the cost. Needs no torch.

    A budget is held if the held-out samples show it: by the exact one-sided 95 % bound of the
    changed fraction of predictions, or of the accuracy that was lost. What the outputs are decides
    which budget fits; without any, 1 % of the predictions may change, or with labels 1 point of
    accuracy be lost, and of other outputs the relative error is at most 0.1.

    Args:
        model: a folded ONNX file in float32, or a bundle, whose file is taken.
        out: the file to write, if the budget holds and every layer really runs in integers.
        calibration: samples as in training; a quarter of them is held out to judge by.
        precision: the lower precision.
        recipe: whose preprocessing applies, where the model does not say.
        method: calibration of int8 ranges; "auto" measures all.
        types: of activations and weights in int8; None for those that suit the target.
        target: the record that `resdeploy probe -o` wrote on the target; None for this machine.
        reduce_range: weights of 7 bits; None for x86 without VNNI.
        equalize: give the channels between layers like ranges.
        pixel_grid: let the input's integers be the pixels.
        refine: choose each tensor's range by the outputs.
        rounding: round weights so that errors cancel.
        bias_correction: take the weights' mean error out of the biases.
        max_flips: the fraction of predictions that may change.
        max_drop: the drop in accuracy that is allowed, as a fraction; without labels, that of
            changed predictions.
        max_error: the largest relative error of an output.
        output_kind: what the outputs are, or each by its name; None to tell by shape and values.
        keep_io: leave inputs and outputs in float32 (float16, bfloat16).
        force: replace an existing file.
        on_stage: called with the name of each stage as it begins.
        on_warning: called with each warning about the samples, before anything is searched.

    Returns:
        The record. With `.failures`, nothing was written; with `.not_shown` alone, the file was,
        and does not pass.

    Raises:
        ResdeployError: the model or the data is not what it should be, a budget does not fit what
            the outputs are, or `out` exists.
        ValueError: `precision`, `method`, `types` or an `output_kind` is unknown.

    Example:
        >>> report = resdeploy.quantize(
        ...     "m.onnx", "int8.onnx", calibration="cifar10:data"
        ... )
    """
    path, written = path_of(model, "model"), path_of(out, "out")
    one_of(precision, "precision", get_args(QuantizedPrecision))
    one_of(method, "method", ("auto", *get_args(CalibrationMethod)))
    if types is not None:
        one_of(types, "types", get_args(IntegerTypes))
    kinds = {"": output_kind} if isinstance(output_kind, str) else dict(output_kind or {})
    for kind in kinds.values():
        one_of(kind, "output_kind", get_args(OutputKind))
    chosen = data_of(calibration, "calibration")
    from resdeploy.quant.quantize import quantize_file, spec_for

    asked = QuantSpec(
        precision=precision,
        method=method,
        equalize=equalize,
        pixel_grid=pixel_grid,
        refine=refine,
        rounding=rounding,
        bias_correction=bias_correction,
        max_flips=max_flips,
        max_drop=max_drop,
        max_error=max_error,
        output_kinds=kinds,
        keep_io=keep_io,
    )
    spec, warnings = spec_for(
        asked, types=types, reduce_range=reduce_range, target=optional_path(target, "target")
    )
    with as_onnx(path) as file:
        return quantize_file(
            file,
            written,
            spec,
            chosen,
            recipe=recipe,
            warnings=warnings,
            force=force,
            on_stage=on_stage,
            on_warning=on_warning,
        )
