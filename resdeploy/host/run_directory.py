"""The files of a training run, and a run's way back from them.

A run directory holds

    recipe.json              what is trained
    metrics.jsonl            one EpochMetrics a line
    checkpoint.safetensors   the weights after the last whole epoch, with their record
    resume.safetensors       those weights again, with the momentum: what `resume` needs
"""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from resdeploy.errors import ResdeployError
from resdeploy.files import atomic_write
from resdeploy.host.checkpoint import (
    CHECKPOINT_NAME,
    load_into,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.recipes import CheckpointInfo, EpochMetrics, Recipe

__all__ = [
    "check_run_directory",
    "clear_run_directory",
    "restore_state",
    "save_state",
    "write_recipe",
]

RECIPE_NAME = "recipe.json"
METRICS_NAME = "metrics.jsonl"
RESUME_NAME = "resume.safetensors"

_WEIGHT, _MOMENTUM = "weight/", "momentum/"


def clear_run_directory(run_directory: str | Path) -> None:
    """Delete the files of an earlier run, and the directory if nothing else is in it.

    Nothing happens where there is no run; files that `train` did not write are never touched.

    Raises:
        ResdeployError: the directory holds no run but other files, or cannot be emptied.
    """
    directory = Path(run_directory)
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not (directory / RECIPE_NAME).is_file():
        raise ResdeployError(
            f"The directory holds files and no run (no {RECIPE_NAME}): it is not replaced.",
            where=str(directory),
            fix="give another directory, or empty this one yourself",
        )
    try:
        # The recipe last, so that what a failure leaves is still known as a run.
        for name in (RESUME_NAME, CHECKPOINT_NAME, METRICS_NAME, RECIPE_NAME):
            for unfinished in directory.glob(f".{name}.*"):  # left by a killed process
                shutil.rmtree(unfinished)
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise ResdeployError(
            f"The earlier run cannot be removed: {error.strerror}.", where=str(directory)
        ) from error
    with contextlib.suppress(OSError):
        directory.rmdir()


def save_state(
    directory: Path,
    network: nn.Module,
    optimizer: torch.optim.SGD,
    *,
    recipe: Recipe,
    metrics: list[EpochMetrics],
) -> None:
    """Write the state after the last epoch of `metrics`.

    The resume file last: if the process dies before, the epoch is trained again and gives the
    same bits, and the lines that metrics.jsonl has too many are dropped on resume.

    Raises:
        ResdeployError: a file cannot be written; the run can be resumed from the state before.
    """
    last = metrics[-1]
    _write_lines(directory / METRICS_NAME, metrics)
    info = CheckpointInfo(
        model=recipe.model,
        preprocess=recipe.preprocess,
        labels=recipe.labels,
        recipe=recipe,
        epoch=last.epoch,
        test_accuracy=last.test_accuracy,
    )
    save_checkpoint(directory / CHECKPOINT_NAME, network, info)
    tensors = {f"{_WEIGHT}{name}": t for name, t in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"{_MOMENTUM}{name}"] = momentum
    write_tensors(directory / RESUME_NAME, tensors, {"epoch": str(last.epoch)})


def write_recipe(directory: Path, recipe: Recipe) -> None:
    """Make the directory, and write down what is trained in it.

    Raises:
        ResdeployError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / RECIPE_NAME).write_text(dump_json(recipe), encoding="utf-8")
    except OSError as error:
        raise ResdeployError(
            f"The run directory cannot be written: {error.strerror}.",
            where=str(directory),
            fix="give a directory that you may write to",
        ) from error


def _write_lines(path: Path, metrics: list[EpochMetrics]) -> None:
    lines = "".join(f"{dump_json(line, indent=None)}\n" for line in metrics)
    with atomic_write(path, force=True) as temporary:
        temporary.write_text(lines, encoding="utf-8")


def restore_state(
    directory: Path, network: nn.Module, optimizer: torch.optim.SGD
) -> list[EpochMetrics]:
    """Load the state of the last whole epoch, if there is one, and return the metrics up to it.

    Raises:
        ResdeployError: a file is damaged, or is of another network.
    """
    path = directory / RESUME_NAME
    if not path.is_file():
        return []
    tensors, metadata = read_tensors(path)
    try:
        num_epochs = int(metadata["epoch"])
        lines = (directory / METRICS_NAME).read_text(encoding="utf-8").splitlines()
    except (KeyError, ValueError, OSError) as error:
        raise ResdeployError(
            f"The run cannot be resumed: {error}.",
            where=str(directory),
            fix="train again into another directory",
        ) from error
    where = str(directory / METRICS_NAME)
    metrics = [load_json(EpochMetrics, line, where=where) for line in lines[:num_epochs]]
    if [line.epoch for line in metrics] != list(range(1, num_epochs + 1)):
        raise ResdeployError(f"The metrics of epochs 1…{num_epochs} are not all here.", where=where)
    weights = {n.removeprefix(_WEIGHT): t for n, t in tensors.items() if n.startswith(_WEIGHT)}
    load_into(network, weights, source=str(path))
    for name, parameter in network.named_parameters():
        if f"{_MOMENTUM}{name}" in tensors:
            momentum = tensors[f"{_MOMENTUM}{name}"].to(parameter.device)
            optimizer.state[parameter]["momentum_buffer"] = momentum
    return metrics


def check_run_directory(directory: Path, recipe: Recipe, *, resume: bool) -> None:
    """Check that a run may start here, or with `resume` go on here; nothing is written.

    Raises:
        ResdeployError: the directory is in use, or has no run of this recipe to resume.
    """
    in_use = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if not resume:
        if in_use:
            raise ResdeployError(
                "The run directory is in use.",
                where=str(directory),
                fix="resume the run in it, or give another directory",
            )
        return
    path = directory / RECIPE_NAME
    if not path.is_file():
        raise ResdeployError(f"There is no run to resume: no {RECIPE_NAME}.", where=str(directory))
    started = load_json(Recipe, path.read_bytes(), where=str(path))
    if _without_path(started) != _without_path(recipe):
        changed = [
            name
            for name in ("name", "model", "data", "preprocess", "train", "labels")
            if getattr(_without_path(started), name) != getattr(_without_path(recipe), name)
        ]
        raise ResdeployError(
            f"The run was started with another recipe: {', '.join(changed)} differ.",
            where=str(path),
            fix="resume with the same recipe, or train into another directory",
        )


def _without_path(recipe: Recipe) -> Recipe:
    # Data that was moved is still the same data.
    return replace(recipe, data=replace(recipe.data, path=None))
