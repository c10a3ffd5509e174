"""Pickles read as data: nothing that a file names is imported or called.

`pickle.Unpickler.find_class` is the one door by which a pickle reaches a class or a function. Here
it opens to nothing but a `StandIn`, a new class that keeps what the pickle says of an object, and
to a dozen functions of this module, by which plain containers and tensors are made. They have
neither attributes to set nor a way to anything else, so that whatever a file builds is made of
stand-ins, tensors, and the containers and scalars of Python.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from resdeploy.errors import ResdeployError

__all__ = ["Reader", "StandIn", "Storage", "array_of", "element_type", "plain"]


class StandIn:
    """A pickled object of any class: its class's name, its arguments, its state and its items.

    Attributes:
        origin: the class or function, such as "argparse.Namespace".
        args: what it was called with.
        state: what its `__setstate__` or `__dict__` was to get; None without.
        items: what was put into it by key, for a kind of dictionary.
        members: what was appended to it, for a kind of list or set.
    """

    __slots__ = ("args", "items", "members", "state")
    origin: ClassVar[str]

    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]
    members: list[Any]

    def __new__(cls, *args: Any) -> "StandIn":
        """Keep the arguments; a pickle may call this without `__init__`."""
        made = super().__new__(cls)
        made.args, made.state, made.items, made.members = args, None, {}, []
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, member: Any) -> None:
        """Keep a member of a kind of list."""
        self.members.append(member)

    add = append

    def __call__(self, *args: Any) -> "StandIn":
        """Return a stand-in for its result."""
        return _stand_in(type(self).origin, "()")(*args)

    @property
    def fields(self) -> Mapping[Any, Any]:
        """Its attributes and items by name."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        attributes = [part for part in parts if isinstance(part, Mapping)]
        return {key: value for part in (*attributes, self.items) for key, value in part.items()}


class Storage:
    """The values of one or more tensors, as bytes; filled in after the pickle in old files."""

    __slots__ = ("dtype", "values")

    def __init__(self, dtype: torch.dtype, values: bytearray | memoryview) -> None:
        self.dtype, self.values = dtype, values

    def part(self, offset: int, length: int) -> "Storage":
        """Return some of its elements, which share its bytes."""
        size = self.dtype.itemsize
        return Storage(
            self.dtype, memoryview(self.values)[offset * size : (offset + length) * size]
        )


class Reader(pickle.Unpickler):
    """An unpickler for any pickle.

    `load_storage` finds the values of a tensor by its id, and `load_bytes` reads the file of torch
    that a plain pickle has in place of each storage.

    Raises:
        ResdeployError: from `load`: the pickle names a function of the system, as no training does.
    """

    def __init__(
        self,
        file: IO[bytes],
        load_storage: Callable[[Any], Any] | None = None,
        load_bytes: Callable[[bytes], Any] | None = None,
    ) -> None:
        super().__init__(file, encoding="latin1")  # of Python 2's strings
        self._load_storage, self._load_bytes = load_storage, load_bytes

    def find_class(self, module: str, name: str) -> Any:
        """Return a function of this module, or a class that stands in for any other."""
        if module.partition(".")[0] in _SYSTEM or (module, name) in _EXECUTING:
            raise ResdeployError(
                f"To rebuild what this file holds, {module}.{name} would have to be called. No "
                "training writes that; nothing was run.",
                fix="do not load it elsewhere; where its source is trusted, ask there for "
                "model.state_dict()",
            )
        if (made := _MADE_HERE.get((module, name))) is not None:
            return made
        if (module, name) == ("torch.storage", "_load_from_bytes") and self._load_bytes:
            return _Function(self._load_bytes)
        if module in ("torch", "torch.storage") and name.removesuffix("Storage") in _ELEMENTS:
            return _ELEMENTS[name.removesuffix("Storage")]
        if module == "torch" and isinstance(dtype := torch.__dict__.get(name), torch.dtype):
            return dtype
        return _stand_in(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage, or the class, that lies outside of the pickle."""
        if self._load_storage is None:
            raise pickle.UnpicklingError("it refers to values that are not in the file")
        return self._load_storage(pid)


def element_type(kind: Any) -> torch.dtype:
    """Return the type of a storage's elements, from what stands in for its class."""
    if not isinstance(kind, torch.dtype):
        raise pickle.UnpicklingError(f"unknown storage {getattr(kind, 'origin', kind)}")
    return kind


def plain(value: Any) -> Any:
    """Return the content of a stand-in as dictionaries, lists and scalars; None without any.

    A namespace or a dataclass becomes the dictionary of its attributes, an enumeration its value,
    a path its text, a NumPy array a list, and OmegaConf's containers what they contain. What is
    shared stays so; what lies in itself is None there.
    """
    return _plain(value, {}, depth=0)


def _plain(value: Any, made: dict[int, tuple[Any, Any]], *, depth: int) -> Any:
    """Return the plain form; `made` has, by identity, an object, kept alive, and its form."""
    if not isinstance(value, Mapping | list | tuple | set | frozenset | StandIn):
        return value if isinstance(value, str | int | float | bool) else None
    if id(value) in made:
        return made[id(value)][1]
    if depth > _DEEPEST:
        return None
    made[id(value)] = value, None
    form = _form_of(value, made, depth=depth + 1)
    made[id(value)] = value, form
    return form


def _form_of(value: Any, made: dict[int, tuple[Any, Any]], *, depth: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item, made, depth=depth) for key, item in value.items()}
    if not isinstance(value, StandIn):
        return [_plain(item, made, depth=depth) for item in value]
    if (array := array_of(value)) is not None:
        return array.tolist()
    fields = value.fields
    if "_content" in fields:
        return _plain(fields["_content"], made, depth=depth)
    if type(value).origin.startswith("omegaconf.") and "_val" in fields:
        return _plain(fields["_val"], made, depth=depth)
    if type(value).origin.startswith("pathlib."):
        return str(PurePosixPath(*(part for part in value.args if isinstance(part, str))))
    if fields:
        return _plain(fields, made, depth=depth)
    if value.members:
        return _plain(value.members, made, depth=depth)
    # An enumeration's member, or a set.
    return _plain(value.args[0], made, depth=depth) if len(value.args) == 1 else None


