"""`resdeploy tune`."""

from pathlib import Path
from typing import Any, get_args

import click

from resdeploy.cli.command import Command
from resdeploy.cli.on_devices import Devices, device_options, finish
from resdeploy.cli.options import (
    Emit,
    force_option,
    json_option,
    max_drop_option,
    numbers_option,
    output_option,
    precisions_option,
    providers_option,
    work_option,
)
from resdeploy.cli.parameter_types import DATA, MODEL
from resdeploy.schema.tunings import Objective


@click.command(cls=Command)
@click.argument("bundle", type=MODEL)
@output_option(
    "The bundle to write, with the settings in it.  [default: only report]", required=False
)
@click.option(
    "--lossless",
    is_flag=True,
    help="Outputs must pass verification as float32.  [default, without --max-drop]",
)
@max_drop_option("Accuracy may be so many points lower, shown on --data.")
@click.option(
    "--data", type=DATA, help="Labelled samples for --max-drop: NAME, NAME:PATH, x.npz, a folder."
)
@click.option(
    "--calibration",
    type=DATA,
    metavar="DATA",
    help="Training samples: make lower precisions of the model, as `quantize` does, and try them.",
)
@precisions_option
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=MODEL,
    metavar="MODEL.onnx",
    help="Another form of the model, as from `quantize`. May be given several times.",
)
@click.option("--objective", type=click.Choice(get_args(Objective)), default="latency")
@providers_option(default=(), remark="  [default: all that start here]")
@numbers_option(
    "--batch",
    "batch_sizes",
    "Samples of one run; several are for --objective throughput.",
    default="1",
)
@numbers_option(
    "--threads", "num_threads", "Threads to try.  [default: ONNX Runtime's choice, 1, and all CPUs]"
)
@click.option(
    "--runs",
    "num_runs",
    default=100,
    type=click.IntRange(min=20),
    help="Of each process, at most: 20 in the first block, then what fits into 3 seconds.",
)
@work_option("Keep results in this folder: a stopped search goes on from there.")
@force_option
@device_options
@json_option
def tune(
    bundle: Path,
    out: Path | None,
    lossless: bool,
    work: Path | None,
    devices: Devices,
    emit: Emit,
    **options: Any,
) -> None:
    """Find the fastest way to run BUNDLE on this machine, within a budget for its accuracy.

    BUNDLE may be an ONNX file, too: it is bundled with itself as its reference.

    Every form of the model is tried on every provider that starts here, with other threads, graph
    levels and arithmetics. Candidates with worse outputs are excluded before the clock starts:
    without --max-drop they must pass `verify` as float32. The rest race in fresh processes, timed
    in turn, and the winner is timed again against ONNX Runtime's defaults, in processes that had no
    part in the race. That last figure is the one to quote.

    With --on and --fleet each device searches by itself; -o has the settings of all of them.

    \b
    Example:
        resdeploy tune digits-bundle
        resdeploy tune digits-bundle -o tuned --max-drop 1 --data digits \\
            --calibration digits
        resdeploy tune digits-bundle -o tuned --max-drop 1 --data digits \\
            --variant int8.onnx
        resdeploy tune digits-bundle --objective throughput --batch 1,8,32 \\
            --work search
        resdeploy tune digits-bundle -o tuned --on pi@kitchen.local \\
            --on pi@10.0.0.7
    """
    if lossless and options["max_drop"] is not None:
        raise click.UsageError("--lossless and --max-drop exclude each other.")
    if work is not None and devices.given:
        raise click.UsageError("--work is for a search on this machine.")
    from resdeploy.api.tune import tune as tune_bundle
    from resdeploy.cli.progress import show_steps

    if devices.given:
        from resdeploy.remote.jobs import tune_on_devices

        finish(tune_on_devices(devices.run, bundle, out, devices.options, **options), emit)
    with show_steps("tune") as on_progress:
        report = tune_bundle(bundle, out, work=work, on_progress=on_progress, **options)
    emit(report)
