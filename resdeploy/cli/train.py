"""`resdeploy train`."""

from pathlib import Path
from typing import Any

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import POSITIVE, Emit, choice_of, json_option, output_option
from resdeploy.cli.parameter_types import DATA, RECIPE, RUN
from resdeploy.schema.recipes import EpochMetrics, TrainPrecision

_PRECISIONS: dict[str, TrainPrecision] = {"fp32": "float32", "bf16": "bfloat16"}


@click.command(cls=Command)
@click.argument("recipe", type=RECIPE)
@output_option("The run directory.  [default: runs/RECIPE]", required=False, type=RUN)
@click.option("--data", type=DATA, help="Other data than the recipe's: NAME or NAME:PATH.")
@click.option("--epochs", type=POSITIVE, help="Another length than the recipe's.")
@click.option("--seed", type=click.IntRange(min=0), help="Another seed than the recipe's.")
@click.option("--device", default="cpu", help="A torch device: cpu, cuda.")
@click.option(
    "--precision",
    help="Of the passes in training; weights stay fp32.  [default: the recipe's]",
    **choice_of(_PRECISIONS),
)
@click.option(
    "--channels-last/--channels-first",
    default=None,
    help="Memory layout of images.  [default: the recipe's]",
)
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=None,
    help="Let torch.compile make the kernels.  [default: the recipe's]",
)
@click.option("--resume", is_flag=True, help="Go on after the last whole epoch.")
@click.option("--force", is_flag=True, help="Replace an existing run, once the new one is whole.")
@json_option
def train(recipe: str, out: Path | None, emit: Emit, **options: Any) -> None:
    """Train RECIPE, a named model or a recipe.toml, into a run directory.

    \b
    Example:
        resdeploy train digits-resnet8 -o runs/digits
        resdeploy train cifar10-resnet20 --data cifar10:/data/cifar
        resdeploy train imagenet-resnet50 --device cuda \\
            --precision bf16 --channels-last --compile
    """
    from resdeploy.api.train import train as train_recipe
    from resdeploy.cli.progress import show_steps

    with show_steps(f"train {recipe}") as update:
        accuracy = ""

        def on_batch(step: int, num_steps: int, loss: float, rate: float) -> None:
            update(step, num_steps, f"loss {loss:.3f} lr {rate:.4f}{accuracy}")

        def on_epoch(metrics: EpochMetrics) -> None:
            nonlocal accuracy
            accuracy = f" test {metrics.test_accuracy:.2%}"

        report = train_recipe(recipe, out, on_batch=on_batch, on_epoch=on_epoch, **options)
    emit(report)
