"""The file that another program wrote: tensors by their dotted names, and what else it says.

Names are paths from the file's root, with the entries that the weights lie in: `conv1.weight` in
the entry `state_dict` of a checkpoint is `state_dict.conv1.weight`. An entry and a wrapper's prefix
are thus the same thing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resdeploy.errors import ResdeployError
from resdeploy.training.checkpoint import read_tensors
from resdeploy.weights.pickled import StandIn, array_of, plain
from resdeploy.weights.torch_file import load_torch_file

__all__ = ["ForeignFile", "is_weights_folder", "read_foreign"]

# In the order in which transformers looks for them.
_IN_FOLDER = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_DEEPEST = 40
_MOST_SEEN = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignFile:
    """The content of a file, or of the files of a folder.

    Attributes:
        path: the file or folder as it was given.
        tensors: by dotted name, on the CPU.
        words: what is no tensor, as dictionaries, lists and scalars.
        is_program: True for TorchScript, of which the weights alone are read.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    words: Mapping[Any, Any] = field(default_factory=dict)
    is_program: bool = False

    @property
    def folder(self) -> Path:
        """The folder in which that which belongs to the weights may lie."""
        return self.path if self.path.is_dir() else self.path.parent


def is_weights_folder(path: Path) -> bool:
    """Test for a folder with the weights of transformers or timm."""
    return any((path / name).is_file() for name in _IN_FOLDER)


def read_foreign(path: str | Path) -> ForeignFile:
    """Read a file of weights, or a folder of transformers or timm; no code of it runs.

    Raises:
        ResdeployError: it is missing or damaged, holds a pickled module in place of weights, or no
            tensors at all.
    """
    path = Path(path)
    file = _file_in(path) if path.is_dir() else path
    if not file.is_file():
        raise ResdeployError("There is no such file.", where=str(file))
    if file.name.endswith(".index.json"):
        return ForeignFile(path=path, tensors=_read_shards(file))
    if file.suffix == ".safetensors":
        tensors, metadata = read_tensors(file)
        return _not_empty(ForeignFile(path=path, tensors=tensors, words=metadata))
    content = load_torch_file(file)
    is_program = isinstance(content, StandIn) and type(content).origin.startswith("__torch__.")
    tensors, modules = {}, []
    for name, value in _leaves(content, path, is_program=is_program):
        if isinstance(value, Tensor):
            # A tensor of its own: a pickle may set attributes of the one that it makes.
            tensors[name] = Tensor.detach(value)
        else:
            modules.append(name)
    if modules and not tensors:
        raise _pickled_module(path, modules[0])
    words = content if isinstance(content, Mapping) else {}
    return _not_empty(
        ForeignFile(path=path, tensors=tensors, words=plain(words), is_program=is_program),
        kind="" if not isinstance(content, Mapping) else _keys(content),
    )


def _file_in(folder: Path) -> Path:
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise ResdeployError(
        "The folder holds neither a run of resdeploy nor weights of transformers or timm.",
        where=str(folder),
        fix=f"give the file of weights itself, or a folder with {_IN_FOLDER[0]} in it",
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Read the tensors of all the files that an index names."""
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ResdeployError(f"The index cannot be read: {error}.", where=str(index)) from error
    tensors: dict[str, Tensor] = {}
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise ResdeployError(f"The index names {name!r}, no file beside it.", where=str(index))
        tensors.update(read_foreign(index.with_name(name)).tensors)
    return tensors


def _leaves(content: Any, path: Path, *, is_program: bool) -> Iterator[tuple[str, Any]]:
    """Yield tensors and pickled modules with their dotted names.

    Raises:
        ResdeployError: so many dictionaries share others that the names have no end.
    """
    # Each with its name, and the identities of the dictionaries that it lies in.
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", content, ())]
    num_seen = 0
    while waiting:
        name, value, around = waiting.pop()
        num_seen += 1
        if num_seen > _MOST_SEEN:
            raise ResdeployError(
                f"The file's dictionaries lie in one another in more than {_MOST_SEEN:,} ways.",
                where=str(path),
                fix="save model.state_dict()",
            )
        if (array := array_of(value)) is not None:
            value = torch.from_numpy(array.copy())
        is_module = isinstance(value, StandIn) and {"_modules", "_parameters"} <= {*value.fields}
        if isinstance(value, Tensor) or is_module:
            yield name, value
            continue
        items = value.fields if isinstance(value, StandIn) and is_program else value
        # One that holds itself has no more to say the second time.
        if isinstance(items, Mapping) and id(value) not in around and len(around) < _DEEPEST:
            inside = (*around, id(value))
            waiting += [
                (f"{name}.{key}" if name else str(key), item, inside)
                for key, item in reversed([*items.items()])
                if isinstance(item, Tensor | StandIn | Mapping)
            ]


def _pickled_module(path: Path, name: str) -> ResdeployError:
    entry = "" if not name else "".join(f"[{part!r}]" for part in name.split("."))
    return ResdeployError(
        "The file holds a pickled module"
        + (f" in its entry {name}" if name else "")
        + ": to rebuild it, the code of its own program would have to run.",
        where=str(path),
        fix="in that program, save the weights alone:\n"
        f"           module = torch.load({path.name!r}, weights_only=False){entry}\n"
        f"           torch.save(module.state_dict(), {path.stem + '-weights.pth'!r})",
    )


def _not_empty(file: ForeignFile, kind: str = "") -> ForeignFile:
    if not file.tensors:
        raise ResdeployError(
            f"There are no weights in this file{kind}.",
            where=str(file.path),
            fix="save model.state_dict()",
        )
    return file


def _keys(content: Mapping[Any, Any]) -> str:
    return f": it holds a dictionary of {', '.join(map(repr, [*content][:8])) or 'nothing'}"
