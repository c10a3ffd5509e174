"""`resdeploy predict`."""

from pathlib import Path

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import (
    POSITIVE,
    Emit,
    force_option,
    json_option,
    output_option,
    session_options,
    session_was_given,
)
from resdeploy.cli.parameter_types import FILE, MODEL
from resdeploy.schema.sessions import SessionSpec


@click.command(cls=Command)
@click.argument("bundle", type=MODEL)
@click.argument("inputs", metavar="IMAGE...", nargs=-1, required=True, type=FILE)
@session_options()
@click.option("--top", default=5, type=POSITIVE, help="Number of classes to name.")
@output_option(
    "Write the outputs themselves, by name, to this .npz, in place of classes.", required=False
)
@force_option
@json_option
def predict(
    bundle: Path,
    inputs: tuple[Path, ...],
    provider: SessionSpec,
    top: int,
    out: Path | None,
    force: bool,
    emit: Emit,
) -> None:
    """Name the likeliest classes of each IMAGE with the model of BUNDLE. Needs no torch.

    BUNDLE may be an ONNX file, too, whose metadata then says what it can.

    IMAGE is an image file, a folder of them, or an .npy or .npz (array x) with uint8 images,
    float32 network inputs or, for models of vectors, one vector a row; for a model of several
    inputs, an .npz with an array for each, by its name. Every byte of the bundle is checked
    first; the preprocessing is that of the training, to the pixel. Probabilities are the
    softmax of the model's outputs, in float64. Without an option of the session, the
    fastest settings that `tune` found for this machine apply, if any. Of a model whose outputs
    are no class scores, -o writes the outputs, a row of each for each IMAGE.

    \b
    Example:
        resdeploy predict digits-bundle seven.png
        resdeploy predict resnet50.zip photos --top 3 --provider cuda --json
        resdeploy predict unet.zip photos -o masks.npz
    """
    from resdeploy.api.predict import predict as predict_classes

    wanted = provider if session_was_given() else None
    emit(predict_classes(bundle, inputs, provider=wanted, top=top, out=out, force=force))
