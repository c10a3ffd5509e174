"""`resdeploy verify`."""

from pathlib import Path

import click

from resdeploy.cli.options import (
    SourceOptions,
    json_option,
    sessions_options,
    source_options,
)
from resdeploy.errors import EXIT_CHECK_FAILED
from resdeploy.schema.sessions import PrecisionName, SessionSpec


@click.command()
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "--reference", type=click.Path(path_type=Path), help="The trained model MODEL came from."
)
@click.option(
    "--golden",
    "golden_file",
    type=click.Path(path_type=Path),
    help="A golden.npz in its place; needs no torch.",
)
@source_options
@sessions_options
@click.option("--data", help="Verify on held-out samples of this data: NAME, NAME:PATH, x.npz.")
@click.option(
    "--inputs",
    "inputs_path",
    type=click.Path(path_type=Path),
    help="Verify on these inputs: a folder of images or arrays, or one .npy or .npz.",
)
@click.option(
    "--num-inputs", type=click.IntRange(min=1), help="How many inputs.  [default: 32, or all data]"
)
@click.option(
    "--artifacts",
    type=click.Path(path_type=Path),
    help="Where to write the first faulty node of each provider, with its inputs.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="The arithmetic MODEL is said to compute in; it is judged by that one's noise.",
)
@click.option(
    "--conformance/--no-conformance",
    default=True,
    show_default=True,
    help="Also compare batch sizes, graph levels and odd values.",
)
@json_option
def verify(
    model_file: Path,
    reference: Path | None,
    golden_file: Path | None,
    source_of: SourceOptions,
    sessions: "list[SessionSpec]",
    data: str | None,
    inputs_path: Path | None,
    num_inputs: int | None,
    artifacts: Path | None,
    precision: PrecisionName,
    conformance: bool,
    as_json: bool,
) -> None:
    """Prove that MODEL computes, on each provider, what the reference computes in float64.

    The reference is a trained model or another ONNX file. There is no tolerance to choose: the
    wiring is compared, then each weight with its exact value, each layer as it runs with a bound
    from rounding theory, and the outputs with the noise that float32 itself makes in this network,
    input by input and in the mean. What could not be had of this is stated. Lower precision is a
    claim to make, with --precision.

    \b
    Example:
        resdeploy verify digits.onnx --reference runs/digits --data digits
        resdeploy verify resnet50.onnx --reference resnet50.pth --arch resnet50 --provider cuda
        resdeploy verify tuned.onnx --reference resnet50.onnx --artifacts faults
    """
    from resdeploy.api.verify import verify as verify_model
    from resdeploy.cli.progress import show_stages
    from resdeploy.cli.render import emit

    given = golden_file is None or reference is not None or source_of.given
    written: dict[str, Path] = {}
    with show_stages("verify") as on_stage:
        report = verify_model(
            model_file,
            source_of(reference) if given else None,
            golden=golden_file,
            data=data,
            inputs=inputs_path,
            num_inputs=num_inputs,
            provider=sessions,
            precision=precision,
            conformance=conformance,
            artifacts=artifacts,
            on_stage=on_stage,
            on_fault=written.__setitem__,
        )
    for provider, path in written.items():
        click.echo(f"{provider}: the first faulty node is in {path}", err=True)
    emit(report, as_json=as_json)
    if not report.passed:
        raise SystemExit(EXIT_CHECK_FAILED)
