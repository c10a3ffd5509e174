"""`resdeploy fold-bn`."""

from pathlib import Path

import click

from resdeploy.cli.options import SourceOptions, force_option, json_option, source_options
from resdeploy.errors import EXIT_CHECK_FAILED
from resdeploy.schema.folds import FoldReport
from resdeploy.schema.recipes import SourceSpec
from resdeploy.schema.sessions import SessionSpec


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
    from resdeploy.cli.progress import show_stages
    from resdeploy.cli.render import emit

    with show_stages("fold-bn"):
        if source is not None and source.suffix.lower() == ".onnx":
            report = _fold_onnx(source, output, source_of(source), layernorm=layernorm, force=force)
        else:
            from resdeploy.host.build import load_source
            from resdeploy.host.fold_checkpoint import fold_checkpoint

            report = fold_checkpoint(
                load_source(source_of(source)), output, layernorm=layernorm, force=force
            )
    emit(report, as_json=as_json)
    if strict and not report.complete:
        raise SystemExit(EXIT_CHECK_FAILED)


def _fold_onnx(
    path: Path, output: Path | None, request: SourceSpec, *, layernorm: bool, force: bool
) -> FoldReport:
    """Fold an ONNX file; its verdict comes from ONNX Runtime, which must not fold by itself."""
    if request != SourceSpec(path=request.path, input_shape=request.input_shape):
        raise click.UsageError("an ONNX file needs no --arch, --arch-option, --model or --recipe")
    from resdeploy.graph.fold_file import fold_file
    from resdeploy.target.session import open_session

    as_it_stands = SessionSpec(graph_level="disabled")
    return fold_file(
        path,
        output,
        run=lambda model, inputs: open_session(model, as_it_stands).run(inputs),
        input_shape=request.input_shape,
        layernorm=layernorm,
        force=force,
    )
