"""`resdeploy tune`."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

import click

from resdeploy.cli.bench_options import numbers
from resdeploy.cli.on_devices import DeviceCommand, Devices, device_options, finish
from resdeploy.cli.options import Number, force_option, json_option, providers_option
from resdeploy.cli.quantize import PRECISIONS
from resdeploy.schema.tunings import Objective

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
    type=Number(min=0, max=100),
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
@providers_option(default=(), remark="  [default: all that start here]")
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
    if work is not None and devices.given:
        raise click.UsageError("--work is for a search on this machine.")
    from resdeploy.api.tune import refuse_contradictions
    from resdeploy.api.tune import tune as tune_bundle

    max_drop = None if max_drop_points is None else max_drop_points / 100
    if devices.given:
        from resdeploy.api.arguments import optional_data

        refuse_contradictions(max_drop, data, calibration, precisions, batch, objective)
        _tune_devices(
            devices,
            bundle,
            output,
            variant_paths,
            optional_data(data),
            optional_data(calibration),
            force=force,
            json=as_json,
        )
    from resdeploy.cli.progress import show_steps
    from resdeploy.cli.render import emit

    with show_steps("tune") as on_progress:
        report = tune_bundle(
            bundle,
            output,
            max_drop=max_drop,
            data=data,
            calibration=calibration,
            precisions=precisions,
            variants=variant_paths,
            objective=objective,
            providers=providers,
            batch_sizes=batch,
            num_threads=threads,
            num_runs=runs,
            work=work,
            force=force,
            on_progress=on_progress,
        )
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
    from resdeploy.bundle.archive import opened_bundle
    from resdeploy.bundle.folder import MANIFEST, write_tuned
    from resdeploy.files import refuse_existing_directory
    from resdeploy.remote.jobs import fetched_model, tune_job

    if output is not None:
        refuse_existing_directory(output, force=force, marker=MANIFEST)
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
