"""`resdeploy quantize`."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import (
    PRECISIONS,
    Emit,
    Number,
    choice_of,
    force_option,
    json_option,
    max_drop_option,
    output_option,
    target_option,
)
from resdeploy.cli.parameter_types import DATA, MODEL, RECIPE
from resdeploy.schema.quants import CalibrationMethod, Choice, IntegerTypes, OutputKind
from resdeploy.session.providers import PROVIDERS

_INSISTED = "".join(
    f", {provider.integer_types} for {provider.name}"
    for provider in PROVIDERS.values()
    if provider.integer_types
)
_choice_option = functools.partial(
    click.option, type=click.Choice(get_args(Choice)), default="auto"
)


def _kinds(_context: Any, option: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    kinds = {}
    for text in texts:
        name, _, kind = text.rpartition("=")
        if kind not in get_args(OutputKind):
            raise click.BadParameter(
                f"{kind!r} is not one of {', '.join(get_args(OutputKind))}",
                param_hint=option.opts[0],
            )
        kinds[name] = kind
    return kinds


@click.command(cls=Command)
@click.argument("model", type=MODEL)
@output_option("The ONNX file to write.")
@click.option("--precision", default="int8", **choice_of(PRECISIONS))
@click.option(
    "--calibration",
    required=True,
    type=DATA,
    metavar="DATA",
    help="Samples as in training: NAME, NAME:PATH, x.npz, a folder of images.",
)
@click.option(
    "--recipe", type=RECIPE, help="Take the preprocessing from this recipe, by name or path."
)
@click.option(
    "--method",
    type=click.Choice(["auto", *get_args(CalibrationMethod)]),
    default="auto",
    help="Calibration of int8 ranges; auto measures all.",
)
@click.option(
    "--types",
    type=click.Choice(get_args(IntegerTypes)),
    help=f"Of activations and weights.  [default: u8s8 on x86, s8s8 on ARM{_INSISTED}]",
)
@target_option
@click.option(
    "--reduce-range/--full-range",
    default=None,
    help="Weights of 7 bits.  [default: on x86 without VNNI]",
)
@_choice_option("--equalize", help="Give the channels between layers like ranges (SmoothQuant).")
@_choice_option("--pixel-grid", help="Let the input's integers be the pixels.")
@_choice_option("--refine", help="Choose each tensor's range by the outputs.")
@_choice_option("--rounding", help="Round weights so that errors cancel (GPTQ).")
@_choice_option("--bias-correction", help="Take the weights' mean error out of the biases.")
@click.option(
    "--max-flips",
    type=Number(min=0, max=1),
    help="Fraction of predictions that may change.  [default: 0.01, or --max-drop with labels]",
)
@max_drop_option("Drop in accuracy that is allowed.  [default: 1 where DATA has labels]")
@click.option(
    "--max-error",
    type=Number(min=0),
    help="Largest relative error of an output.  [default: 0.1 where none predicts]",
)
@click.option(
    "--output-kind",
    multiple=True,
    metavar="[NAME=]KIND",
    callback=_kinds,
    help=f"What the outputs are: {', '.join(get_args(OutputKind))}.  [default: by their shapes]",
)
@click.option(
    "--keep-io/--lower-io", default=True, help="Leave inputs and outputs in float32 (fp16, bf16)."
)
@force_option
@json_option
def quantize(model: Path, out: Path, emit: Emit, **options: Any) -> None:
    """Lower the precision of MODEL, a folded ONNX file, and measure the cost.

    Part of the calibration samples is held out. Every choice is measured on them, and kept
    only if it lowers the error; layers that cost too much stay in float32, as do operators without
    an integer kernel. Outputs are judged as what they are, and the budget by what so many samples
    show: PASS, FAIL (nothing is written), or NOT SHOWN.

    \b
    Example:
        resdeploy quantize digits.onnx -o digits-int8.onnx --calibration digits
        resdeploy quantize resnet50.onnx -o int8.onnx --calibration photos \\
            --for target.json
        resdeploy quantize resnet50.onnx -o fp16.onnx --precision fp16 \\
            --calibration x.npz
    """
    from resdeploy.api.quantize import quantize as quantize_model
    from resdeploy.cli.progress import show_stages

    with show_stages("quantize") as on_stage:
        report = quantize_model(
            model,
            out,
            on_stage=on_stage,
            on_warning=lambda warning: click.echo(f"warning: {warning}", err=True),
            **options,
        )
    written = "what was written is not shown to hold the budget"
    emit(report, note="nothing was written" if report.output is None else written)
