"""Stages in a folder to work in: each finding is whole or absent, under a key of what it came from.

A stage's folder is named by a digest of its inputs and options, and appears when the stage is over.
A run that was stopped at any point is so taken up by the next one with the same inputs; other
inputs have other keys, and what came of the old ones is left alone.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resdeploy.errors import ResdeployError
from resdeploy.files import atomic_directory, sha256_file
from resdeploy.schema.codec import to_json

__all__ = ["Clock", "Finding", "Stages", "content_digest"]

MARKER = "ship.json"
_FINDING = "finding.json"
# What may lie beside a weights file and say how it was trained.
_SAYING = (".csv", ".json", ".txt", ".yaml", ".yml")
_MOST_SAYING_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The folder of a finished stage, with its finding as JSON data, and its duration.

    `parts_s` are the durations of its own stages, by name; `was_kept` is True for a finding of an
    earlier run.
    """

    folder: Path
    data: Any
    duration_s: float
    parts_s: Mapping[str, float]
    was_kept: bool


@dataclass(slots=True)
class Clock:
    """The durations of stages, by name, as they are told one after the other."""

    parts_s: dict[str, float] = field(default_factory=dict)
    _name: str | None = None
    _since: float = 0.0

    def __call__(self, name: str | None) -> None:
        """Begin a stage; with None, end the last one."""
        now = time.perf_counter()
        if self._name is not None:
            self.parts_s[self._name] = self.parts_s.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now


class Stages:
    """Finished stages in a folder, which is made if it is not there.

    Raises:
        ResdeployError: the folder holds something else, or cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / MARKER).is_file():
                if any(folder.iterdir()):
                    raise ResdeployError(
                        "The folder to work in holds something else.",
                        where=str(folder),
                        fix="give another folder with --work, or remove this one",
                    )
                (folder / MARKER).write_text("{}\n", encoding="utf-8")
        except OSError as error:
            raise ResdeployError(
                f"The folder to work in cannot be used: {error.strerror or error}.",
                where=str(folder),
                fix="give another folder with --work",
            ) from error

    def key(self, name: str, inputs: Mapping[str, Any]) -> str:
        """Return the name of a stage's folder."""
        text = json.dumps(to_json(inputs), sort_keys=True)
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def once(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path, Clock], Any],
    ) -> Finding:
        """Return the finding of a stage, kept or made now.

        `make` fills a folder, is given a clock for the names of its own stages, and returns the
        finding, a record or a mapping of such.
        """
        folder = self.folder / self.key(name, inputs)
        is_kept = (folder / _FINDING).is_file()
        if not is_kept:
            started, clock = time.perf_counter(), Clock()
            with atomic_directory(folder) as temporary:
                data = to_json(make(temporary, clock))
                clock(None)
                kept = {
                    "data": data,
                    "duration_s": time.perf_counter() - started,
                    "parts_s": clock.parts_s,
                }
                (temporary / _FINDING).write_text(json.dumps(kept), encoding="utf-8")
        try:
            found = json.loads((folder / _FINDING).read_text(encoding="utf-8"))
            return Finding(folder=folder, was_kept=is_kept, **found)
        except (OSError, ValueError, TypeError) as error:
            raise ResdeployError(
                f"The finding of a stage is damaged: {error}.",
                where=str(folder),
                fix="remove this folder: the stage is then done again",
            ) from error

    def has(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Return True for a stage that is finished already."""
        return (self.folder / self.key(name, inputs) / _FINDING).is_file()

    def remove(self) -> None:
        """Remove the folder, with all findings in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file and of what may say something about it, or of a whole folder.

    Raises:
        ResdeployError: there is no such file, or one cannot be read.
    """
    try:
        files: Iterable[Path] = (one for one in path.rglob("*") if one.is_file())
        if not path.is_dir():
            beside = (one for one in path.parent.iterdir() if one.suffix.lower() in _SAYING)
            small = (one for one in beside if one.is_file())
            files = [path, *(one for one in small if one.stat().st_size <= _MOST_SAYING_BYTES)]
        lines = [f"{one.name} {sha256_file(one)}" for one in sorted(files)]
    except FileNotFoundError as error:
        raise ResdeployError("There is no such file.", where=str(path)) from error
    except OSError as error:
        raise ResdeployError(
            f"The file cannot be read: {error.strerror or error}.", where=str(path)
        ) from error
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
