"""`resdeploy verify`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resdeploy.cli.options import (
    SourceOptions,
    json_option,
    sessions_options,
    source_options,
)
from resdeploy.errors import EXIT_CHECK_FAILED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resdeploy.graph.certify import Reference
    from resdeploy.graph.node_local import Array, Run
    from resdeploy.schema.recipes import Preprocess
    from resdeploy.schema.sessions import PrecisionName, SessionSpec
    from resdeploy.schema.verdicts import VerifyReport


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
    precision: "PrecisionName",
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
    if golden_file is not None and (
        reference or data or inputs_path or num_inputs or source_of.given
    ):
        raise click.UsageError("--golden has its own inputs and reference")
    if data and inputs_path:
        raise click.UsageError("--data and --inputs each say what to verify on: give one")
    is_onnx = reference is not None and reference.suffix.lower() == ".onnx"
    if is_onnx and (data or source_of.given):
        raise click.UsageError("an ONNX reference is evaluated on --inputs, or on seeded inputs")
    from resdeploy.cli.progress import show_stages
    from resdeploy.cli.render import emit
    from resdeploy.schema.sessions import SessionSpec
    from resdeploy.target.verify import open_sessions, verify_sessions

    original: Reference | str | None = None
    with show_stages("verify") as on_stage:
        on_stage("open sessions")
        # Before the reference, which takes longer: a provider that does not start ends it here.
        opened = open_sessions(model_file, sessions)
        on_stage("float64 reference")
        if golden_file is not None:
            from resdeploy.golden_file import load_golden

            golden = load_golden(golden_file)
        elif is_onnx and reference is not None:
            from resdeploy.graph.reference_file import load_reference
            from resdeploy.target.run import run_session
            from resdeploy.target.session import open_session

            as_it_stands = SessionSpec(graph_level="disabled", num_threads=sessions[0].num_threads)
            golden, original = load_reference(
                reference,
                num_inputs=num_inputs or 32,
                given=_read_inputs(inputs_path, None, num_inputs),
                run_rows=lambda model, inputs: run_session(
                    open_session(model, as_it_stands), inputs
                ),
            )
        else:
            from resdeploy.host.build import load_source
            from resdeploy.host.data import parse_data
            from resdeploy.host.embedded import embed_preprocess
            from resdeploy.host.golden import golden_for
            from resdeploy.host.reference import reference_graph
            from resdeploy.target.session import takes_pixels

            source = load_source(source_of(reference))
            if takes_pixels(opened[0]):
                source = embed_preprocess(source)
            chosen = None if data is None else parse_data(data)
            preprocess = source.info.preprocess if source.info is not None else None
            golden = golden_for(
                source,
                data=chosen,
                given=_read_inputs(inputs_path, preprocess, num_inputs),
                num_inputs=num_inputs,
            )
            original = _or_reason(lambda: reference_graph(source, golden))
        on_stage("run")
        report = verify_sessions(
            model_file, golden, opened, precision=precision, conformance=conformance
        )
        if golden_file is None:
            on_stage("certify weights and nodes")
            report = _certify(report, model_file, original, golden.inputs, precision, artifacts)
    emit(report, as_json=as_json)
    if not report.passed:
        raise SystemExit(EXIT_CHECK_FAILED)


def _read_inputs(
    path: Path | None, preprocess: "Preprocess | None", most: int | None
) -> "tuple[NDArray[np.float32], str] | None":
    """Return what --inputs names, and what it is, for the record; None if nothing was named."""
    if path is None:
        return None
    from resdeploy.target.samples import read_inputs

    inputs = read_inputs(path, preprocess, most=most)
    return inputs, f"{len(inputs)} inputs of {path.name}"


def _or_reason(make: "Callable[[], Reference]") -> "Reference | str":
    """Return the reference graph, or why the model has none: its outputs can still be judged."""
    from resdeploy.errors import UnsupportedModelError

    try:
        return make()
    except UnsupportedModelError as error:
        return error.what


def _run_on(spec: "SessionSpec") -> "Run":
    from resdeploy.target.session import open_session

    return lambda model, inputs: open_session(model, spec).run(inputs)


def _certify(
    report: "VerifyReport",
    model_file: Path,
    original: "Reference | str | None",
    inputs: "Array",
    precision: "PrecisionName",
    artifacts: Path | None,
) -> "VerifyReport":
    from resdeploy.graph.certify import add_certificate, certify_file
    from resdeploy.graph.fault_file import write_fault
    from resdeploy.graph.fold_file import load_onnx

    model = load_onnx(model_file)
    candidate = certify_file(model, original, precision=precision)
    report, faults = add_certificate(report, candidate, inputs, _run_on, precision=precision)
    if artifacts is not None:
        for provider, fault in faults.items():
            path = write_fault(artifacts / provider, fault, model)
            click.echo(f"{provider}: the first faulty node is in {path}", err=True)
    return report
