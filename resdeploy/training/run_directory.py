"""The files of a training run, and a run's way back from them.

A run directory holds

    recipe.json              the recipe
    metrics.jsonl            one EpochMetrics a line
    checkpoint.safetensors   the weights after the last whole epoch, with their record
    resume.safetensors       those weights again, with the momentum, for `resume`
    .replacement/            all of that, of a run that is to replace this one and is not whole yet
    .whole/                  that run once it is whole, while its files take their places
"""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import nn

from resdeploy.errors import ResdeployError
from resdeploy.files import atomic_write
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.recipes import CheckpointInfo, EpochMetrics, Recipe
from resdeploy.training.checkpoint import (
    CHECKPOINT_NAME,
    load_into,
    read_tensors,
    save_checkpoint,
    write_tensors,
)

__all__ = ["begin_run", "replace_run", "restore_state", "save_state", "working_directory"]

RECIPE_NAME = "recipe.json"
METRICS_NAME = "metrics.jsonl"
RESUME_NAME = "resume.safetensors"
_REPLACEMENT, _WHOLE = ".replacement", ".whole"

_WEIGHT, _MOMENTUM = "weight/", "momentum/"


def working_directory(directory: Path, recipe: Recipe, *, resume: bool, force: bool) -> Path:
    """Return the folder that a run writes to until it is whole: `directory`, or one inside it.

    A run that replaces another has a folder of its own there, which `resume` goes on with. Nothing
    is written but the rest of a replacement that was stopped between two files.

    Raises:
        ResdeployError: the directory is in use and `force` is not given, or holds no run; or
            has no run of this recipe to resume.
    """
    if resume and force:
        raise ResdeployError(
            "A run is resumed or replaced, not both.", fix="leave out --resume, or --force"
        )
    _finish_replacement(directory)
    replacement = directory / _REPLACEMENT
    if resume:
        place = replacement if (replacement / RECIPE_NAME).is_file() else directory
        _check_resumable(place, recipe)
        return place
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return directory
    if not force:
        raise ResdeployError(
            "The run directory is in use.",
            where=str(directory),
            fix="resume the run in it, replace it with --force, or give another directory",
        )
    if not (directory / RECIPE_NAME).is_file():
        raise ResdeployError(
            f"The directory holds files and no run (no {RECIPE_NAME}): it is not replaced.",
            where=str(directory),
            fix="give another directory, or empty this one yourself",
        )
    return replacement


def replace_run(directory: Path) -> None:
    """Move the whole new run inside `directory` over the old one.

    Files that `train` did not write are never touched.

    Raises:
        ResdeployError: a file cannot be replaced; the next run here goes on with it.
    """
    # From this rename on, the new run is the one that is there: killed, the next start goes on.
    (directory / _REPLACEMENT).rename(directory / _WHOLE)
    _finish_replacement(directory)


def _finish_replacement(directory: Path) -> None:
    whole = directory / _WHOLE
    if not whole.is_dir():
        return
    try:
        for name in (RESUME_NAME, CHECKPOINT_NAME, METRICS_NAME, RECIPE_NAME):
            for unfinished in directory.glob(f".{name}.*"):  # left by a killed process
                shutil.rmtree(unfinished)
            if (whole / name).is_file():
                (whole / name).replace(directory / name)
        shutil.rmtree(whole)
    except OSError as error:
        raise ResdeployError(
            f"The earlier run cannot be replaced: {error.strerror}.", where=str(directory)
        ) from error


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
    with atomic_write(directory / METRICS_NAME, force=True) as temporary:
        lines = "".join(f"{dump_json(line, indent=None)}\n" for line in metrics)
        temporary.write_text(lines, encoding="utf-8")
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
        if (momentum := optimizer.state[parameter].get("momentum_buffer")) is not None:
            tensors[f"{_MOMENTUM}{name}"] = momentum
    write_tensors(directory / RESUME_NAME, tensors, {"epoch": str(last.epoch)})


def begin_run(directory: Path, recipe: Recipe) -> None:
    """Make the directory with its recipe; an unfinished replacement is removed.

    Raises:
        ResdeployError: it cannot be written.
    """
    try:
        if directory.name == _REPLACEMENT and directory.is_dir():
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / RECIPE_NAME).write_text(dump_json(recipe), encoding="utf-8")
    except OSError as error:
        raise ResdeployError(
            f"The run directory cannot be written: {error.strerror}.",
            where=str(directory),
            fix="give a directory that you may write to",
        ) from error


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
        if (momentum := tensors.get(f"{_MOMENTUM}{name}")) is not None:
            optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)
    return metrics


def _check_resumable(directory: Path, recipe: Recipe) -> None:
    """Raise unless the directory has a run of this recipe."""
    path = directory / RECIPE_NAME
    if not path.is_file():
        raise ResdeployError(f"There is no run to resume: no {RECIPE_NAME}.", where=str(directory))
    started = load_json(Recipe, path.read_bytes(), where=str(path))
    # Data that was moved is still the same data.
    one, other = (replace(r, data=replace(r.data, path=None)) for r in (started, recipe))
    names = [field.name for field in fields(Recipe)]
    if changed := [name for name in names if getattr(one, name) != getattr(other, name)]:
        raise ResdeployError(
            f"The run was started with another recipe: {', '.join(changed)} differ.",
            where=str(path),
            fix="resume with the same recipe, or train into another directory",
        )
