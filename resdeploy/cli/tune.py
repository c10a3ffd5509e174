"""`resdeploy tune`."""

from pathlib import Path
from typing import get_args

import click

from resdeploy.cli.bench_options import numbers
from resdeploy.cli.options import force_option, json_option
from resdeploy.schema.tunings import Objective, TuneSpec


@click.command()
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
@click.option("--runs", default=100, show_default=True, type=click.IntRange(min=20))
@force_option
@json_option
def tune(
    bundle: Path,
    output: Path | None,
    lossless: bool,
    max_drop_points: float | None,
    data: str | None,
    variant_paths: tuple[Path, ...],
    objective: Objective,
    providers: tuple[str, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    runs: int,
    force: bool,
    as_json: bool,
) -> None:
    """Find the fastest way to run BUNDLE on this machine, within what its answers may lose.

    Every form of the model is tried on every provider that starts here, with other threads, graph
    levels and arithmetics. Whose answers are not good enough is out before the clock starts:
    without --max-drop they must pass `verify` as float32. The rest race in fresh processes, timed
    in turn, and the winner is timed again against ONNX Runtime's defaults, in processes that had no
    part in the race. That last figure is the one to quote.

    \b
    Example:
        resdeploy tune digits-bundle
        resdeploy tune digits-bundle -o tuned --variant int8.onnx --max-drop 1 --data digits
        resdeploy tune digits-bundle --objective throughput --batch 1,8,32
    """
    if lossless and max_drop_points is not None:
        raise click.UsageError("--lossless and --max-drop exclude each other.")
    if (max_drop_points is None) != (data is None):
        raise click.UsageError("--max-drop and --data go together.")
    if len(batch) > 1 and objective != "throughput":
        raise click.UsageError("Several batch sizes can be compared by --objective throughput.")
    from resdeploy.bundle import MANIFEST, write_tuned
    from resdeploy.bundle_archive import opened_bundle
    from resdeploy.cli.progress import show_steps
    from resdeploy.cli.render import emit
    from resdeploy.files import refuse_existing_directory
    from resdeploy.host.data import load_labelled, parse_data
    from resdeploy.target.environment import read_environment
    from resdeploy.target.onnx_wire import stored_precision
    from resdeploy.target.probe import starting_providers
    from resdeploy.target.tune import tune as run_tune
    from resdeploy.target.tune_space import Variant

    num_cpus = read_environment().num_cpus_allowed
    spec = TuneSpec(
        objective=objective,
        max_drop=None if max_drop_points is None else max_drop_points / 100,
        providers=providers or starting_providers(),
        batch_sizes=batch,
        threads=threads or (None, *sorted({1, num_cpus})),
        num_runs=runs,
    )
    chosen = None if data is None else parse_data(data)
    if output is not None:
        refuse_existing_directory(output, force=force, marker=MANIFEST)
    with opened_bundle(bundle) as opened:
        with show_steps("tune") as on_progress:
            report = run_tune(
                opened,
                spec,
                [Variant(path=p, precision=stored_precision(p)) for p in variant_paths],
                load=None if chosen is None else lambda p: load_labelled(chosen, p),
                on_progress=on_progress,
            )
        if output is not None:
            added = {path.name: path for path in variant_paths}.get(report.best.model)
            write_tuned(opened, output, report.settings, model=added, force=force)
    emit(report, as_json=as_json)
