"""Checkpoints: whole or absent, data and never programs, and a network that fits or is refused."""

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from resdeploy.errors import ResdeployError
from resdeploy.networks import build_network
from resdeploy.schema.folds import FoldedSite
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess
from resdeploy.training.checkpoint import (
    is_own_checkpoint,
    load_checkpoint,
    load_foreign_state_dict,
    load_into,
    save_checkpoint,
    suggest_architectures,
)

MODEL = ModelSpec(arch="resnet8_tiny", num_classes=10, options={"in_channels": 1})
INFO = CheckpointInfo(
    model=MODEL,
    preprocess=Preprocess(input_shape=(1, 8, 8), divisor=255, color="gray"),
    labels=("a", "b"),
    epoch=3,
    test_accuracy=0.5,
    folded=(FoldedSite(site="bn1", producer="conv1", op="conv2d", max_ulp=0.5),),
)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(MODEL)


def assert_same_tensors(left, right):
    assert set(left) == set(right)
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


# --- ours ----------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_with_every_bit_and_its_record(tmp_path):
    module = network()
    save_checkpoint(tmp_path / "a.safetensors", module, INFO)
    state_dict, info = load_checkpoint(tmp_path / "a.safetensors")
    assert info == INFO
    assert_same_tensors(state_dict, module.state_dict())
    assert is_own_checkpoint(tmp_path / "a.safetensors")


def test_a_run_directory_stands_for_its_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.safetensors", network(), INFO)
    assert load_checkpoint(tmp_path)[1] == INFO


def test_tied_weights_and_views_are_saved(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": weight, "b": weight, "turned": weight.T, "part": weight[:, 1]}
    save_checkpoint(tmp_path / "a.safetensors", tensors, INFO)
    assert_same_tensors(load_checkpoint(tmp_path / "a.safetensors")[0], tensors)


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"w": torch.zeros(2)}, INFO)
    before = path.read_bytes()

    def fill_the_disk(self, content):
        with self.open("wb") as file:
            file.write(content[:6])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(ResdeployError, match="no space left"):
        save_checkpoint(path, {"w": torch.ones(2)}, INFO)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ResdeployError, match="does not exist"):
        save_checkpoint(tmp_path / "no" / "a.safetensors", {"w": torch.zeros(1)}, INFO)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_refuses_a_checkpoint_that_is_cut_short(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, network(), INFO)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResdeployError, match="not a whole safetensors file") as caught:
        load_checkpoint(path)
    assert caught.value.where == str(path)


def test_refuses_a_header_of_garbage(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((50).to_bytes(8, "little") + b"\xff" * 50)
    with pytest.raises(ResdeployError, match="not a whole safetensors file"):
        load_checkpoint(path)


def test_refuses_a_record_that_is_damaged(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(1)}, path, metadata={"resdeploy": '{"kind": "CheckpointInfo"}'})
    with pytest.raises(ResdeployError, match="schema version"):
        load_checkpoint(path)


def test_refuses_a_safetensors_file_from_elsewhere(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ResdeployError, match=r"not a resdeploy checkpoint(.|\n)*--arch"):
        load_checkpoint(tmp_path / "a.safetensors")
    assert not is_own_checkpoint(tmp_path / "a.safetensors")


def test_a_missing_file_is_named(tmp_path):
    for load in (load_checkpoint, load_foreign_state_dict, is_own_checkpoint):
        with pytest.raises(ResdeployError, match=r"no such file(.|\n)*gone\.safetensors"):
            load(tmp_path / "gone.safetensors")


# --- from elsewhere ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin"])
def test_a_plain_state_dict_is_read(tmp_path, suffix):
    module = network()
    torch.save(module.state_dict(), tmp_path / f"a{suffix}")
    assert_same_tensors(load_foreign_state_dict(tmp_path / f"a{suffix}"), module.state_dict())


def test_a_foreign_safetensors_file_is_read(tmp_path):
    save_file({"module.w": torch.ones(2)}, tmp_path / "a.safetensors")
    assert_same_tensors(load_foreign_state_dict(tmp_path / "a.safetensors"), {"w": torch.ones(2)})


