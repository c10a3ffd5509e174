"""Files from elsewhere: each form is read as data, and what is no file of weights is refused."""

import argparse
import io
import json
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from resdeploy.errors import ResdeployError
from resdeploy.weights import foreign_file
from resdeploy.weights.foreign_file import is_weights_folder, read_foreign

WEIGHTS = {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "fc.bias": torch.ones(2)}


def assert_same_tensors(left, right):
    assert set(left) == set(right)
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt", ".pth.tar", ""])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_of_torch_save_is_read(tmp_path, suffix, legacy):
    path = tmp_path / f"a{suffix}"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=not legacy)
    assert_same_tensors(read_foreign(path).tensors, WEIGHTS)


@pytest.mark.parametrize("legacy", [False, True])
def test_every_type_and_every_view_is_read(tmp_path, legacy):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        **{str(t): torch.ones(3).to(t) for t in (torch.float16, torch.bfloat16, torch.float64)},
        **{str(t): torch.arange(3).to(t) for t in (torch.int64, torch.uint8, torch.bool)},
        "turned": base.T,
        "part": base[1:3, ::2],
        "one": torch.tensor(7),
        "none": torch.empty(0, 3),
        "channels last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    found = read_foreign(tmp_path / "a.pt").tensors
    assert_same_tensors(found, {name: t.detach() for name, t in tensors.items()})
    assert not any(tensor.requires_grad for tensor in found.values())


def test_types_without_a_class_of_storage_are_read(tmp_path):
    tensors = {"w": torch.ones(4).to(torch.float8_e4m3fn), "n": torch.ones(2).to(torch.uint16)}
    torch.save(tensors, tmp_path / "a.pt")
    found = read_foreign(tmp_path / "a.pt").tensors
    assert {name: t.dtype for name, t in found.items()} == {n: t.dtype for n, t in tensors.items()}
    assert torch.equal(found["w"].float(), torch.ones(4))


def test_a_plain_pickle_is_read_with_arrays_and_with_tensors(tmp_path):
    arrays = {"model": {name: t.numpy() for name, t in WEIGHTS.items()}, "__author__": "zoo"}
    for content in (arrays, {"model": WEIGHTS}):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
        found = read_foreign(tmp_path / "a.pkl").tensors
        assert_same_tensors(found, {f"model.{name}": t for name, t in WEIGHTS.items()})


def test_a_tar_archive_of_the_first_releases_is_read(tmp_path):
    values = np.arange(6, dtype="<f4")
    kind = type("FloatStorage", (), {"__module__": "torch"})

    def pickled(*items):
        return b"".join(pickle.dumps(item, 2) for item in items)

    class WithIds(pickle.Pickler):
        def persistent_id(self, obj):
            return obj[0] if isinstance(obj, tuple) and len(obj) == 1 else None

        def reducer_override(self, obj):
            return NotImplemented

    def storage_class():
        return b"\x80\x02(X\x01\x00\x00\x001X\x03\x00\x00\x00cpuctorch\nFloatStorage\nt."

    storages = pickled(1) + storage_class() + struct.pack("<q", 6) + values.tobytes() + pickled([])
    sizes = struct.pack("<ii2q2qq", 2, 0, 2, 2, 2, 1, 1)  # (2, 2) from the second value on
    tensors = pickled(1) + b"\x80\x02(K\x07X\x01\x00\x00\x001ctorch\nFloatTensor\nt." + sizes
    stream = io.BytesIO()
    WithIds(stream, 2).dump({"w": ("7",)})
    assert kind.__name__ == "FloatStorage"
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        for name, content in (
            ("storages", storages),
            ("tensors", tensors),
            ("pickle", stream.getvalue()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    found = read_foreign(tmp_path / "a.pth").tensors
    assert_same_tensors(found, {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})


def test_safetensors_are_read(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert_same_tensors(read_foreign(tmp_path / "a.safetensors").tensors, WEIGHTS)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_of_transformers_is_read(tmp_path, name, sharded):
    stem, suffix = name.rsplit(".", 1)
    save = save_file if suffix == "safetensors" else torch.save
    files = {name: WEIGHTS}
    if sharded:
        files = {f"{stem}-{i}.{suffix}": dict([pair]) for i, pair in enumerate(WEIGHTS.items())}
        index = {"weight_map": {name: file for file, part in files.items() for name in part}}
        (tmp_path / f"{name}.index.json").write_text(json.dumps(index))
    for file, part in files.items():
        save(part, tmp_path / file)
    assert is_weights_folder(tmp_path)
    assert_same_tensors(read_foreign(tmp_path).tensors, WEIGHTS)


@pytest.mark.parametrize("index", [b"{}", b"[", b'{"weight_map": {"w": "../a.bin"}}', b"[1]"])
def test_an_index_that_is_none_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(ResdeployError, match=r"index cannot be read|no file beside it"):
        read_foreign(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    assert not is_weights_folder(tmp_path)
    with pytest.raises(ResdeployError, match=r"holds neither a run of resdeploy nor weights"):
        read_foreign(tmp_path)


# --- dictionaries in one another ------------------------------------------------------------------


def test_a_dictionary_that_holds_itself_is_read_once(tmp_path):
    content = {"state_dict": dict(WEIGHTS), "config": {"lr": 0.1}}
    content["again"] = content["and again"] = content
    content["config"].update(whole=content, own=content["config"], other=content["config"])
    torch.save(content, tmp_path / "a.pt")
    file = read_foreign(tmp_path / "a.pt")
    assert_same_tensors(file.tensors, {f"state_dict.{name}": t for name, t in WEIGHTS.items()})
    assert file.words["config"] == {"lr": 0.1, "whole": None, "own": None, "other": None}


def test_a_dictionary_in_two_places_is_read_in_both(tmp_path):
    torch.save({"model": WEIGHTS, "best": {"net": WEIGHTS}}, tmp_path / "a.pt")
    names = {f"{root}.{name}" for root in ("model", "best.net") for name in WEIGHTS}
    assert set(read_foreign(tmp_path / "a.pt").tensors) == names


def test_dictionaries_that_share_others_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_file, "_MOST_SEEN", 2_000)
    content = {"w": torch.ones(1)}
    for _ in range(30):
        content = {"a": content, "b": content, "c": [content] * 9}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(
        ResdeployError, match=r"lie in one another in more than 2,000 ways"
    ) as caught:
        read_foreign(tmp_path / "a.pt")
    assert caught.value.where == str(tmp_path / "a.pt")
    torch.save({"w": torch.ones(1), "words": {"deep": content["c"]}}, tmp_path / "b.pt")
    assert set(read_foreign(tmp_path / "b.pt").tensors) == {"w"}


# --- TorchScript ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 2))])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_weights_of_torchscript_are_read_without_its_program(tmp_path, make, monkeypatch):
    module = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 1))
    ).eval()
    torch.jit.save(make(module), tmp_path / "a.pt")
    monkeypatch.setattr(torch.jit, "load", None)
    file = read_foreign(tmp_path / "a.pt")
    assert file.is_program
    assert_same_tensors(file.tensors, module.state_dict())


