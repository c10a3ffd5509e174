"""Training: a run is a function of its recipe, whether or not it was interrupted."""

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from resdeploy.data.datasets import load_labelled
from resdeploy.errors import EnvironmentLacksError, ResdeployError
from resdeploy.networks import build_network
from resdeploy.recipe import load_recipe
from resdeploy.schema.codec import load_json
from resdeploy.schema.recipes import (
    AugmentSpec,
    DataSpec,
    EpochMetrics,
    ModelSpec,
    Preprocess,
    Recipe,
    TrainSpec,
)
from resdeploy.training import loop as train_module
from resdeploy.training import run_directory
from resdeploy.training.checkpoint import load_checkpoint, load_into
from resdeploy.training.loop import evaluate_network, learning_rate_at, train
from resdeploy.weights.foreign_file import read_foreign
from resdeploy.weights.foreign_network import weights_for

EVERY_FILE = {"recipe.json", "metrics.jsonl", "checkpoint.safetensors", "resume.safetensors"}


@pytest.fixture
def recipe(tmp_path):
    """A tiny network on 90 images of 8 x 8 that three classes are easily told apart in."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = rng.integers(0, 120, (90, 1, 8, 8), dtype=np.uint8) + (60 * y[:, None, None, None])
    np.savez(
        tmp_path / "data.npz",
        train_x=x[:60].astype(np.uint8),
        train_y=y[:60],
        test_x=x[60:].astype(np.uint8),
        test_y=y[60:],
    )
    return Recipe(
        name="tiny",
        model=ModelSpec(arch="resnet8_tiny", num_classes=3, options={"in_channels": 1, "width": 4}),
        data=DataSpec(
            name="npz",
            path=str(tmp_path / "data.npz"),
            augment=AugmentSpec(shift_px=1, horizontal_flip=True, noise_std=0.1),
        ),
        preprocess=Preprocess(input_shape=(1, 8, 8), divisor=255, mean=(0.4,), std=(0.2,)),
        train=TrainSpec(epochs=4, batch_size=16, learning_rate=0.05, label_smoothing=0.1),
        labels=("a", "b", "c"),
    )


def change(recipe, **train):
    return replace(recipe, train=replace(recipe.train, **train))


def weights(directory):
    return load_checkpoint(directory)[0]


def assert_same_bits(left, right):
    assert set(left) == set(right)
    for name in left:
        assert left[name].numpy().tobytes() == right[name].numpy().tobytes(), name


def without_time(metrics):
    return replace(metrics, duration_s=0.0)


def read_metrics(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [without_time(load_json(EpochMetrics, line, where="metrics")) for line in lines]


class Stop(Exception):  # noqa: N818
    pass


def stop_at(epoch, error=Stop):
    def on_epoch(metrics):
        if metrics.epoch == epoch:
            raise error

    return on_epoch


def stop_at_step(last_step, error=KeyboardInterrupt):
    def on_batch(step, num_steps, loss, rate):
        if step == last_step:
            raise error

    return on_batch


def test_a_run_leaves_its_files_and_reports_the_last_epoch(recipe, tmp_path):
    epochs, steps = [], []
    report = train(
        recipe,
        tmp_path / "run",
        on_epoch=epochs.append,
        on_batch=lambda *values: steps.append(values),
    )
    assert {p.name for p in (tmp_path / "run").iterdir()} == EVERY_FILE
    assert report.recipe == recipe
    assert (report.num_train, report.num_test) == (60, 30)
    assert report.last == epochs[-1]
    assert [m.epoch for m in epochs] == [1, 2, 3, 4]
    assert read_metrics(tmp_path / "run") == [without_time(m) for m in epochs]
    assert [step for step, *_ in steps] == list(range(1, 17))
    assert {num for _, num, _, _ in steps} == {16}
    assert steps[-1][3] == report.last.learning_rate
    network = build_network(recipe.model)
    assert report.num_parameters == sum(p.numel() for p in network.parameters())
    state_dict, info = load_checkpoint(report.checkpoint)
    assert info.recipe == recipe
    assert (info.model, info.preprocess) == (recipe.model, recipe.preprocess)
    assert (info.labels, info.epoch) == (recipe.labels, 4)
    assert info.test_accuracy == report.last.test_accuracy
    load_into(network, state_dict, source="checkpoint")
    loss, accuracy = evaluate_network(network, *load_evaluation_of(recipe), recipe)
    assert accuracy == report.last.test_accuracy
    assert loss == pytest.approx(report.last.test_loss)


def load_evaluation_of(recipe):
    samples = load_labelled(recipe.data, recipe.preprocess)
    return samples.x, samples.y


def test_training_learns(recipe, tmp_path):
    report = train(change(recipe, epochs=12), tmp_path / "run")
    assert report.last.test_accuracy > 0.9
    assert report.last.train_loss < read_metrics(tmp_path / "run")[0].train_loss


def test_the_same_seed_gives_the_same_bits_whatever_the_global_state(recipe, tmp_path):
    torch.manual_seed(1)
    train(recipe, tmp_path / "a")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    train(recipe, tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
    train(change(recipe, seed=1), tmp_path / "c")
    assert not torch.equal(
        weights(tmp_path / "a")["conv1.weight"], weights(tmp_path / "c")["conv1.weight"]
    )


@pytest.mark.parametrize(
    "interruption",
    [
        {"on_epoch": stop_at(2)},
        {"on_batch": stop_at_step(10)},
        {"on_batch": stop_at_step(2)},
        {"on_epoch": stop_at(4)},
    ],
    ids=["between epochs", "in an epoch", "in the first epoch", "at the end"],
)
def test_a_resumed_run_gives_the_same_bits_as_one_without_a_break(recipe, tmp_path, interruption):
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises((Stop, KeyboardInterrupt)):
        train(recipe, tmp_path / "run", **interruption)
    resumed = train(recipe, tmp_path / "run", resume=True)
    assert_same_bits(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "whole")
    assert without_time(resumed.last) == without_time(whole.last)
    assert {p.name for p in (tmp_path / "run").iterdir()} == EVERY_FILE


def test_two_threads_resume_to_the_same_bits_too(recipe, tmp_path):
    short = change(recipe, epochs=2)
    train(short, tmp_path / "whole", num_threads=2)
    with pytest.raises(Stop):
        train(short, tmp_path / "run", num_threads=2, on_epoch=stop_at(1))
    train(short, tmp_path / "run", num_threads=2, resume=True)
    assert_same_bits(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_dropout_is_resumed_to_the_same_bits(recipe, tmp_path, monkeypatch):
    """It draws from torch's own generator, whose state no file holds."""

    def build_with_dropout(spec):
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, spec.num_classes))

    monkeypatch.setattr(train_module, "build_network", build_with_dropout)
    train(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        train(recipe, tmp_path / "run", on_epoch=stop_at(1))
    train(recipe, tmp_path / "run", resume=True)
    assert_same_bits(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_process_that_died_between_two_files_resumes_to_the_same_bits(
    recipe, tmp_path, monkeypatch
):
    """The resume file is the last to be written: the others are then an epoch ahead of it."""
    train(recipe, tmp_path / "whole")

    def die_in_epoch_3(path, tensors, metadata):
        if metadata["epoch"] == "3":
            raise Stop
        write(path, tensors, metadata)

    write = run_directory.write_tensors
    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "write_tensors", die_in_epoch_3)
        with pytest.raises(Stop):
            train(recipe, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run")[1].epoch == 3
    assert len(read_metrics(tmp_path / "run")) == 3
    train(recipe, tmp_path / "run", resume=True)
    assert_same_bits(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "whole")


def test_the_momentum_matters_to_a_resumed_run(recipe, tmp_path, monkeypatch):
    """Without this, the tests above could pass with a resume file that holds only weights."""
    train(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        train(recipe, tmp_path / "run", on_epoch=stop_at(2))
    monkeypatch.setattr(run_directory, "_MOMENTUM", "elsewhere/")
    train(recipe, tmp_path / "run", resume=True)
    assert not torch.equal(
        weights(tmp_path / "run")["conv1.weight"], weights(tmp_path / "whole")["conv1.weight"]
    )


def test_refuses_a_directory_that_is_in_use(recipe, tmp_path):
    train(change(recipe, epochs=2), tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ResdeployError, match=r"in use(.|\n)*resume"):
        train(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before


def test_an_empty_directory_is_free(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    train(change(recipe, epochs=2), tmp_path / "run")


def test_a_file_in_place_of_the_directory_is_an_error(recipe, tmp_path):
    (tmp_path / "run").write_text("hello")
    with pytest.raises(ResdeployError, match="in use"):
        train(recipe, tmp_path / "run")
    with pytest.raises(ResdeployError, match="cannot be written"):
        train(recipe, tmp_path / "run" / "below")


def test_refuses_to_resume_with_another_recipe_but_not_with_moved_data(recipe, tmp_path):
    with pytest.raises(Stop):
        train(recipe, tmp_path / "run", on_epoch=stop_at(1))
    with pytest.raises(ResdeployError, match="another recipe: train differ"):
        train(change(recipe, learning_rate=0.06), tmp_path / "run", resume=True)
    moved = (tmp_path / "data.npz").rename(tmp_path / "moved.npz")
    train(
        replace(recipe, data=replace(recipe.data, path=str(moved))), tmp_path / "run", resume=True
    )


def test_refuses_to_resume_nothing(recipe, tmp_path):
    with pytest.raises(ResdeployError, match="no run to resume"):
        train(recipe, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_refuses_to_resume_without_the_metrics_so_far(recipe, tmp_path):
    with pytest.raises(Stop):
        train(recipe, tmp_path / "run", on_epoch=stop_at(2))
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(ResdeployError, match="metrics of epochs 1…2"):
        train(recipe, tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    recipe, tmp_path, monkeypatch
):
    def poison(metrics):
        if metrics.epoch == 2:
            monkeypatch.setattr(train_module, "preprocess_batch", nan_batch)

    def nan_batch(raw, spec):
        return np.full(raw.shape, np.nan, dtype=np.float32)

    with pytest.raises(ResdeployError, match="diverged; the checkpoint is that") as caught:
        train(recipe, tmp_path / "run", on_epoch=poison)
    assert "epoch 3, step 1 of 4" in str(caught.value.where)
    assert "lower learning_rate (now 0.05)" in str(caught.value.fix)
    state_dict, info = load_checkpoint(tmp_path / "run")
    assert info.epoch == 2
    assert all(bool(t.isfinite().all()) for t in state_dict.values())


def test_a_learning_rate_that_is_too_high_is_reported_as_such(recipe, tmp_path):
    plain = replace(recipe, model=replace(recipe.model, options={"in_channels": 1, "norm": "none"}))
    with pytest.raises(ResdeployError, match=r"diverged(.|\n)*lower learning_rate"):
        train(change(plain, learning_rate=1e6, epochs=20, warmup_epochs=0.0), tmp_path / "run")


def test_decay_is_for_matrices_alone(recipe):
    network = build_network(recipe.model)
    decayed, spared = train_module._build_optimizer(network, recipe.train).param_groups
    names = {id(p): name for name, p in network.named_parameters()}
    assert decayed["weight_decay"] == recipe.train.weight_decay
    assert spared["weight_decay"] == 0
    assert all(".bn" not in names[id(p)] for p in decayed["params"])
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    assert {"fc.bias", "bn1.weight", "bn1.bias"} <= {names[id(p)] for p in spared["params"]}
    assert len(names) == len(decayed["params"]) + len(spared["params"])


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine():
    rates = [learning_rate_at(step, 100, 9, 0.5) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 0.05)
    assert max(rates) == rates[9] == 0.5
    assert (np.diff(rates[9:]) < 0).all()
    assert learning_rate_at(50, 100, 0, 1.0) == pytest.approx(0.5)
    assert learning_rate_at(25, 100, 0, 1.0) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert 0 < rates[-1] < 1e-3


def test_the_border_is_filled_with_what_black_becomes(recipe, tmp_path, monkeypatch):
    seen = []

    def spy(x, spec, generator, *, fill):
        seen.append(fill)
        return x

    monkeypatch.setattr(train_module, "augment_batch", spy)
    train(change(recipe, epochs=2), tmp_path / "run")
    assert seen[0] == pytest.approx((-2.0,))


def test_a_last_batch_of_one_is_left_out(recipe, tmp_path):
    """BatchNorm takes no variance of a single vector: 61 = 3 x 20 + 1 used to be an exception."""
    mlp = replace(
        recipe,
        model=ModelSpec(
            arch="residual_mlp",
            num_classes=3,
            options={"in_features": 4, "width": 8, "hidden_layers": 2},
        ),
        preprocess=Preprocess(input_shape=(4,), color="none"),
        data=DataSpec(name="npz", path=str(tmp_path / "v.npz")),
    )
    x, y = np.random.default_rng(0).standard_normal((61, 4)), np.arange(61) % 3
    np.savez(tmp_path / "v.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    steps = []
    train(
        change(mlp, batch_size=20, epochs=2),
        tmp_path / "run",
        on_batch=lambda step, *_: steps.append(step),
    )
    assert steps == list(range(1, 7))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("momentum", 1.0),
        ("momentum", 0.0),
        ("weight_decay", -1.0),
        ("warmup_epochs", 4.0),
        ("label_smoothing", 1.0),
        ("seed", -1),
    ],
)
def test_refuses_a_schedule_that_makes_no_sense(recipe, tmp_path, field, value):
    with pytest.raises(ResdeployError, match=r"where: +train\."):
        train(change(recipe, **{field: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_refuses_a_recipe_whose_parts_do_not_fit(recipe, tmp_path):
    changes = {
        "labels up to 2; the network has 2": replace(
            recipe, model=replace(recipe.model, num_classes=2), labels=()
        ),
        "takes inputs like": replace(recipe, preprocess=Preprocess(input_shape=(3, 8, 8))),
        "split_seed": replace(recipe, data=replace(recipe.data, split_seed=-1)),
        "labels of the recipe and of the data differ: 'a' / '0'": replace(
            recipe,
            data=DataSpec(name="digits"),
            model=replace(recipe.model, num_classes=10),
            labels=tuple("abcdefghij"),
        ),
        "shift_px": replace(recipe, data=replace(recipe.data, augment=AugmentSpec(shift_px=-1))),
    }
    for message, broken in changes.items():
        with pytest.raises(ResdeployError, match=message):
            train(broken, tmp_path / "run")


def test_a_device_that_is_not_here_is_the_machine_s_lack(recipe, tmp_path):
    for device in ("meta2", "cuda:77"):
        with pytest.raises(EnvironmentLacksError, match=device):
            train(recipe, tmp_path / "run", device=device)


@pytest.mark.parametrize(("asked", "used"), [(None, 1), (2, 2)])
def test_the_number_of_threads_is_one_for_small_samples_and_put_back(recipe, tmp_path, asked, used):
    before, during = torch.get_num_threads(), []
    train(
        change(recipe, epochs=2),
        tmp_path / "run",
        num_threads=asked,
        on_epoch=lambda _: during.append(torch.get_num_threads()),
    )
    assert during == [used, used]
    assert torch.get_num_threads() == before


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def out_of_space(metrics):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "end",
    [{"on_epoch": stop_at(2)}, {"on_batch": stop_at_step(2)}, {"on_epoch": out_of_space}],
    ids=["between epochs", "in the first epoch", "with a full disk"],
)
@pytest.mark.parametrize("again", ["resume", "force"])
def test_a_run_is_replaced_by_a_whole_one_alone(recipe, tmp_path, end, again):
    """`train --force` deleted the old run first; killed in the next minutes, both were gone."""
    whole, new = tmp_path / "whole", change(recipe, seed=1)
    train(new, whole)
    train(change(recipe, epochs=2), tmp_path / "run")
    before = files_of(tmp_path / "run")
    with pytest.raises((Stop, KeyboardInterrupt, OSError)):
        train(new, tmp_path / "run", force=True, **end)
    assert files_of(tmp_path / "run") == before
    report = train(new, tmp_path / "run", **{again: True})
    assert report.checkpoint == str(tmp_path / "run" / "checkpoint.safetensors")
    assert {path.name for path in (tmp_path / "run").iterdir()} == EVERY_FILE
    assert_same_bits(weights(tmp_path / "run"), weights(whole))
    assert read_metrics(tmp_path / "run") == read_metrics(whole)


@pytest.mark.parametrize("num_moved", range(4))
def test_a_replacement_that_died_between_two_files_is_finished(
    recipe, tmp_path, monkeypatch, num_moved
):
    train(change(recipe, epochs=2), tmp_path / "run")
    moved = []

    def die(path, target):
        if path.parent.name == ".whole":
            if len(moved) == num_moved:
                raise Stop
            moved.append(path)
        os.replace(path, target)

    new = change(recipe, epochs=2, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(Stop):
            train(new, tmp_path / "run", force=True)
    with pytest.raises(ResdeployError, match="in use"):
        train(new, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == EVERY_FILE
    train(new, tmp_path / "whole")
    assert_same_bits(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    train(new, tmp_path / "run", resume=True)


def test_a_replacement_is_resumed_with_its_own_recipe_alone(recipe, tmp_path):
    train(change(recipe, epochs=2), tmp_path / "run")
    with pytest.raises(Stop):
        train(recipe, tmp_path / "run", force=True, on_epoch=stop_at(1))
    with pytest.raises(ResdeployError, match="another recipe") as raised:
        train(change(recipe, epochs=2), tmp_path / "run", resume=True)
    assert ".replacement" in raised.value.where
    with pytest.raises(ResdeployError, match="not both"):
        train(recipe, tmp_path / "run", resume=True, force=True)
    # Given up for another one, it leaves nothing that this one could be resumed from.
    other = change(recipe, epochs=2, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train(other, tmp_path / "run", force=True, on_batch=stop_at_step(2))
    train(other, tmp_path / "run", resume=True)
    train(other, tmp_path / "whole")
    assert_same_bits(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_replacement_touches_nothing_that_is_not_of_a_run(recipe, tmp_path):
    short = change(recipe, epochs=2)
    train(short, tmp_path / "run", force=True)
    (tmp_path / "run" / ".metrics.jsonl.x7").mkdir()  # left by a killed process
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(short, tmp_path / "run", force=True)
    assert {path.name for path in (tmp_path / "run").iterdir()} == EVERY_FILE | {"notes.txt"}
    (tmp_path / "run" / "recipe.json").unlink()
    with pytest.raises(ResdeployError, match="no run"):
        train(short, tmp_path / "run", force=True)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_every_line_of_the_metrics_is_json_by_itself(recipe, tmp_path):
    train(change(recipe, epochs=2), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_published_weights_get_the_accuracy_they_are_known_for(shared_data):
    """Preprocessing, network, loader and evaluation at once, on 512 real images."""
    recipe = load_recipe("cifar10-resnet20")
    network = build_network(recipe.model)
    weights, _ = weights_for(network, read_foreign(shared_data / "resnet20-12fca82f.th"))
    load_into(network, weights, source="published")
    data = DataSpec(name="npz", path=str(shared_data / "cifar10-sample.npz"))
    samples = load_labelled(data, recipe.preprocess)
    accuracy = evaluate_network(network, samples.x, samples.y, recipe)[1]
    assert 0.89 < accuracy < 0.94
    assert network.training


# --- the zoo -------------------------------------------------------------------------------------


def test_one_epoch_of_each_recipe_with_its_own_data_runs(tmp_path):
    for name in ("digits-resnet8", "mnist1d-postnorm-mlp", "mnist1d-preact-mlp"):
        recipe = change(load_recipe(name), epochs=1, warmup_epochs=0.0)
        assert train(recipe, tmp_path / name).last.test_accuracy > 0.15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("digits-resnet8", 0.99),
        ("mnist1d-postnorm-mlp", 0.80),
        ("mnist1d-preact-mlp", 0.80),
        ("mnist1d-layernorm-mlp", 0.82),
    ],
)
def test_a_recipe_reaches_the_accuracy_its_readme_states(tmp_path, name, accuracy):
    assert train(load_recipe(name), tmp_path / "run").last.test_accuracy >= accuracy


# --- what makes training faster -------------------------------------------------------------------


@pytest.fixture
def seen_convolutions():
    """Collect of every convolution that runs: (in training, its output's dtype, channels last)."""
    found = set()

    def note(module, inputs, output):
        if isinstance(module, nn.Conv2d) and output.shape[1] > 1 and output.shape[2] > 1:
            is_last = output.is_contiguous(memory_format=torch.channels_last)
            found.add((module.training, output.dtype, is_last))

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    yield found
    handle.remove()


def test_by_default_training_is_float32_with_the_channels_first(
    recipe, tmp_path, seen_convolutions
):
    train(change(recipe, epochs=2), tmp_path / "run")
    assert seen_convolutions == {(True, torch.float32, False), (False, torch.float32, False)}


def test_bfloat16_is_for_training_alone_and_learns(recipe, tmp_path, seen_convolutions):
    report = train(change(recipe, epochs=12, precision="bfloat16"), tmp_path / "run")
    assert {(is_train, dtype) for is_train, dtype, _ in seen_convolutions} == {
        (True, torch.bfloat16),
        (False, torch.float32),
    }
    assert report.last.test_accuracy > 0.9
    state_dict, info = load_checkpoint(tmp_path / "run")
    assert info.recipe.train.precision == "bfloat16"
    assert {t.dtype for t in state_dict.values() if t.is_floating_point()} == {torch.float32}


def test_channels_last_is_how_images_lie_in_memory(recipe, tmp_path, seen_convolutions):
    train(change(recipe, epochs=2, channels_last=True), tmp_path / "run")
    assert (True, torch.float32, True) in seen_convolutions
    assert (True, torch.float32, False) not in seen_convolutions


def test_a_fast_run_is_resumed_to_the_same_bits_and_only_as_it_began(recipe, tmp_path):
    fast = change(recipe, precision="bfloat16", channels_last=True)
    train(fast, tmp_path / "whole")
    with pytest.raises(Stop):
        train(fast, tmp_path / "run", on_epoch=stop_at(2))
    with pytest.raises(ResdeployError, match="another recipe: train differ"):
        train(recipe, tmp_path / "run", resume=True)
    train(fast, tmp_path / "run", resume=True)
    assert_same_bits(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    train(recipe, tmp_path / "exact")
    assert not torch.equal(
        weights(tmp_path / "whole")["conv1.weight"], weights(tmp_path / "exact")["conv1.weight"]
    )


@pytest.fixture
def quick_compiler(monkeypatch):
    """Let torch.compile trace and not generate code; return how often a network was run by it."""
    real, calls = torch.compile, []

    def count(graph, inputs):
        def run(*values):
            calls.append(len(values))
            return graph.forward(*values)

        return run

    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend=count))
    return calls


def test_a_compiled_run_trains_the_same_weights(recipe, tmp_path, quick_compiler):
    short = change(recipe, epochs=2, compile=True)
    report = train(short, tmp_path / "run")
    assert len(quick_compiler) >= 8
    assert report.recipe.train.compile
    assert set(weights(tmp_path / "run")) == set(build_network(recipe.model).state_dict())
    train(change(recipe, epochs=2), tmp_path / "plain")
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, weights(tmp_path / "plain")[name])


def test_a_compiler_that_fails_is_the_machine_s_lack(recipe, tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise OSError("no g++")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend=broken))
    with pytest.raises(EnvironmentLacksError, match=r"cannot compile(.|\n)*--no-compile"):
        train(change(recipe, epochs=2, compile=True), tmp_path / "run")


# Its compiler imports a part of torch that torch calls deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.slow
def test_a_run_is_compiled_by_torch_s_own_compiler(recipe, tmp_path):
    report = train(change(recipe, epochs=12, compile=True), tmp_path / "run")
    assert report.last.test_accuracy > 0.9


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.cuda
def test_everything_fast_at_once_trains_on_a_gpu(recipe, tmp_path):
    fast = change(recipe, epochs=12, precision="bfloat16", channels_last=True, compile=True)
    report = train(fast, tmp_path / "run", device="cuda")
    assert report.last.test_accuracy > 0.9