def test_the_format_before_zip_archives_is_read(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert_same_tensors(load_foreign_state_dict(tmp_path / "a.pth"), {"w": torch.ones(2)})


@pytest.mark.parametrize(
    "entry", ["state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema"]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_wrappers_around_the_weights_are_taken_off(tmp_path, entry, prefix):
    weights = OrderedDict(
        {f"{prefix}conv.weight": torch.ones(2), f"{prefix}fc.bias": torch.ones(1)}
    )
    torch.save({"epoch": 3, "best": 0.9, entry: weights}, tmp_path / "a.pt")
    assert set(load_foreign_state_dict(tmp_path / "a.pt")) == {"conv.weight", "fc.bias"}


def test_a_prefix_of_some_names_only_is_part_of_the_name(tmp_path):
    torch.save({"model.w": torch.ones(1), "head.w": torch.ones(1)}, tmp_path / "a.pt")
    assert set(load_foreign_state_dict(tmp_path / "a.pt")) == {"model.w", "head.w"}


def test_weights_averaged_by_torch_lose_their_counter(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    torch.save(averaged.state_dict(), tmp_path / "a.pt")
    assert set(load_foreign_state_dict(tmp_path / "a.pt")) == {"weight", "bias"}


def test_refuses_to_choose_between_raw_and_averaged_weights(tmp_path):
    weights = {"w": torch.ones(1)}
    torch.save({"state_dict": weights, "state_dict_ema": weights}, tmp_path / "a.pt")
    with pytest.raises(ResdeployError, match="2 sets of weights: state_dict, state_dict_ema"):
        load_foreign_state_dict(tmp_path / "a.pt")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, legacy):
    trap = tmp_path / "executed"
    torch.save(
        {"state_dict": {"w": torch.ones(1)}, "extra": Trap(str(trap))},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(ResdeployError, match=r"rebuild(.|\n)*model\.state_dict\(\)"):
        load_foreign_state_dict(tmp_path / "a.pt")
    assert not trap.exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"args": argparse.Namespace(lr=1)}])
def test_a_pickled_module_is_refused_with_a_way_out(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ResdeployError, match="objects that only its own program") as caught:
        load_foreign_state_dict(tmp_path / "a.pt")
    assert "model.state_dict()" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, "a dictionary of 'epoch', 'lr'"),
        ({}, "a dictionary of nothing"),
        ([1, 2], "one list"),
        (torch.ones(2), "one Tensor"),
        ({"w": torch.ones(1), "step": 7}, "'step' is no weight but int"),
    ],
)
def test_refuses_a_file_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ResdeployError, match=message):
        load_foreign_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize("keep", [0, 3, 100, -100])
