"""`resdeploy quantize`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from resdeploy.cli.options import (
    Command,
    Number,
    force_option,
    json_option,
    output_option,
    target_option,
)
from resdeploy.errors import EXIT_CHECK_FAILED
from resdeploy.session.providers import PROVIDERS

if TYPE_CHECKING:
    from resdeploy.schema.quants import CalibrationMethod, Choice, IntegerTypes, QuantizedPrecision

PRECISIONS: dict[str, "QuantizedPrecision"] = {
    "int8": "int8",
    "fp16": "float16",
    "bf16": "bfloat16",
}
_INSISTED = "".join(
    f", {provider.integer_types} for {provider.name}"
    for provider in PROVIDERS.values()
    if provider.integer_types
)
_CHOICES = click.Choice(["auto", "on", "off"])


def _choice(name: str, help_text: str) -> Callable[[Command], Command]:
    return click.option(name, type=_CHOICES, default="auto", show_default=True, help=help_text)


@click.command()
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@output_option("The ONNX file to write.")
@click.option("--precision", type=click.Choice(list(PRECISIONS)), default="int8", show_default=True)
@click.option(
    "--calibration",
    "data",
    required=True,
    metavar="DATA",
    help="Samples as in training: NAME, NAME:PATH, x.npz, a folder of images.",
)
@click.option("--recipe", help="Take the preprocessing from this recipe, by name or path.")
@click.option(
    "--method",
    type=click.Choice(["auto", "minmax", "percentile", "entropy", "mse"]),
    default="auto",
    show_default=True,
    help="How int8 ranges are found; auto measures all.",
)
@click.option(
    "--types",
    type=click.Choice(["u8s8", "s8s8", "s8s8-symmetric"]),
    help=f"Of activations and weights.  [default: u8s8 on x86, s8s8 on ARM{_INSISTED}]",
)
@target_option
@click.option(
    "--reduce-range/--full-range",
    default=None,
    help="Weights of 7 bits.  [default: on x86 without VNNI]",
)
@_choice("--equalize", "Give the channels between layers like ranges (SmoothQuant).")
@_choice("--pixel-grid", "Let the input's integers be the pixels.")
@_choice("--refine", "Choose each tensor's range by the outputs.")
@_choice("--rounding", "Round weights so that errors cancel (GPTQ).")
@_choice("--bias-correction", "Take the weights' mean error out of the biases.")
@click.option(
    "--max-flips",
    type=Number(min=0, max=1),
    default=0.01,
    show_default=True,
    help="Which fraction of held-out predictions may change.",
)
@click.option("--max-error", type=Number(min=0), help="Which relative error the outputs may have.")
@click.option(
    "--keep-io/--lower-io",
    default=True,
    show_default=True,
    help="Leave inputs and outputs in float32 (fp16, bf16).",
)
@force_option
@json_option
def quantize(
    model_file: Path,
    output: Path,
    precision: str,
    data: str,
    recipe: str | None,
    method: 'Literal["auto"] | CalibrationMethod',
    types: "IntegerTypes | None",
    target: Path | None,
    reduce_range: bool | None,
    equalize: "Choice",
    pixel_grid: "Choice",
    refine: "Choice",
    rounding: "Choice",
    bias_correction: "Choice",
    max_flips: float,
    max_error: float | None,
    keep_io: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Lower the precision of MODEL, a folded ONNX file, and measure what that costs.

    A quarter of the calibration samples is held out. Whatever can be chosen is measured on them,
    and kept only where it lowers the error; layers that cost too much stay in float32. The file is
    written only if the budget holds and ONNX Runtime really runs every layer in integers.

    \b
    Example:
        resdeploy quantize digits.onnx -o digits-int8.onnx --calibration digits
        resdeploy quantize resnet50.onnx -o int8.onnx --calibration photos --for target.json
        resdeploy quantize resnet50.onnx -o fp16.onnx --precision fp16 --calibration x.npz
    """
    from resdeploy.api.quantize import quantize as quantize_model
    from resdeploy.cli.progress import show_stages
    from resdeploy.cli.render import emit

    with show_stages("quantize") as on_stage:
        report = quantize_model(
            model_file,
            output,
            calibration=data,
            precision=PRECISIONS[precision],
            recipe=recipe,
            method=method,
            types=types,
            target=target,
            reduce_range=reduce_range,
            equalize=equalize,
            pixel_grid=pixel_grid,
            refine=refine,
            rounding=rounding,
            bias_correction=bias_correction,
            max_flips=max_flips,
            max_error=max_error,
            keep_io=keep_io,
            force=force,
            on_stage=on_stage,
        )
    emit(report, as_json=as_json)
    if not report.passed:
        click.echo("nothing was written", err=True)
        raise SystemExit(EXIT_CHECK_FAILED)
