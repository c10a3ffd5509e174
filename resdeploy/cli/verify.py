"""`resdeploy verify`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resdeploy.cli.options import (
    SourceOptions,
    json_option,
    provider_option,
    source_options,
    tf32_option,
    threads_option,
)
from resdeploy.errors import EXIT_CHECK_FAILED

if TYPE_CHECKING:
    from resdeploy.schema import PrecisionName


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
@provider_option
@click.option("--data", help="Verify on held-out samples of this data: NAME, NAME:PATH, x.npz.")
@click.option(
    "--num-inputs", type=click.IntRange(min=1), help="How many inputs.  [default: 32, or all data]"
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="The arithmetic MODEL is said to compute in; it is judged by that one's noise.",
)
@threads_option
@tf32_option
@json_option
def verify(
    model_file: Path,
    reference: Path | None,
    golden_file: Path | None,
    source_of: SourceOptions,
    providers: tuple[str, ...],
    data: str | None,
    num_inputs: int | None,
    precision: "PrecisionName",
    threads: int | None,
    tf32: bool,
    as_json: bool,
) -> None:
    """Prove that MODEL computes, on each provider, what the reference computes in float64.

    The verdict is PASS if the error is at most 4 times the noise that float32 arithmetic itself
    makes in this network on these inputs, if no output strays further than rounding carries, and
    if no part of the error is the same for every input. There is no tolerance to choose; lower
    precision is a claim to make, with --precision.

    \b
    Example:
        resdeploy verify digits.onnx --reference runs/digits --data digits
        resdeploy verify resnet50.onnx --reference resnet50.pth --arch resnet50 --provider cuda
    """
    if golden_file is not None and (reference or data or num_inputs or source_of.given):
        raise click.UsageError("--golden has its own inputs and reference")
    from resdeploy.cli.progress import show_stages
    from resdeploy.cli.render import emit
    from resdeploy.schema import SessionSpec
    from resdeploy.target.verify import open_sessions, verify_sessions

    with show_stages("verify") as on_stage:
        on_stage("open sessions")
        # Before the reference, which takes longer: a provider that does not start ends it here.
        specs = [
            SessionSpec(provider=name, num_threads=threads, use_tf32=tf32) for name in providers
        ]
        sessions = open_sessions(model_file, specs)
        on_stage("float64 reference")
        if golden_file is not None:
            from resdeploy.golden_file import load_golden

            golden = load_golden(golden_file)
        else:
            from resdeploy.host.build import load_source
            from resdeploy.host.data import parse_data
            from resdeploy.host.golden import golden_for

            chosen = None if data is None else parse_data(data)
            golden = golden_for(
                load_source(source_of(reference)), data=chosen, num_inputs=num_inputs
            )
        on_stage("run")
        report = verify_sessions(model_file, golden, sessions, precision=precision)
    emit(report, as_json=as_json)
    if not report.passed:
        raise SystemExit(EXIT_CHECK_FAILED)