@pytest.mark.parametrize("legacy", [False, True])
def test_refuses_a_foreign_file_that_is_cut_short(tmp_path, keep, legacy):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResdeployError, match="damaged or is no torch checkpoint") as caught:
        load_foreign_state_dict(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("content", [b"hello, world\n" * 9, pickle.dumps([1]), b"PK\x03\x04junk"])
def test_refuses_a_file_of_something_else(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ResdeployError):
        load_foreign_state_dict(tmp_path / "a.pt")


# --- into a network ------------------------------------------------------------------------------


def test_weights_are_loaded_whole():
    source, module = network(1), network(2)
    load_into(module, source.state_dict(), source="test")
    assert_same_tensors(module.state_dict(), source.state_dict())


def test_a_network_that_does_not_fit_is_left_alone_and_everything_is_listed():
    module = network()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    state_dict = network(1).state_dict()
    for name in ("conv1.weight", "conv1.bias"):
        del state_dict[name]
    state_dict["extra.weight"] = torch.ones(1)
    state_dict["fc.weight"] = torch.ones(7, 64)
    with pytest.raises(ResdeployError) as caught:
        load_into(module, state_dict, source="some.pt")
    assert "2 missing: conv1.weight, conv1.bias" in caught.value.what
    assert "1 unexpected: extra.weight" in caught.value.what
    assert "fc.weight is (7, 64), not (10, 64)" in caught.value.what
    assert caught.value.where == "some.pt"
    assert_same_tensors(module.state_dict(), before)


def test_long_lists_are_cut_and_counted():
    with pytest.raises(ResdeployError, match=r"48 missing: (\S+, ){4}…"):
        load_into(network(), {"w": torch.ones(1)}, source="x")


def test_the_counter_of_batchnorm_may_be_missing_but_its_statistics_may_not():
    state_dict = network(1).state_dict()
    old = {n: t for n, t in state_dict.items() if not n.endswith("num_batches_tracked")}
    assert len(old) < len(state_dict)
    load_into(network(), old, source="old file")
    del old["bn1.running_var"]
    with pytest.raises(ResdeployError, match=r"1 missing: bn1\.running_var"):
        load_into(network(), old, source="old file")


def rename(state_dict, old, new):
    return {
        name.replace(f"{old}.", f"{new}.") if name.startswith(f"{old}.") else name: tensor
        for name, tensor in state_dict.items()
    }


@pytest.mark.parametrize(("arch", "old", "new"), [
    ("cifar_resnet20", "linear", "fc"),
    ("resnet8_tiny", "fc", "linear"),
])  # fmt: skip
def test_the_classifier_may_have_the_other_usual_name(arch, old, new):
    spec = ModelSpec(arch=arch, num_classes=10)
    source, module = build_network(spec), build_network(spec)
    renamed = rename(source.state_dict(), old, new)
    assert set(renamed) != set(source.state_dict())
    load_into(module, renamed, source="renamed")
    assert_same_tensors(module.state_dict(), source.state_dict())


def test_weights_that_fit_another_architecture_say_which():
    state_dict = build_network(ModelSpec(arch="cifar_resnet20", num_classes=10)).state_dict()
    assert "cifar_resnet20" in suggest_architectures(state_dict)
    assert "cifar_resnet32" not in suggest_architectures(state_dict)
    module = build_network(ModelSpec(arch="cifar_resnet32", num_classes=10))
    with pytest.raises(ResdeployError, match="--arch cifar_resnet20"):
        load_into(module, state_dict, source="x")


def test_suggestions_know_the_number_of_classes_and_the_other_name():
    spec = ModelSpec(arch="resnet18", num_classes=7)
    with torch.device("meta"):
        state_dict = build_network(spec).state_dict()
    assert suggest_architectures(state_dict) == ["resnet18"]
    assert suggest_architectures(rename(state_dict, "fc", "linear")) == ["resnet18"]
    assert suggest_architectures({"a.weight": torch.ones(2, 2)}) == []
    assert suggest_architectures({}) == []


@pytest.mark.parametrize(
    ("arch", "in_channels"),
    [("resnet18", 1), ("resnet18", 4), ("cifar_resnet18", 1), ("r3d_18", 2)],
)
def test_suggestions_read_the_channels_from_the_first_convolution(arch, in_channels):
    spec = ModelSpec(arch=arch, num_classes=7, options={"in_channels": in_channels})
    with torch.device("meta"):
        state_dict = build_network(spec).state_dict()
    assert suggest_architectures(state_dict) == [f"{arch} --arch-option in_channels={in_channels}"]


@pytest.mark.parametrize("arch", ["cifar_resnet18", "cifar_resnet50", "seresnet18"])
def test_a_projection_called_shortcut_is_one_called_downsample(arch):
    """The CIFAR networks of kuangliu/pytorch-cifar have torchvision's names but for two."""
    spec = ModelSpec(arch=arch, num_classes=10)
    with torch.device("meta"):
        state_dict = build_network(spec).state_dict()
    theirs = {name.replace("downsample", "shortcut"): x for name, x in state_dict.items()}
    assert suggest_architectures(rename(theirs, "fc", "linear")) == [arch]


def test_the_published_resnet20_fits(shared_data):
    state_dict = load_foreign_state_dict(shared_data / "resnet20-12fca82f.th")
    assert "cifar_resnet20" in suggest_architectures(state_dict)
    load_into(
        build_network(ModelSpec(arch="cifar_resnet20", num_classes=10)), state_dict, source="x"
    )
