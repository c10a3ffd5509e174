"""`resdeploy predict`."""

from pathlib import Path

import click

from resdeploy.cli.options import (
    json_option,
    one_provider_option,
    openvino_precision_option,
    session_was_given,
    tf32_option,
    threads_option,
)
from resdeploy.schema.sessions import PrecisionHint, SessionSpec


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument(
    "inputs", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@one_provider_option
@click.option(
    "--top",
    "num_classes",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many classes to name.",
)
@threads_option
@tf32_option
@openvino_precision_option
@json_option
def predict(
    bundle: Path,
    inputs: tuple[Path, ...],
    provider: str,
    num_classes: int,
    threads: int | None,
    tf32: bool,
    precision_hint: PrecisionHint,
    as_json: bool,
) -> None:
    """Name the likeliest classes of each IMAGE with the model of BUNDLE. Needs no torch.

    IMAGE is an image file, a folder of them, or an .npy or .npz (array x) with uint8 images,
    float32 network inputs or, for models of vectors, one vector a row. Every byte of the bundle is
    checked first; the preprocessing is that of the training, to the pixel. Probabilities are the
    softmax of the model's outputs, in float64. Unless an option says how to run it, it is run as
    `tune` found it to be the fastest on this machine, if it did.

    \b
    Example:
        resdeploy predict digits-bundle seven.png
        resdeploy predict resnet50.zip photos --top 3 --provider cuda --json
    """
    from resdeploy.api.predict import predict as predict_classes
    from resdeploy.cli.render import emit

    spec = SessionSpec(
        provider=provider, num_threads=threads, use_tf32=tf32, precision_hint=precision_hint
    )
    wanted = spec if session_was_given() else None
    emit(predict_classes(bundle, inputs, provider=wanted, top=num_classes), as_json=as_json)
