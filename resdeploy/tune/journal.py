"""Journal of a search: its findings in a folder, from which a stopped one is resumed."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resdeploy.bundle.folder import MANIFEST, BundleFolder
from resdeploy.bundle.tuned_settings import target_of
from resdeploy.errors import ResdeployError
from resdeploy.files import sha256_file
from resdeploy.schema.codec import to_json
from resdeploy.schema.machines import Environment
from resdeploy.schema.recipes import DataSpec
from resdeploy.schema.tunings import TuneSpec

__all__ = ["JOURNAL", "Journal", "identity_of"]

JOURNAL = "search.jsonl"


def identity_of(
    bundle: BundleFolder,
    spec: TuneSpec,
    environment: Environment,
    *,
    variants: Sequence[Path],
    precisions: Sequence[str],
    data: Mapping[str, DataSpec | None],
) -> dict[str, Any]:
    """Return the identity of a search as JSON data: its findings hold for no other.

    `variants` are files of other forms of the model, `precisions` those made for the search, and
    `data` the samples for judgement and calibration.
    """
    identity: dict[str, Any] = to_json(
        {
            "bundle": sha256_file(bundle.path / MANIFEST),  # which has the hashes of all files
            "options": spec,
            "machine": target_of(environment),
            "variants": {path.name: sha256_file(path) for path in variants},
            "precisions": precisions,
            **{what: (used, _file_hash(used)) for what, used in data.items()},
        }
    )
    return identity


def _file_hash(data: DataSpec | None) -> str | None:
    if data is None or data.path is None or not Path(data.path).is_file():
        return None
    return sha256_file(Path(data.path))


class Journal:
    """Findings of long steps, each kept at once.

    Without a folder nothing is kept. In one, the first line of `search.jsonl` is the identity of
    the search, and each other line the finding of a step.
    """

    def __init__(self, path: Path | None = None, found: Mapping[str, Any] | None = None) -> None:
        self._path = path
        self._found = dict(found or {})

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> "Journal":
        """Return the journal in `folder`, which is made if it is not there.

        Raises:
            ResdeployError: the folder holds another search or something else, or cannot be used.
        """
        path = folder / JOURNAL
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists() and any(folder.iterdir()):
                raise _refused(folder, "holds something else than a search")
            content = path.read_bytes() if path.exists() else b""
            # The last line was being written when the search was stopped.
            whole = content[: content.rfind(b"\n") + 1]
            if not whole and _line(identity).startswith(content):
                path.write_bytes(_line(identity))
                return cls(path)
            started, *steps = map(json.loads, whole.splitlines())
            if changed := [key for key in identity if started.get(key) != identity[key]]:
                raise _refused(folder, f"holds another search, with other {', '.join(changed)}")
            found = {step["step"]: step["found"] for step in steps}
            os.truncate(path, len(whole))
        except OSError as error:
            raise _refused(folder, f"cannot be used: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _refused(folder, f"holds something else than a search: {error!r}") from error
        return cls(path, found)

    def once(self, step: str, find: Callable[[], Any]) -> Any:
        """Return the finding of a step, kept or from `find` now: JSON data."""
        if step not in self._found:
            self._found[step] = find()
            if self._path is not None:
                with self._path.open("ab") as file:
                    file.write(_line({"step": step, "found": self._found[step]}))
                    file.flush()
                    os.fsync(file.fileno())
        return self._found[step]


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _refused(folder: Path, why: str) -> ResdeployError:
    return ResdeployError(
        f"The folder to work in {why}.",
        where=str(folder),
        fix="give another folder, or remove this one",
    )
