"""`resdeploy evaluate`."""

from pathlib import Path
from typing import Any

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import Emit, json_option, max_drop_option, session_options
from resdeploy.cli.parameter_types import DATA, MODEL


@click.command(cls=Command)
@click.argument("model", type=MODEL)
@click.option(
    "--data", required=True, type=DATA, help="Labelled samples: NAME, NAME:PATH, x.npz, a folder."
)
@click.option(
    "--against",
    type=MODEL,
    metavar="OTHER",
    help="Another model on the same samples, such as its former version or a larger one.",
)
@max_drop_option("Exit with 1 unless MODEL is shown to be at most so many points below OTHER.")
@session_options()
@json_option
def evaluate(
    model: Path, data: str, against: Path | None, max_drop: float | None, emit: Emit, **options: Any
) -> None:
    """Measure the accuracy of MODEL on held-out samples, with its interval. Needs no torch.

    MODEL and OTHER are ONNX files or bundles. The interval of an accuracy is exact
    (Clopper and Pearson). Two models are compared sample by sample: McNemar's exact test, the
    interval of the difference, and every sample whose class changed, with the margin of either
    model. All at 95 % confidence.

    --max-drop asks for proof: the whole interval of the drop must be within POINTS, so that too few
    samples fail like too large a drop.

    \b
    Example:
        resdeploy evaluate digits-bundle --data digits
        resdeploy evaluate int8.onnx --data cifar10:data --against resnet20.onnx \\
            --max-drop 0.5
    """
    if max_drop is not None and against is None:
        raise click.UsageError("--max-drop needs another model to compare with: --against OTHER")
    from resdeploy.api.evaluate import evaluate as evaluate_models
    from resdeploy.cli.progress import show_steps

    with show_steps("evaluate") as on_progress:
        report = evaluate_models(
            model, data, against=against, max_drop=max_drop, on_progress=on_progress, **options
        )
    emit(report)
