"""`resdeploy export`."""

from pathlib import Path
from typing import Literal

import click

from resdeploy.cli.options import (
    SourceOptions,
    force_option,
    json_option,
    output_option,
    preprocess_option,
    source_options,
    target_option,
)
from resdeploy.errors import EXIT_CHECK_FAILED


@click.command()
@click.argument("source", required=False, type=click.Path(path_type=Path))
@output_option("The ONNX file to write.")
@source_options
@click.option("--opset", type=int, help="ONNX operator set.  [default: 18, or the target's]")
@target_option
@click.option(
    "--batch", default="dynamic", show_default=True, help="dynamic, or a number of samples."
)
@click.option("--no-fold", is_flag=True, help="Leave every BatchNorm where it is.")
@preprocess_option
@force_option
@json_option
def export(
    source: Path | None,
    output: Path,
    source_of: SourceOptions,
    opset: int | None,
    target: Path | None,
    batch: str,
    no_fold: bool,
    preprocess: str,
    force: bool,
    as_json: bool,
) -> None:
    """Fold SOURCE, write it as one ONNX file, and prove that the file computes the same.

    The file is written only if ONNX Runtime computes from it what SOURCE computes. With --for, it
    is in a form that the target's runtime reads.

    \b
    Example:
        resdeploy export runs/digits -o digits.onnx
        resdeploy export resnet50.pth --arch resnet50 -o resnet50.onnx --batch 1
        resdeploy export runs/digits -o digits.onnx --for target.json
    """
    from resdeploy.api.export import export as export_model
    from resdeploy.cli.progress import show_stages
    from resdeploy.cli.render import emit

    with show_stages("export") as on_stage:
        report = export_model(
            source_of(source),
            output,
            opset=opset,
            batch=parse_batch(batch),
            fold=not no_fold,
            target=target,
            embed_preprocess=preprocess == "embed",
            force=force,
            on_stage=on_stage,
        )
    emit(report, as_json=as_json)
    if report.verification is not None and not report.verification.passed:
        click.echo("nothing was written", err=True)
        raise SystemExit(EXIT_CHECK_FAILED)


def parse_batch(text: str) -> int | Literal["dynamic"]:
    """Return the batch that `--batch` asks for.

    Raises:
        click.BadParameter: it is neither "dynamic" nor a positive number.
    """
    if text == "dynamic":
        return "dynamic"
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither dynamic nor a number", param_hint="--batch")
    return int(text)