def array_of(value: Any) -> np.ndarray[Any, Any] | None:
    """Return the NumPy array or number that a stand-in describes; None for anything else."""
    if not isinstance(value, StandIn) or not type(value).origin.startswith("numpy."):
        return None
    name = type(value).origin.rpartition(".")[2]
    try:
        if name == "_reconstruct" and isinstance(value.state, tuple):
            _, shape, dtype, by_column, content = value.state
            order = "F" if by_column else "C"
        elif name == "scalar":
            (dtype, content), shape, order = value.args, (), "C"
        else:
            return None
        array = np.frombuffer(content, np.dtype(_numpy_type(dtype)))
        return array.reshape(shape, order="F" if order == "F" else "C")
    except (TypeError, ValueError):
        return None


def _numpy_type(dtype: Any) -> str:
    """Return such a text as "<f4"; the byte order lies in the state of NumPy's types."""
    if not isinstance(dtype, StandIn) or not isinstance(dtype.args[0], str):
        raise TypeError("not a type of NumPy")
    text = dtype.args[0]
    if text.lstrip("<>=|")[:1] not in tuple("fiub"):
        raise TypeError("not a number")
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else ""
    return f"{order}{text}" if text[:1] not in tuple("<>=|") else text


def _stand_in(module: str, name: str) -> type[StandIn]:
    return type(
        name.rpartition(".")[2] or "object",
        (StandIn,),
        {"__slots__": (), "origin": f"{module}.{name}"},
    )


# --- what is made ---------------------------------------------------------------------------------


class _Function:
    """A function that a pickle may call. It has no attributes, so that none can be set."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without values")
    flat = torch.empty(0, dtype=storage.dtype)
    if storage.values:
        flat = torch.frombuffer(storage.values, dtype=storage.dtype)
    # as_strided checks the bounds, where set_ would make the storage longer.
    return flat.as_strided(tuple(size), tuple(stride), offset)


def _tensor_of_type(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """Version 3, of types without a storage class: the rest is (requires_grad, hooks, dtype)."""
    return _tensor(Storage(element_type(rest[2]), storage.values), offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _of_subclass(rebuild: Any, _kind: Any, args: Any, _state: Any) -> Any:
    return rebuild(*args) if isinstance(rebuild, _Function) else None


def _dictionary(*args: Any) -> dict[Any, Any]:
    return dict(args[0]) if args and isinstance(args[0], list | dict) else {}


class _Ordered(dict[Any, Any]):
    """An OrderedDict; a state dict's has its modules' versions for a state, which are not kept."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def _bytes(text: Any, *_: Any) -> Any:
    """`_codecs.encode(text, "latin1")`, the form of bytes in pickles of protocol 2."""
    return text.encode("latin1")


_MADE_HERE: Mapping[tuple[str, str], _Function] = {
    ("collections", "OrderedDict"): _Function(lambda *args: _Ordered(_dictionary(*args))),
    ("collections", "defaultdict"): _Function(lambda *_: {}),
    ("torch", "Size"): _Function(tuple),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Function(_tensor_of_type),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Function(_of_subclass),
    ("torch.nn.parameter", "Parameter"): _Function(_parameter),
    ("torch.jit._pickle", "restore_type_tag"): _Function(_parameter),
    ("_codecs", "encode"): _Function(_bytes),
}
_ELEMENTS: Mapping[str, torch.dtype] = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "Untyped": torch.uint8,
}
# Refused so that nobody takes such a file elsewhere. That nothing runs does not rest on this list.
_SYSTEM = {
    *("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "ctypes"),
    *("pty", "webbrowser"),
}
_EXECUTING = {
    (module, name)
    for module in ("builtins", "__builtin__", "io", "_io")
    for name in ("eval", "exec", "compile", "open", "__import__", "breakpoint", "input")
}
_DEEPEST = 12
