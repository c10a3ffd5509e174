"""`resdeploy fold-bn`."""

from pathlib import Path
from typing import Any

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import (
    Emit,
    force_option,
    json_option,
    output_option,
    source_options,
)
from resdeploy.cli.parameter_types import SOURCE
from resdeploy.schema.recipes import SourceSpec


@click.command("fold-bn", cls=Command)
@click.argument("source", required=False, type=SOURCE)
@output_option("The folded model to write.", required=False)
@source_options("source")
@click.option("--dry-run", is_flag=True, help="Report only; write nothing.")
@click.option("--strict", is_flag=True, help="Exit 1 unless every BatchNorm is folded.")
@click.option("--layernorm", is_flag=True, help="Fold the affine parts of LayerNorms too.")
@force_option
@json_option
def fold_bn(
    source: SourceSpec, out: Path | None, dry_run: bool, strict: bool, emit: Emit, **options: Any
) -> None:
    """Fold every BatchNorm of SOURCE that may be folded, with a reason for each refusal.

    SOURCE is a trained model, folded to a checkpoint, or an ONNX file, folded to one.

    \b
    Example:
        resdeploy fold-bn runs/digits -o folded.safetensors
        resdeploy fold-bn model.onnx -o folded.onnx
        resdeploy fold-bn resnet50.pth --arch resnet50 --dry-run
    """
    if (out is None) != dry_run:
        raise click.UsageError("give either -o OUTPUT or --dry-run")
    from resdeploy.api.fold import fold_batchnorm
    from resdeploy.cli.progress import show_stages

    with show_stages("fold-bn"):
        report = fold_batchnorm(source, out=out, **options)
    emit(report, passed=report.complete or not strict)
