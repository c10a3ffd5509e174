"""`resdeploy tune`."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

import click

from resdeploy.cli.bench_options import numbers
from resdeploy.cli.on_devices import DeviceCommand, Devices, device_options, finish
from resdeploy.cli.options import force_option, json_option
from resdeploy.cli.quantize import PRECISIONS
from resdeploy.schema.tunings import Objective, TuneSpec

if TYPE_CHECKING:
    from resdeploy.schema.quants import QuantizedPrecision
    from resdeploy.schema.recipes import DataSpec


def _precisions(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> "tuple[QuantizedPrecision, ...]":
    names = () if text is None else tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in PRECISIONS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(PRECISIONS)}")
    return tuple(PRECISIONS[name] for name in names)


@click.command(cls=DeviceCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The bundle to write, with the settings in it.  [default: only report]",
)
@click.option(
    "--lossless",
    is_flag=True,
    help="Answers must pass verification as float32.  [default, without --max-drop]",
)
@click.option(
    "--max-drop",
    "max_drop_points",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Accuracy may be so many points lower, shown on --data.",
)
@click.option("--data", help="Labelled samples for --max-drop: NAME, NAME:PATH, x.npz, a folder.")
@click.option(
    "--calibration",
    metavar="DATA",
    help="Training samples: make lower precisions of the model, as `quantize` does, and try them.",
)
@click.option(
    "--precision",
    "precisions",
    metavar="P[,P...]",
    callback=_precisions,
    help="What to make: int8, fp16, bf16.  [default: int8; fp16 where a provider computes in it]",
)
@click.option(
    "--variant",
    "variant_paths",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="MODEL.onnx",
    help="Another form of the model, such as what `quantize` wrote. May be given several times.",
)
@click.option(
    "--objective", type=click.Choice(get_args(Objective)), default="latency", show_default=True
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    help="Where to run: cpu, cuda, openvino. May be given several times.  [default: all that start "
    "here]",
)
@click.option(
    "--batch",
    default="1",
    show_default=True,
    metavar="N[,N...]",
    callback=numbers,
    help="Samples of one run; several are for --objective throughput.",
)
@click.option(
    "--threads",
    metavar="N[,N...]",
    callback=numbers,
    help="Threads to try.  [default: ONNX Runtime's choice, 1, and all CPUs]",
)
@click.option(
    "--runs",
    default=100,
    show_default=True,
    type=click.IntRange(min=20),
    help="Of each process, at most: 20 in the first block, then what fits into 3 seconds.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep in this folder what is found: stopped, the same command goes on from there.",
)
@force_option
@device_options
@json_option
def tune(
    bundle: Path,
    output: Path | None,
    lossless: bool,
    max_drop_points: float | None,
    data: str | None,
    calibration: str | None,
    precisions: "tuple[QuantizedPrecision, ...]",
    variant_paths: tuple[Path, ...],
    objective: Objective,
    providers: tuple[str, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    runs: int,
    work: Path | None,
    force: bool,
    devices: Devices,
    as_json: bool,
) -> None:
    """Find the fastest way to run BUNDLE on this machine, within what its answers may lose.

    Every form of the model is tried on every provider that starts here, with other threads, graph
    levels and arithmetics. Whose answers are not good enough is out before the clock starts:
    without --max-drop they must pass `verify` as float32. The rest race in fresh processes, timed
    in turn, and the winner is timed again against ONNX Runtime's defaults, in processes that had no
    part in the race. That last figure is the one to quote.

    With --on and --fleet each device searches by itself; -o has the settings of all of them.

    \b
    Example:
        resdeploy tune digits-bundle
        resdeploy tune digits-bundle -o tuned --max-drop 1 --data digits --calibration digits
        resdeploy tune digits-bundle -o tuned --max-drop 1 --data digits --variant int8.onnx
        resdeploy tune digits-bundle --objective throughput --batch 1,8,32 --work search
        resdeploy tune digits-bundle -o tuned --on pi@kitchen.local --on pi@10.0.0.7
    """
    if lossless and max_drop_points is not None:
        raise click.UsageError("--lossless and --max-drop exclude each other.")
    if (max_drop_points is None) != (data is None):
        raise click.UsageError("--max-drop and --data go together.")
    if calibration is not None and max_drop_points is None:
        raise click.UsageError("--calibration makes what is not lossless: add --max-drop.")
    if precisions and calibration is None:
        raise click.UsageError("--precision needs samples to make it with: --calibration.")
    if len(batch) > 1 and objective != "throughput":
        raise click.UsageError("Several batch sizes can be compared by --objective throughput.")
    if work is not None and devices.given:
        raise click.UsageError("--work is for a search on this machine.")
    from resdeploy.bundle_folder import MANIFEST
    from resdeploy.files import refuse_existing_directory
    from resdeploy.host.data import parse_data

    chosen = None if data is None else parse_data(data)
    calibrated_on = None if calibration is None else parse_data(calibration)
    if output is not None:
        refuse_existing_directory(output, force=force, marker=MANIFEST)
    if devices.given:
        _tune_devices(
            devices, bundle, output, variant_paths, chosen, calibrated_on, force=force, json=as_json
        )

    from resdeploy.bundle_archive import opened_bundle
    from resdeploy.bundle_folder import write_tuned
    from resdeploy.cli.progress import show_steps
    from resdeploy.cli.render import emit
    from resdeploy.host.data import load_labelled
    from resdeploy.target.environment import read_environment
    from resdeploy.target.probe import starting_providers
    from resdeploy.target.tune import tune as run_tune
    from resdeploy.target.tune_journal import Journal, identity_of
    from resdeploy.target.tune_space import read_variants

    environment = read_environment()
    spec = TuneSpec(
        objective=objective,
        max_drop=None if max_drop_points is None else max_drop_points / 100,
        providers=providers or starting_providers(),
        batch_sizes=batch,
        threads=threads or (None, *sorted({1, environment.num_cpus_allowed})),
        num_runs=runs,
    )
    variants = read_variants(variant_paths)
    with (
        opened_bundle(bundle) as opened,
        tempfile.TemporaryDirectory(prefix="resdeploy-") as folder,
        show_steps("tune") as on_progress,
    ):
        journal, made = Journal(), Path(folder)
        if work is not None:
            identity = identity_of(
                opened,
                spec,
                environment,
                variants=variant_paths,
                precisions=precisions,
                data={"data": chosen, "calibration": calibrated_on},
            )
            journal, made = Journal.open(work, identity), work / "made"
            made.mkdir(exist_ok=True)
        if calibrated_on is not None:
            from resdeploy.host.variants import make_variants, precisions_for

            variants += make_variants(
                opened,
                made,
                spec,
                calibrated_on,
                precisions=precisions or precisions_for(spec.providers),
                on_stage=lambda stage: on_progress(0, None, stage),
            )
        report = run_tune(
            opened,
            spec,
            variants,
            load=None if chosen is None else lambda p: load_labelled(chosen, p),
            journal=journal,
            on_progress=on_progress,
        )
        if output is not None:
            files = {one.path.name: one.path for one in variants}
            model = files.get(report.settings.model, opened.model)
            write_tuned(opened, output, [(report.settings, model)], force=force)
    emit(report, as_json=as_json)


def _tune_devices(
    devices: Devices,
    bundle: Path,
    output: Path | None,
    variants: tuple[Path, ...],
    data: "DataSpec | None",
    calibration: "DataSpec | None",
    *,
    force: bool,
    json: bool,
) -> NoReturn:
    """Search on every device; what those that are done have found is written."""
    from resdeploy.bundle_archive import opened_bundle
    from resdeploy.bundle_folder import write_tuned
    from resdeploy.remote.jobs import fetched_model, tune_job

    here = {path.name: path for path in variants}
    with (
        opened_bundle(bundle) as opened,
        tempfile.TemporaryDirectory(prefix="resdeploy-") as temporary,
    ):
        here[opened.model.name] = opened.model
        folder = Path(temporary)
        job = tune_job(
            bundle,
            devices.options,
            variants=variants,
            data=data,
            calibration=calibration,
            folder=folder,
        )
        report = devices.run(job)
        found = [
            (
                tuned.settings,
                here.get(tuned.settings.model) or fetched_model(folder, n, tuned.settings.model),
            )
            for n, tuned in enumerate(result.tune for result in report.devices)
            if tuned is not None and report.devices[n].failure is None
        ]
        if output is not None and found:
            write_tuned(opened, output, found, force=force)
    finish(report, as_json=json)
