"""`resdeploy.train`: a recipe trained into a run directory."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from resdeploy.api.arguments import Data, PathLike, one_of, optional_data, optional_path, silent
from resdeploy.schema.recipes import EpochMetrics, Recipe, TrainPrecision, TrainReport

__all__ = ["train"]


def train(
    recipe: PathLike | Recipe,
    out: PathLike | None = None,
    *,
    data: Data | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
    precision: TrainPrecision | None = None,
    channels_last: bool | None = None,
    compiled: bool | None = None,
    resume: bool = False,
    force: bool = False,
    on_batch: Callable[[int, int, float, float], None] = silent,
    on_epoch: Callable[[EpochMetrics], None] = silent,
) -> TrainReport:
    """Train a recipe into a run directory.

    Args:
        recipe: the name of one that comes with resdeploy, a `recipe.toml`, or a `Recipe`.
        out: the run directory; by default `runs/NAME`.
        data: instead of the recipe's, as are the next two.
        epochs: number of epochs.
        seed: of every random choice.
        device: a torch device.
        precision: of the passes in training; weights stay float32. None for the recipe's, as in
            the next two.
        channels_last: memory layout of images.
        compiled: let torch.compile make the kernels.
        resume: go on after the last whole epoch.
        force: replace an earlier run.
        on_batch: called with step, total steps, loss and learning rate after each step.
        on_epoch: called with the metrics of each epoch.

    Returns:
        The record; `.checkpoint` is the file that the other verbs take, as is the directory.

    Raises:
        ResdeployError: the directory is in use, or the recipe or the data is wrong.
        EnvironmentLacksError: the device is not available here.

    Example:
        >>> resdeploy.train("digits-resnet8", "run").last.test_accuracy
        0.986
    """
    if precision is not None:
        one_of(precision, "precision", get_args(TrainPrecision))
    directory = optional_path(out, "out")
    from resdeploy.recipe import adjust_recipe, load_recipe
    from resdeploy.training.loop import train as train_recipe

    chosen = adjust_recipe(
        recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe)),
        data=optional_data(data),
        epochs=epochs,
        seed=seed,
        precision=precision,
        channels_last=channels_last,
        compiled=compiled,
    )
    return train_recipe(
        chosen,
        directory or Path("runs") / chosen.name,
        resume=resume,
        force=force,
        device=device,
        on_batch=on_batch,
        on_epoch=on_epoch,
    )
