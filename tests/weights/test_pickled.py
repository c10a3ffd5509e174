"""Pickles as data: nothing runs, nothing is imported, and what a stand-in keeps."""

import argparse
import dataclasses
import enum
import io
import os
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch

from resdeploy.errors import ResdeployError
from resdeploy.weights.pickled import Reader, StandIn, array_of, plain


def read(content, protocol=2):
    return Reader(io.BytesIO(pickle.dumps(content, protocol))).load()


class Calls:
    """A pickle of it calls a function when it is loaded."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Color(enum.Enum):
    RED = "red"


class Permission(enum.Flag):
    READ = 1


@dataclasses.dataclass
class Settings:
    lr: float
    names: list


class HyperParameters(dict):
    pass


class Slotted:
    __slots__ = ("width",)


def ran(path):
    path.touch()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_no_function_of_a_file_is_called(tmp_path, protocol):
    trap = tmp_path / "executed"
    content = {"extra": Calls(ran, trap), "epoch": 3}
    assert read(content, protocol)["epoch"] == 3
    assert not trap.exists()
    pickle.loads(pickle.dumps(content, protocol))
    assert trap.exists()


@pytest.mark.parametrize(
    ("function", "args"),
    [(os.mkdir, ("made",)), (eval, ("1",)), (exec, ("1",)), (sys.exit, (3,)), (open, ("x",))],
)
def test_a_function_of_the_system_is_refused_by_name(function, args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResdeployError, match="would have to be called"):
        read({"extra": Calls(function, *args)})
    assert not [*tmp_path.iterdir()]


def test_no_module_of_a_file_is_imported(tmp_path, monkeypatch):
    (tmp_path / "module_that_must_not_be_imported.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = Reader(io.BytesIO(b"cmodule_that_must_not_be_imported\nThing\n)\x81.")).load()
    assert type(found).origin == "module_that_must_not_be_imported.Thing"
    assert "module_that_must_not_be_imported" not in sys.modules


@pytest.mark.parametrize(
    "pickled",
    [
        # BUILD with a table of attributes, on what a file may call: it has none to set.
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}X\x05\x00\x00\x00_callK\x01stb.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x05\x00\x00\x00_callK\x01sb.",
        b"ccollections\nOrderedDict\n(N}X\x08\x00\x00\x00__call__K\x01stb.",
        b"ctorch\nfloat32\n(N}X\x01\x00\x00\x00aK\x01stb.",
        b"cargparse\nNamespace\n(N}X\x06\x00\x00\x00fieldsK\x01stb.",
    ],
)
def test_what_a_file_may_call_cannot_be_changed_by_it(pickled):
    with pytest.raises((AttributeError, TypeError)):
        Reader(io.BytesIO(pickled)).load()
    assert read(OrderedDict(a=1)) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (argparse.Namespace(lr=0.1, model="resnet50"), {"lr": 0.1, "model": "resnet50"}),
        (Settings(lr=0.1, names=["a", "b"]), {"lr": 0.1, "names": ["a", "b"]}),
        (HyperParameters(lr=0.1), {"lr": 0.1}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (Color.RED, "red"),
        ({"kind": Color.RED}, {"kind": "red"}),
        (PurePosixPath("/data/train"), "/data/train"),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.arange(3), [0, 1, 2]),
        (np.asfortranarray(np.arange(6).reshape(2, 3)), [[0, 1, 2], [3, 4, 5]]),
        ({"a", "b"}, {"a", "b"}),
        ((1, "two", None), [1, "two", None]),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_harmless_objects_say_what_they_hold(content, expected, protocol):
    found = plain(read(content, protocol))
    assert (set(found) if isinstance(expected, set) else found) == expected


def test_attributes_in_slots_are_kept():
    value = Slotted()
    value.width = 7
    assert plain(read(value)) == {"width": 7}


@pytest.mark.parametrize("content", [Permission.READ, torch.device("cpu"), slice(1, 2), print])
def test_other_objects_stand_in_for_themselves(content):
    assert isinstance(read(content), StandIn) or issubclass(read(content), StandIn)


def test_the_containers_of_omegaconf_are_their_content():
    def node(kind, **state):
        made = StandIn.__new__(type(kind, (StandIn,), {"__slots__": (), "origin": kind}))
        made.__setstate__(state)
        return made

    value = node("omegaconf.nodes.AnyNode", _val="resnet18", _metadata=1)
    config = node("omegaconf.dictconfig.DictConfig", _content={"arch": value}, _parent=None)
    assert plain(config) == {"arch": "resnet18"}


def test_a_dictionary_within_itself_ends():
    content = {}
    content["self"] = content
    assert plain(read(content)) == {"self": None}


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<i8", "u1", "?"])
def test_arrays_of_numpy_are_read_to_the_bit(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    found = array_of(read(array))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None])])
def test_arrays_of_objects_are_none(array):
    assert array_of(read(array)) is None
