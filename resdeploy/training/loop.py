"""Training of a recipe: stochastic gradient descent with momentum, linear warm-up, cosine decay.

The files of a run are described in `resdeploy.training.run_directory`.

Everything random is a function of (seed, epoch), so a run that was stopped and resumed gives the
same bits as one that was not, on the same machine with the same number of threads. The result is
the last epoch's, never the best one's: the test samples choose nothing.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from resdeploy.data.datasets import epoch_order, load_dataset
from resdeploy.data.preprocess import preprocess_batch
from resdeploy.data.samples import Dataset
from resdeploy.errors import EnvironmentLacksError, ResdeployError
from resdeploy.networks import build_network, input_shape
from resdeploy.schema.recipes import EpochMetrics, Recipe, TrainReport, TrainSpec
from resdeploy.training.augment import augment_batch, check_augment
from resdeploy.training.checkpoint import CHECKPOINT_NAME
from resdeploy.training.run_directory import (
    begin_run,
    replace_run,
    restore_state,
    save_state,
    working_directory,
)

__all__ = ["evaluate_network", "learning_rate_at", "train"]

_EVALUATION_BATCH = 256
_SMALL_SAMPLE = 1024

OnBatch = Callable[[int, int, float, float], None]


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """State of one training run; `forward` is the network, compiled or not: the same weights."""

    recipe: Recipe
    directory: Path
    dataset: Dataset
    network: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.SGD
    device: torch.device
    fill: tuple[float, ...]


def train(
    recipe: Recipe,
    run_directory: str | Path,
    *,
    resume: bool = False,
    force: bool = False,
    device: str = "cpu",
    num_threads: int | None = None,
    on_epoch: Callable[[EpochMetrics], None] = lambda metrics: None,
    on_batch: OnBatch = lambda step, num_steps, loss, rate: None,
) -> TrainReport:
    """Train a recipe into a run directory and return the last epoch's metrics.

    Interrupted at any moment, the directory holds the state after the last whole epoch. A run that
    it held before is there until the new one is whole.

    `run_directory` does not exist yet or is empty; with `resume`, an earlier run of the same recipe
    left it, or is there to be replaced; with `force`, it holds any run, which is replaced once the
    last epoch is trained. `num_threads` is for torch's CPU operators during this call; None is one
    where samples have fewer than 1024 values, and torch's own choice otherwise. `on_epoch` is
    called with the metrics of each epoch once its state is on disk; `on_batch` after each step with
    (step, num_steps, loss, learning_rate), where steps count from 1 over the whole run.

    Raises:
        ResdeployError: the directory is in use; `resume` and the directory is of another recipe;
            the recipe contradicts itself or its data; the data cannot be read; or the loss is no
            longer finite, in which case the last good checkpoint is kept.
        EnvironmentLacksError: the device is not available here, or torch cannot compile here.
    """
    directory = Path(run_directory)
    _check_recipe(recipe)
    target = _open_device(device)
    place = working_directory(directory, recipe, resume=resume, force=force)
    dataset = load_dataset(recipe.data, recipe.preprocess)
    _check_dataset(dataset, recipe)
    # For tiny samples more threads gain little, lose much as soon as anything else runs on the
    # machine (each operator waits for the slowest), and make the bits depend on the core count.
    small = math.prod(recipe.preprocess.input_shape) < _SMALL_SAMPLE
    with (
        _threads(num_threads or (1 if small else torch.get_num_threads())),
        torch.random.fork_rng([target.index or 0] if target.type == "cuda" else []),
    ):
        run = _start(recipe, place, dataset, target)
        metrics = restore_state(place, run.network, run.optimizer) if resume else []
        if not metrics:
            begin_run(place, recipe)
        for epoch in range(len(metrics) + 1, recipe.train.epochs + 1):
            metrics.append(_train_epoch(run, epoch, on_batch))
            save_state(place, run.network, run.optimizer, recipe=recipe, metrics=metrics)
            on_epoch(metrics[-1])
    if place != directory:
        replace_run(directory)
    return TrainReport(
        recipe=recipe,
        run_directory=str(directory),
        checkpoint=str(directory / CHECKPOINT_NAME),
        num_train=len(dataset.train_y),
        num_test=len(dataset.test_y),
        num_parameters=sum(p.numel() for p in run.network.parameters()),
        last=metrics[-1],
    )


def learning_rate_at(step: int, num_steps: int, num_warmup: float, peak: float) -> float:
    """Return the learning rate of one step, counted from 0.

    It rises linearly over the first `num_warmup` steps, is `peak` at the next, and falls along half
    a cosine that would reach 0 at step `num_steps`.
    """
    if step < num_warmup:
        return peak * (step + 1) / (num_warmup + 1)
    progress = (step - num_warmup) / (num_steps - num_warmup)
    return peak * (1 + math.cos(math.pi * progress)) / 2


def evaluate_network(
    network: nn.Module, raw: NDArray[Any], y: NDArray[np.int64], recipe: Recipe
) -> tuple[float, float]:
    """Return (mean cross-entropy in nats, accuracy) of raw samples, in evaluation mode.

    The network is left in the mode it was in.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    loss, num_correct = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(y), _EVALUATION_BATCH):
            part = slice(start, start + _EVALUATION_BATCH)
            x = torch.from_numpy(preprocess_batch(raw[part], recipe.preprocess))
            logits_NK, labels_N = network(x.to(device)), torch.from_numpy(y[part]).to(device)
            loss += float(F.cross_entropy(logits_NK, labels_N, reduction="sum"))
            num_correct += int((logits_NK.argmax(1) == labels_N).sum())
    network.train(was_training)
    return loss / len(y), num_correct / len(y)


