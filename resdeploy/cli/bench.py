"""`resdeploy bench`."""

from pathlib import Path

import click

from resdeploy.cli.options import (
    json_option,
    openvino_precision_option,
    tf32_option,
    threads_option,
)
from resdeploy.schema import PrecisionHint


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--provider", default="cpu", show_default=True, help="Where to run: cpu, cuda, openvino."
)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--warmup", default=10, show_default=True, type=click.IntRange(min=1))
@click.option("--runs", default=200, show_default=True, type=click.IntRange(min=1))
@threads_option
@tf32_option
@openvino_precision_option
@json_option
def bench(
    model: Path,
    provider: str,
    batch: int,
    warmup: int,
    runs: int,
    threads: int | None,
    tf32: bool,
    precision_hint: PrecisionHint,
    as_json: bool,
) -> None:
    """Time MODEL on this machine, warm-up apart; --json keeps every latency.

    A provider that does not start is an error, never the time of another.

    \b
    Example:
        resdeploy bench digits.onnx
        resdeploy bench resnet50.onnx --provider cuda --batch 32 --json
    """
    from resdeploy.cli.progress import show_steps
    from resdeploy.cli.render import emit
    from resdeploy.schema import BenchSpec, SessionSpec
    from resdeploy.target.bench import bench as run_bench

    spec = BenchSpec(
        session=SessionSpec(
            provider=provider, num_threads=threads, use_tf32=tf32, precision_hint=precision_hint
        ),
        batch_size=batch,
        num_warmup=warmup,
        num_runs=runs,
    )
    with show_steps(f"bench {model.name}") as update:
        result = run_bench(model, spec, on_run=lambda done: update(done, warmup + runs, ""))
    emit(result, as_json=as_json)
