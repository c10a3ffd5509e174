"""`resdeploy bundle`."""

from pathlib import Path

import click

from resdeploy.cli.export import parse_batch
from resdeploy.cli.options import (
    SourceOptions,
    force_option,
    json_option,
    output_option,
    preprocess_option,
    source_options,
    target_option,
)


@click.command()
@click.argument("source", required=False, type=click.Path(path_type=Path))
@output_option("The folder to write, or one file: NAME.zip.")
@source_options
@click.option("--name", help="What the model is called.  [default: from -o]")
@click.option("--data", help="Golden inputs from this data: NAME, NAME:PATH, x.npz.")
@click.option("--num-inputs", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--opset", type=int, help="ONNX operator set.  [default: 18, or the target's]")
@target_option
@click.option(
    "--batch", default="dynamic", show_default=True, help="dynamic, or a number of samples."
)
@click.option(
    "--triton",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write it into this model repository of Triton.",
)
@click.option(
    "--onnx-test-data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write model and golden inputs as ONNX test data.",
)
@click.option(
    "--ort-format",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write model.ort and its list of operators.",
)
@preprocess_option
@force_option
@json_option
def bundle(
    source: Path | None,
    output: Path,
    source_of: SourceOptions,
    name: str | None,
    data: str | None,
    num_inputs: int,
    opset: int | None,
    target: Path | None,
    batch: str,
    triton: Path | None,
    onnx_test_data: Path | None,
    ort_format: Path | None,
    preprocess: str,
    force: bool,
    as_json: bool,
) -> None:
    """Pack SOURCE for a device: model, labels, preprocessing, golden inputs and their answers.

    On the device, without torch, `resdeploy check` proves the files whole and the numbers right.

    \b
    Example:
        resdeploy bundle runs/digits -o digits-bundle --data digits
        resdeploy check digits-bundle
    """
    from resdeploy.api.bundle import bundle as bundle_model
    from resdeploy.cli.progress import show_stages
    from resdeploy.cli.render import emit

    with show_stages("bundle") as on_stage:
        manifest = bundle_model(
            source_of(source),
            output,
            name=name,
            data=data,
            num_inputs=num_inputs,
            opset=opset,
            target=target,
            batch=parse_batch(batch),
            embed_preprocess=preprocess == "embed",
            triton=triton,
            onnx_test_data=onnx_test_data,
            ort_format=ort_format,
            force=force,
            on_stage=on_stage,
        )
    emit(manifest, as_json=as_json)
