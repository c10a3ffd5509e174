"""Class names, in the order of the outputs: from a file, from a folder of classes, by name."""

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resdeploy.errors import ResdeployError

__all__ = ["load_labels", "names_in_order"]

# By the name that --labels takes; its lines are _IMAGENET_CATEGORIES of torchvision/models/_meta.py
# (BSD-3-Clause), in the order of the outputs of every published ImageNet network.
_NAMED = {"imagenet": "imagenet_labels.txt"}
_NAME_COLUMNS = ("name", "label", "class", "class_name", "label_name", "category")
_PARTS = ("train", "val", "test")


def load_labels(source: str | Path) -> tuple[str, ...]:
    """Return the class names that a file or a folder holds, or that have a name of their own.

    A text file has a name a line, with its index before it or not; JSON is a list, {index: name} or
    {name: index}; CSV has a column of names, and one of indices or none. A folder has a folder for
    each class, itself or in its `train`; their order is that of their names, as torchvision's.

    Raises:
        ResdeployError: there is no such file, it cannot be read, or its indices leave one out.
    """
    path = Path(source)
    if str(source) in _NAMED:
        path = Path(__file__).with_name(_NAMED[str(source)])
    if path.is_dir():
        return _folder_names(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ResdeployError(
            f"There are no labels {str(source)!r}.",
            fix="give a file, a folder of class folders, or imagenet",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ResdeployError(f"The labels cannot be read: {error}.", where=str(path)) from error
    try:
        if path.suffix == ".json":
            return names_in_order(json.loads(text))
        return _from_table(text) if path.suffix == ".csv" else _from_lines(text)
    except ValueError as error:
        raise ResdeployError(
            f"These are no class names: {error}.",
            where=str(path),
            fix="one name a line, in the order of the network's outputs",
        ) from error


def names_in_order(content: Any) -> tuple[str, ...]:
    """Return the names of a list, of {index: name} or of {name: index}.

    Keras's {index: [id, name]} is read too.

    Raises:
        ValueError: it is none of these, or an index is missing.
    """
    if isinstance(content, Mapping):
        pairs = [*content.items()]
        if pairs and all(isinstance(v, int) and not isinstance(v, bool) for _, v in pairs):
            pairs = [(index, name) for name, index in pairs]
        by_index = {_index(key): value for key, value in pairs}
        if sorted(by_index) != [*range(len(pairs))]:
            raise ValueError(f"the indices are not 0 to {len(pairs) - 1}")
        content = [by_index[index] for index in range(len(pairs))]
        if all(isinstance(n, list | tuple) and len(n) == 2 for n in content):
            content = [name for _, name in content]
    if not isinstance(content, list | tuple) or not content:
        raise ValueError("neither a list nor a table of names")
    if not all(isinstance(name, str) and name.strip() for name in content):
        raise ValueError("not every entry is a name")
    return tuple(content)


def _index(key: Any) -> int:
    if isinstance(key, bool) or not str(key).strip().isdecimal():
        raise ValueError(f"{key!r} is no index")
    return int(key)


def _from_lines(text: str) -> tuple[str, ...]:
    lines = [line.strip() for line in text.strip().splitlines()]
    numbered = [re.fullmatch(r"(\d+)[\s:,]+(\S.*)", line) for line in lines]
    found = {int(match[1]): match[2] for match in numbered if match}
    if len(found) == len(lines) and sorted(found) == [*range(len(lines))]:
        return names_in_order(found)
    return names_in_order(lines)


def _from_table(text: str) -> tuple[str, ...]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    if not rows or len({len(row) for row in rows}) != 1:
        raise ValueError("the rows are not of one length")
    heads = [cell.lower() for cell in rows[0]]
    named = [i for i, head in enumerate(heads) if head in _NAME_COLUMNS]
    body = rows[1:] if named or {"index", "id", "class_id", "idx"} & set(heads) else rows
    counted = [
        i
        for i in range(len(heads))
        if len(heads) > 1 and i not in named and all(row[i].isdecimal() for row in body)
    ]
    others = [i for i in range(len(heads)) if i not in counted]
    columns = [i for i in named if i in others] or others
    if len(columns) != 1 or len(counted) > 1:
        raise ValueError("it cannot be told which column holds the names")
    if counted:
        return names_in_order({row[counted[0]]: row[columns[0]] for row in body})
    return names_in_order([row[columns[0]] for row in body])


def _folder_names(folder: Path) -> tuple[str, ...]:
    for place in (*(folder / part for part in _PARTS), folder):
        if place.is_dir():
            names = sorted(
                child.name
                for child in place.iterdir()
                if child.is_dir() and not child.name.startswith(".")
            )
            if names:
                return tuple(names)
    raise ResdeployError("The folder holds no class folders.", where=str(folder))
