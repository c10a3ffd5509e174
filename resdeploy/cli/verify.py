"""`resdeploy verify`."""

from pathlib import Path
from typing import Any

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import (
    PATH,
    POSITIVE,
    Emit,
    accept_option,
    json_option,
    sessions_options,
    source_options,
)
from resdeploy.cli.parameter_types import DATA, FILE, MODEL, SOURCE
from resdeploy.schema.recipes import SourceSpec


@click.command(cls=Command)
@click.argument("model", type=MODEL)
@click.option("--reference", type=SOURCE, help="The trained model MODEL came from.")
@click.option("--golden", type=FILE, help="A golden.npz instead; needs no torch.")
@source_options("reference")
@sessions_options
@click.option(
    "--data", type=DATA, help="Verify on held-out samples of this data: NAME, NAME:PATH, x.npz."
)
@click.option(
    "--inputs",
    type=FILE,
    help="Verify on these inputs: a folder of images or arrays, or one .npy or .npz.",
)
@click.option("--num-inputs", type=POSITIVE, help="Number of inputs.  [default: 32, or all data]")
@click.option(
    "--artifacts",
    type=PATH,
    help="A folder for the first faulty node of each provider, with its inputs.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "float16", "bfloat16"]),
    default="float32",
    help="The claimed arithmetic of MODEL, by whose noise it is judged.",
)
@click.option(
    "--conformance/--no-conformance",
    default=True,
    help="Also compare batch sizes, graph levels and odd values.",
)
@accept_option
@json_option
def verify(
    model: Path, reference: SourceSpec, golden: Path | None, emit: Emit, **options: Any
) -> None:
    """Prove that MODEL computes, on each provider, what the reference computes in float64.

    The reference is a trained model or another ONNX file. There is no tolerance to choose: the
    wiring is compared, then each weight with its exact value, each layer as it runs with a bound
    from rounding theory, and the outputs with the noise that float32 itself makes in this network,
    input by input and in the mean. Lower precision is a claim to make, with --precision.

    The verdict is PROVED (exit 0), AGREES where the outputs agree and something else was not shown,
    which the text lists (exit 1; 0 with --accept outputs), or FAIL (exit 1).

    \b
    Example:
        resdeploy verify digits.onnx --reference runs/digits --data digits
        resdeploy verify resnet50.onnx --reference resnet50.pth --arch resnet50 \\
            --provider cuda
        resdeploy verify tuned.onnx --reference resnet50.onnx --artifacts faults
    """
    from resdeploy.api.verify import verify as verify_model
    from resdeploy.cli.progress import show_stages

    is_given = golden is None or reference != SourceSpec()
    written: dict[str, Path] = {}
    with show_stages("verify") as on_stage:
        report = verify_model(
            model,
            reference if is_given else None,
            golden=golden,
            on_stage=on_stage,
            on_fault=written.__setitem__,
            **options,
        )
    for provider, path in written.items():
        click.echo(f"{provider}: the first faulty node is in {path}", err=True)
    emit(report)
