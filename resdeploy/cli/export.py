"""`resdeploy export`."""

from pathlib import Path
from typing import Any

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import (
    Emit,
    export_options,
    force_option,
    json_option,
    output_option,
    source_options,
)
from resdeploy.cli.parameter_types import TRAINED
from resdeploy.schema.recipes import SourceSpec


@click.command(cls=Command)
@click.argument("source", required=False, type=TRAINED)
@output_option("The ONNX file to write.")
@source_options("source")
@export_options
@click.option("--no-fold", is_flag=True, help="Leave every BatchNorm where it is.")
@force_option
@json_option
def export(source: SourceSpec, out: Path, no_fold: bool, emit: Emit, **options: Any) -> None:
    """Fold SOURCE, write it as one ONNX file, and prove that the file computes the same.

    The file is written only if ONNX Runtime computes from it what SOURCE computes. With --for, it
    is in a form that the board or the target's runtime reads, and has no operator that it lacks.

    \b
    Example:
        resdeploy export runs/digits -o digits.onnx
        resdeploy export resnet50.pth --arch resnet50 -o resnet50.onnx --batch 1
        resdeploy export runs/digits -o digits.onnx --for target.json
        resdeploy export resnet50.pth -o board.onnx --for rknn --layout nhwc
    """
    from resdeploy.api.export import export as export_model
    from resdeploy.cli.progress import show_stages

    with show_stages("export") as on_stage:
        report = export_model(source, out, fold=not no_fold, on_stage=on_stage, **options)
    verified = report.verification
    emit(report, passed=verified is None or verified.passed, note="nothing was written")
