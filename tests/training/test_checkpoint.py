"""Checkpoints: whole or absent, and a network that fits or is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from resdeploy.errors import ResdeployError
from resdeploy.networks import build_network
from resdeploy.schema.folds import FoldedSite
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess
from resdeploy.training.checkpoint import (
    is_own_checkpoint,
    load_checkpoint,
    load_into,
    save_checkpoint,
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
    with pytest.raises(ResdeployError, match="not a resdeploy checkpoint"):
        load_checkpoint(tmp_path / "a.safetensors")
    assert not is_own_checkpoint(tmp_path / "a.safetensors")
    assert not is_own_checkpoint(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    for load in (load_checkpoint, is_own_checkpoint):
        with pytest.raises(ResdeployError, match=r"no such file(.|\n)*gone\.safetensors"):
            load(tmp_path / "gone.safetensors")


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
