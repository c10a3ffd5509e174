"""`resdeploy bundle`."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import (
    PATH,
    POSITIVE,
    Emit,
    export_options,
    force_option,
    json_option,
    output_option,
    source_options,
)
from resdeploy.cli.parameter_types import DATA, SOURCE
from resdeploy.schema.recipes import SourceSpec

_layout_option = functools.partial(click.option, type=PATH, metavar="DIR")


@click.command(cls=Command)
@click.argument("source", required=False, type=SOURCE)
@output_option("The folder to write, or one file: NAME.zip.")
@source_options("source")
@click.option("--name", help="The model's name.  [default: from -o]")
@click.option("--data", type=DATA, help="Golden inputs from this data: NAME, NAME:PATH, x.npz.")
@click.option("--num-inputs", default=32, type=POSITIVE)
@click.option(
    "--reference",
    type=SOURCE,
    help="What an ONNX file is held to: the trained model, or an ONNX file.  [default: itself]",
)
@export_options
@_layout_option("--triton", help="Also write it into this model repository of Triton.")
@_layout_option("--onnx-test-data", help="Also write model and golden inputs as ONNX test data.")
@_layout_option("--ort-format", help="Also write model.ort and its list of operators.")
@force_option
@json_option
def bundle(
    source: SourceSpec, out: Path, reference: Path | None, emit: Emit, **options: Any
) -> None:
    """Pack SOURCE for a device: model, labels, preprocessing, golden inputs and their answers.

    On the device, without torch, `resdeploy check` proves the files whole and the numbers right.
    SOURCE is a trained model, or an ONNX file of any tool. Such a file is its own reference,
    computed in float64, or is held to --reference, to which --arch and the like then belong.

    \b
    Example:
        resdeploy bundle runs/digits -o digits-bundle --data digits
        resdeploy bundle resnet50-v1-7.onnx -o zoo.zip --recipe imagenet-resnet50
        resdeploy check digits-bundle
    """
    original = None
    if reference is not None or (source.factory and (source.path or "").endswith(".onnx")):
        original = dataclasses.replace(
            source, path=None if reference is None else str(reference), recipe=None
        )
        source = dataclasses.replace(source, arch=None, options={}, factory=None, weights=None)
    from resdeploy.api.bundle import bundle as bundle_model
    from resdeploy.cli.progress import show_stages

    with show_stages("bundle") as on_stage:
        manifest = bundle_model(source, out, reference=original, on_stage=on_stage, **options)
    emit(manifest)