# --- one run -------------------------------------------------------------------------------------


def _start(recipe: Recipe, directory: Path, dataset: Dataset, device: torch.device) -> _Run:
    torch.manual_seed(_derived_seed(recipe.train.seed, 0))
    network = build_network(recipe.model).to(device)
    if recipe.train.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocess = recipe.preprocess
    mean, std = np.broadcast_arrays(preprocess.mean, preprocess.std)
    return _Run(
        recipe=recipe,
        directory=directory,
        dataset=dataset,
        network=network,
        forward=_compiled(network) if recipe.train.compile else network,
        optimizer=_build_optimizer(network, recipe.train),
        device=device,
        fill=tuple(float(value) for value in -mean / std),
    )


def _compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return `network`, compiled at its first call; raises EnvironmentLacksError then."""
    compiled = torch.compile(network)

    def forward(x: Tensor) -> Tensor:
        from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415 - slow, and seldom asked

        try:
            logits: Tensor = compiled(x)
        except TorchDynamoException as error:
            raise EnvironmentLacksError(
                f"torch cannot compile here: {str(error).strip().partition(chr(10))[0]}",
                fix="install a C++ compiler (g++), or train with --no-compile",
            ) from error
        return logits

    return forward


def _build_optimizer(network: nn.Module, spec: TrainSpec) -> torch.optim.SGD:
    # Decay shrinks the maps. The vectors are biases and the gains and offsets of norms, whose
    # size follows from the data.
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [
            {"params": matrices, "weight_decay": spec.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=spec.learning_rate,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
    )


def _train_epoch(run: _Run, epoch: int, on_batch: OnBatch) -> EpochMetrics:
    spec, data = run.recipe.train, run.dataset
    started = time.perf_counter()
    # Dropout and its like draw from torch's own generator, augmentation from this one.
    torch.manual_seed(_derived_seed(spec.seed, epoch))
    generator = torch.Generator().manual_seed(_derived_seed(spec.seed, epoch, 1))
    order = epoch_order(len(data.train_y), seed=spec.seed, epoch=epoch)
    batches = _batches(order, spec.batch_size)
    num_steps, num_warmup = spec.epochs * len(batches), spec.warmup_epochs * len(batches)
    loss_sum, num_correct, num_seen, rate = 0.0, 0, 0, 0.0
    run.network.train()
    for index, chosen in enumerate(batches):
        step = (epoch - 1) * len(batches) + index
        rate = learning_rate_at(step, num_steps, num_warmup, spec.learning_rate)
        loss, correct = _train_step(run, chosen, rate, generator)
        _check_finite(loss, run, epoch, f"step {index + 1} of {len(batches)}")
        loss_sum += loss * len(chosen)
        num_correct += correct
        num_seen += len(chosen)
        on_batch(step + 1, num_steps, loss, rate)
    test_loss, test_accuracy = evaluate_network(run.network, data.test_x, data.test_y, run.recipe)
    _check_finite(test_loss, run, epoch, "the test samples")
    return EpochMetrics(
        epoch=epoch,
        train_loss=loss_sum / num_seen,
        train_accuracy=num_correct / num_seen,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        learning_rate=rate,
        duration_s=time.perf_counter() - started,
    )


def _train_step(
    run: _Run, chosen: NDArray[np.int64], rate: float, generator: torch.Generator
) -> tuple[float, int]:
    """Return the loss and the number of correct answers, both before the step is taken."""
    raw, y = run.dataset.train_x[chosen], torch.from_numpy(run.dataset.train_y[chosen])
    x = torch.from_numpy(preprocess_batch(raw, run.recipe.preprocess)).to(run.device)
    x = augment_batch(x, run.recipe.data.augment, generator, fill=run.fill)
    spec = run.recipe.train
    if spec.channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    is_half = spec.precision == "bfloat16"
    with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=is_half):
        logits_NK = run.forward(x)
    logits_NK, labels_N = logits_NK.float(), y.to(run.device)
    loss = F.cross_entropy(logits_NK, labels_N, label_smoothing=spec.label_smoothing)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    return float(loss.detach()), int((logits_NK.argmax(1) == labels_N).sum())


def _batches(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    # BatchNorm has no variance to take of a single vector: such a rest waits for its next chance.
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches.pop()
    return batches


def _derived_seed(*key: int) -> int:
    # Independent streams from small numbers; 63 bits, as torch takes.
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def _check_finite(value: float, run: _Run, epoch: int, place: str) -> None:
    if math.isfinite(value):
        return
    kept = f"; the checkpoint is that of epoch {epoch - 1}" if epoch > 1 else ""
    raise ResdeployError(
        f"The loss is {value}: training has diverged{kept}.",
        where=f"{run.directory}, epoch {epoch}, {place}",
        fix=f"lower learning_rate (now {run.recipe.train.learning_rate}) or raise warmup_epochs",
    )


# --- checks --------------------------------------------------------------------------------------


def _check_recipe(recipe: Recipe) -> None:
    spec = recipe.train
    rules = {
        "epochs": spec.epochs >= 1,
        "batch_size": spec.batch_size >= 2,
        "learning_rate": math.isfinite(spec.learning_rate) and spec.learning_rate > 0,
        "momentum": 0 <= spec.momentum < 1,
        "nesterov": not spec.nesterov or spec.momentum > 0,
        "weight_decay": math.isfinite(spec.weight_decay) and spec.weight_decay >= 0,
        "warmup_epochs": 0 <= spec.warmup_epochs < spec.epochs,
        "label_smoothing": 0 <= spec.label_smoothing < 1,
        "seed": spec.seed >= 0,
    }
    for name, holds in rules.items():
        if not holds:
            raise ResdeployError(
                f"{name} = {getattr(spec, name)} makes no sense here.", where="train." + name
            )
    if recipe.data.split_seed < 0:
        raise ResdeployError("split_seed must be zero or more.", where="data.split_seed")
    shape = recipe.preprocess.input_shape
    check_augment(recipe.data.augment, sample_ndim=len(shape))
    expected = input_shape(recipe.model)
    # Networks for images take any height and width; vectors have one length.
    if (len(expected), expected[0]) != (len(shape), shape[0]):
        raise ResdeployError(
            f"{recipe.model.arch} takes inputs like {expected}; preprocess makes {shape}.",
            where="preprocess.input_shape",
            fix="give the network the option in_channels or in_features, or change input_shape",
        )


def _check_dataset(dataset: Dataset, recipe: Recipe) -> None:
    highest = max(dataset.train_y.max(), dataset.test_y.max())
    if min(dataset.train_y.min(), dataset.test_y.min()) < 0 or highest >= recipe.model.num_classes:
        raise ResdeployError(
            f"The data has labels up to {highest}; the network has {recipe.model.num_classes} "
            "classes, from 0.",
            where="model.num_classes",
        )
    if recipe.labels and dataset.labels and recipe.labels != dataset.labels:
        pairs = zip(recipe.labels, dataset.labels, strict=False)
        first = next((f"{ours!r} / {theirs!r}" for ours, theirs in pairs if ours != theirs), "")
        raise ResdeployError(
            f"The labels of the recipe and of the data differ: {first or 'in number'}.",
            where="labels.txt",
            fix="write the data's labels, in its order, to the labels.txt of the recipe",
        )
    if len(dataset.train_y) < 2:
        raise ResdeployError("There are fewer than two training samples.", where="data")


def _open_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EnvironmentLacksError(
            f"torch cannot use the device {name!r}: {str(error).partition(chr(10))[0]}",
            fix="train on the device cpu",
        ) from error
    return device


@contextlib.contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
