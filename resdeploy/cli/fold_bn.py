"""`resdeploy fold-bn`."""

from pathlib import Path

import click

from resdeploy.cli.options import SourceOptions, force_option, json_option, source_options
from resdeploy.errors import EXIT_CHECK_FAILED


@click.command("fold-bn")
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The folded model to write.")
@source_options
@click.option("--dry-run", is_flag=True, help="Report only; write nothing.")
@click.option("--strict", is_flag=True, help="Exit 1 unless every BatchNorm is folded.")
@click.option("--layernorm", is_flag=True, help="Fold the affine parts of LayerNorms too.")
@force_option
@json_option
def fold_bn(
    source: Path | None,
    output: Path | None,
    source_of: SourceOptions,
    dry_run: bool,
    strict: bool,
    layernorm: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Fold every BatchNorm of SOURCE that may be folded, and say why the others may not.

    SOURCE is a trained model, folded to a checkpoint, or an ONNX file, folded to one.

    \b
    Example:
        resdeploy fold-bn runs/digits -o folded.safetensors
        resdeploy fold-bn model.onnx -o folded.onnx
        resdeploy fold-bn resnet50.pth --arch resnet50 --dry-run
    """
    if (output is None) != dry_run:
        raise click.UsageError("give either -o OUTPUT or --dry-run")
    from resdeploy.api.fold import fold_batchnorm
    from resdeploy.cli.progress import show_stages
    from resdeploy.cli.render import emit

    with show_stages("fold-bn"):
        report = fold_batchnorm(source_of(source), out=output, layernorm=layernorm, force=force)
    emit(report, as_json=as_json)
    if strict and not report.complete:
        raise SystemExit(EXIT_CHECK_FAILED)