# --- what is refused ------------------------------------------------------------------------------


def net():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        (net(), ""),
        ({"model": net(), "epoch": 3}, "['model']"),
        ({"ema": None, "checkpoint": {"net": net()}}, "['checkpoint']['net']"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_pickled_module_is_refused_with_two_lines_that_save_its_weights(
    tmp_path, content, entry, legacy, monkeypatch
):
    torch.save(content, tmp_path / "whole.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ResdeployError, match="holds a pickled module") as caught:
        read_foreign(tmp_path / "whole.pt")
    assert f"weights_only=False){entry}\n" in caught.value.fix
    # They do what they say.
    monkeypatch.chdir(tmp_path)
    lines = "\n".join(line.strip() for line in caught.value.fix.splitlines()[1:])
    exec(lines, {"torch": torch})
    assert set(read_foreign("whole-weights.pth").tensors) == set(net().state_dict())


def test_weights_beside_a_pickled_module_are_read(tmp_path):
    content = {"state_dict": WEIGHTS, "hyper_parameters": {"criterion": net()}}
    torch.save(content, tmp_path / "a.ckpt")
    assert set(read_foreign(tmp_path / "a.ckpt").tensors) == {f"state_dict.{n}" for n in WEIGHTS}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, "a dictionary of 'epoch', 'lr'"),
        ({}, "a dictionary of nothing"),
        ([1, 2], "no weights in this file"),
        (argparse.Namespace(lr=1), "no weights in this file"),
    ],
)
def test_a_file_without_weights_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ResdeployError, match=message):
        read_foreign(tmp_path / "a.pt")


@pytest.mark.parametrize("keep", [0, 3, 100, -100, -3])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_is_cut_short_is_refused(tmp_path, keep, legacy):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResdeployError, match="damaged or is no torch checkpoint") as caught:
        read_foreign(path)
    assert caught.value.where == str(path)


def test_a_storage_that_is_too_short_for_its_tensor_is_refused(tmp_path):
    torch.save({"w": torch.ones(1000)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as whole,
        zipfile.ZipFile(tmp_path / "b.pt", "w") as cut,
    ):
        for name in whole.namelist():
            cut.writestr(name, whole.read(name)[: 400 if name.endswith("data/0") else None])
    with pytest.raises(ResdeployError, match="damaged"):
        read_foreign(tmp_path / "b.pt")


@pytest.mark.parametrize(
    "content",
    [
        b"hello, world\n" * 9,
        pickle.dumps([1]),
        b"PK\x03\x04junk",
        b"\x80\x02c\n\n.",
        b"",
        b"\x93NUMPY",
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ResdeployError):
        read_foreign(tmp_path / "a.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ResdeployError, match=r"no such file(.|\n)*gone\.pth"):
        read_foreign(tmp_path / "gone.pth")
