"""`resdeploy bench`."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import click

from resdeploy.cli.bench_options import SESSION_FIELDS, loadgen_spec, with_options
from resdeploy.cli.command import Command
from resdeploy.cli.on_devices import Devices, device_options, finish
from resdeploy.cli.options import (
    POSITIVE,
    Emit,
    Number,
    Percent,
    json_option,
    numbers_option,
    session_options,
    session_was_given,
    source_options,
)
from resdeploy.cli.parameter_types import MODEL
from resdeploy.schema.benchmarks import Scenario
from resdeploy.schema.recipes import SourceSpec
from resdeploy.schema.sessions import SESSION_OPTIONS, SessionSpec

_ABOVE_0 = Number(min=0, min_open=True)


@click.command(cls=Command)
@click.argument("model", type=MODEL)
@numbers_option(
    "--batch",
    "batch_size",
    "Samples of one run; several are timed one after the other.",
    default="1",
)
@numbers_option(
    "--threads",
    "num_threads",
    "Threads of ONNX Runtime; several are timed too.  [default: its choice]",
)
@session_options([name for name in SESSION_OPTIONS if name != "num_threads"])
@click.option(
    "--warmup",
    "num_warmup",
    type=POSITIVE,
    help="Runs of warm-up.  [default: until the times have settled]",
)
@click.option("--runs", "num_runs", default=200, type=POSITIVE)
@click.option(
    "--scenario",
    type=click.Choice(get_args(Scenario)),
    default="single-stream",
    help="One run after the other; all at once; or at random times.",
)
@click.option("--qps", type=_ABOVE_0, help="Mean runs per second, of --scenario server.")
@click.option("--seed", default=0, type=click.IntRange(min=0), help="Of those random times.")
@click.option(
    "--loadgen", is_flag=True, help="Let MLCommons LoadGen drive the runs; needs the extra loadgen."
)
@click.option(
    "--min-duration",
    type=_ABOVE_0,
    metavar="SECONDS",
    help="Of --loadgen: shortest duration; MLPerf asks for 600.  [default: 60]",
)
@click.option(
    "--target-latency",
    type=_ABOVE_0,
    metavar="MS",
    help="Of --loadgen --scenario server: longest time of 99 % of the runs.  [default: 15]",
)
@click.option("--profile", is_flag=True, help="Time each layer too, beside the CPU's peak rates.")
@click.option(
    "--against",
    metavar="MODEL|RUNNER:MODEL|RESULT.json",
    help="Time this model in turn with MODEL, in such a session or by RUNNER: torch (a checkpoint, "
    "or nothing with --model), torch-compile, openvino, onnxruntime (its defaults); or take a "
    "saved --json, which is weaker evidence.",
)
@click.option(
    "--against-option",
    "against_options",
    multiple=True,
    metavar="NAME=VALUE",
    help=f"The other's own option, one of {', '.join(SESSION_FIELDS)}; the same MODEL if no "
    "--against is given.",
)
@click.option(
    "--blocks",
    "num_blocks",
    default=8,
    type=click.IntRange(min=3),
    help="Pairs of fresh processes for --against.",
)
@click.option(
    "--fail-if-slower",
    "max_slowdown",
    metavar="PERCENT",
    type=Percent(min=0, max=1000),
    help="Exit with 1 if MODEL is slower than the other by more than this, such as 3%, and the "
    "whole interval says so.",
)
@source_options("against_source")
@device_options
@json_option
def bench(
    model: Path,
    provider: SessionSpec,
    num_threads: tuple[int, ...],
    loadgen: bool,
    min_duration: float | None,
    target_latency: float | None,
    against: str | None,
    against_options: tuple[str, ...],
    against_source: SourceSpec,
    devices: Devices,
    emit: Emit,
    **options: Any,
) -> None:
    """Time MODEL on this machine, in fresh processes; --json keeps every latency.

    A provider that does not start is an error, never the time of another. MODEL is an ONNX file,
    or a bundle, whose every byte is checked first; with --on the device also checks its numbers.
    Without an option of the session, a bundle runs with the settings that `tune` found here.

    \b
    Example:
        resdeploy bench digits.onnx
        resdeploy bench segmentation.onnx --input 3,480,640
        resdeploy bench resnet50.onnx --provider cuda --batch 1,8,32 --json
        resdeploy bench resnet50.onnx --scenario server --qps 20
        resdeploy bench resnet50.onnx --loadgen --min-duration 600
        resdeploy bench resnet50.onnx --profile --threads 1
        resdeploy bench new.onnx --against old.onnx --fail-if-slower 3%
        resdeploy bench resnet50.onnx --threads 2 --against-option threads=1
        resdeploy bench resnet50.onnx --against torch-compile:resnet50.pth \\
            --arch resnet50
        resdeploy bench digits.zip --on pi@kitchen.local --runs 500
    """
    from resdeploy.api.bench import bench as bench_model
    from resdeploy.cli.progress import show_steps

    compared = against is not None or bool(against_options)
    driver = loadgen_spec(loadgen, min_duration, target_latency)
    if options["max_slowdown"] is not None and not compared:
        raise click.UsageError("--fail-if-slower needs --against or --against-option.")
    if compared and (len(options["batch_size"]) > 1 or len(num_threads) > 1):
        raise click.UsageError("--against takes one --batch and one --threads.")
    if compared and (options["profile"] or loadgen):
        one = "--profile" if options["profile"] else "--loadgen"
        raise click.UsageError(f"{one} is for one model: leave out --against.")
    if devices.given:
        from resdeploy.remote.jobs import bench_job

        if against is not None and ":" in against and not Path(against).exists():
            raise click.UsageError(f"--against {against} is timed here: leave out --on.")
        other_model = None if against is None else Path(against)
        job = bench_job(model, devices.options, against=other_model, compared=compared)
        finish(devices.run(job), emit)
    asked = against_source.inputs or against_source.input_shape
    if against_source.factory is None and against_source.arch is None:
        against_source = dataclasses.replace(against_source, inputs=(), input_shape=None)
    sessions = [dataclasses.replace(provider, num_threads=n) for n in num_threads or (None,)]
    with show_steps(f"bench {model.name}") as on_progress:
        report = bench_model(
            model,
            provider=sessions if compared or session_was_given() else None,
            loadgen=driver,
            input_shape=asked,
            against=against,
            against_source=None if against_source == SourceSpec() else against_source,
            against_provider=with_options(provider, against_options) if against_options else None,
            on_progress=on_progress,
            **options,
        )
    emit(report)
