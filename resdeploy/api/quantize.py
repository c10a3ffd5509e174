"""`resdeploy.quantize`: a model in lower precision, within a budget for its outputs."""

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
    max_flips: float = 0.01,
    max_error: float | None = None,
    keep_io: bool = True,
    force: bool = False,
    on_stage: OnStage = silent,
) -> QuantReport:
    """Lower the precision of a folded ONNX file, and measure the cost. Needs no torch.

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
        max_flips: the fraction of held-out predictions that may change.
        max_error: the largest relative error of the outputs; None for any.
        keep_io: leave inputs and outputs in float32 (float16, bfloat16).
        force: replace an existing file.
        on_stage: called with the name of each stage as it begins.

    Returns:
        The record; if `.passed` is False, nothing was written, for `.reasons`.

    Raises:
        ResdeployError: the model or the data is not what it should be; `out` exists.
        ValueError: `precision`, `method` or `types` is unknown.

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
        max_error=max_error,
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
        )
