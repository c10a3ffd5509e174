"""A bundle: one flat folder that holds a model and the proof that comes with it.

::

    manifest.json   the other files by size and SHA-256, and the records that led to the model
    model.onnx
    golden.npz      inputs, reference outputs in float64, and the noise to judge by
    labels.txt      one class name a line; absent where there are none
    README.md       the page for the user on the device
    NAME.onnx       other forms of the model, the fastest by `tune` on some machine

`read_bundle` checks all of it before anything is run. It finds every accidental change, and every
change without a new manifest. The manifest is not signed: only a digest received by another way
tells a forged bundle from yours.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from resdeploy.bundle.page import readme_text
from resdeploy.data.named_inputs import each_input
from resdeploy.errors import BundleError, ResdeployError
from resdeploy.files import atomic_directory, file_info, sha256_file
from resdeploy.schema.bundles import Manifest
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.exports import ExportReport
from resdeploy.schema.files import MANIFEST, FileInfo, InputSpec, TensorSpec
from resdeploy.schema.recipes import Preprocess
from resdeploy.schema.tunings import TunedSettings, TunedTarget
from resdeploy.schema.verdicts import FileProof
from resdeploy.verify.golden_file import Golden, load_golden, save_golden

__all__ = [
    "MANIFEST",
    "BundleFolder",
    "damaged",
    "digest_of",
    "is_plain_name",
    "read_bundle",
    "write_bundle",
    "write_text",
    "write_tuned",
]

_MODEL = "model.onnx"
_GOLDEN = "golden.npz"
_LABELS = "labels.txt"
_README = "README.md"

_REBUILD = "copy the bundle again from where it was made, or build it anew"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BundleFolder:
    """A bundle whose every byte has been checked, with its golden file and class names, or ().

    `digest` is the SHA-256 of the manifest's content, which stands for the whole bundle.
    """

    path: Path
    manifest: Manifest
    digest: str
    model: Path
    golden: Golden
    labels: tuple[str, ...]

    @property
    def golden_sizes(self) -> tuple[InputSpec, ...]:
        """The inputs in the size of the golden ones; () where the model leaves none open."""
        tensors = self.manifest.inputs
        if all(isinstance(size, int) for one in tensors for size in one.shape[1:]):
            return ()
        arrays = each_input(self.golden.inputs[:1])
        return tuple(
            InputSpec(name=one.name, shape=array.shape[1:])
            for one, array in zip(tensors, arrays, strict=True)
        )


def write_bundle(
    out: Path,
    *,
    name: str,
    model: Path,
    golden: Golden,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    labels: Sequence[str] = (),
    preprocess: Preprocess | None = None,
    export: ExportReport | None = None,
    versions: Mapping[str, str] = MappingProxyType({}),
    proof: FileProof | None = None,
    is_own_reference: bool = False,
    force: bool = False,
) -> Manifest:
    """Write a bundle to the folder `out`, whole or not at all, and return its manifest.

    The same arguments give the same bytes: no date, host or path is written. The paths in
    `export` are cut to file names for this; texts such as `golden.info.source` are kept.

    `model` is the ONNX file, with its weights inside; `golden` has at least one input; `labels`
    are in the order of the outputs, or none; `versions` are of the packages that made the model;
    `proof` is of that file; `is_own_reference` is True if the golden outputs are its own;
    `force` replaces an existing bundle, but no other folder.

    Raises:
        BundleError: the labels do not fit the outputs, or cannot be written one a line.
        ResdeployError: the model is missing; `out` exists; or it cannot be written.
    """
    if not model.is_file():
        raise ResdeployError("There is no such model file.", where=str(model))
    _check_labels(labels, golden, where=_LABELS)
    with atomic_directory(out, force=force, marker=MANIFEST) as folder:
        shutil.copyfile(model, folder / _MODEL)
        save_golden(folder / _GOLDEN, golden)
        if labels:
            write_text(folder / _LABELS, "".join(f"{label}\n" for label in labels))
        manifest = Manifest(
            name=name,
            files=(),
            inputs=inputs,
            outputs=outputs,
            preprocess=preprocess,
            num_labels=len(labels),
            golden=golden.info,
            export=None if export is None else _without_folders(export),
            versions=dict(sorted(versions.items())),
            proof=proof,
            is_own_reference=is_own_reference,
        )
        write_text(folder / _README, readme_text(manifest))
        return _seal(folder, manifest)


def write_tuned(
    bundle: BundleFolder,
    out: Path,
    found: Sequence[tuple[TunedSettings, Path]],
    *,
    force: bool = False,
) -> Manifest:
    """Write `bundle` to the folder `out` with more tuned settings, and return its manifest.

    Settings for the same machine, runtime and objective are replaced by the last of them. A model
    file with a name that is taken gets its digest in the name as well.

    `found` are settings, each with its model file; `force` replaces an existing bundle, which may
    be `bundle` itself.

    Raises:
        BundleError: settings name no model file.
        ResdeployError: `out` exists, or it cannot be written.
    """
    new = {_purpose(settings): (settings, model) for settings, model in found}
    tuned = [one for one in bundle.manifest.tuned if _purpose(one) not in new]
    kept = {_MODEL, *(one.model for one in tuned)}
    with atomic_directory(out, force=force, marker=MANIFEST) as folder:
        for file in bundle.manifest.files:
            # Without models that no settings need any more.
            if file.path in kept or not file.path.endswith(".onnx"):
                shutil.copyfile(bundle.path / file.path, folder / file.path)
        for settings, model in new.values():
            name = _add_model(model, folder, settings.model)
            tuned.append(dataclasses.replace(settings, model=name))
        return _seal(folder, dataclasses.replace(bundle.manifest, tuned=tuple(tuned)))


def _seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of all files in the folder, read the bundle back, return the manifest."""
    files = tuple(file_info(one, relative_to=folder) for one in sorted(folder.iterdir(), key=str))
    manifest = dataclasses.replace(manifest, files=files)
    write_text(folder / MANIFEST, _manifest_text(json.loads(dump_json(manifest))))
    return read_bundle(folder).manifest


def _purpose(settings: TunedSettings) -> tuple[TunedTarget, str, int]:
    return settings.target, settings.objective, settings.batch_size


def _add_model(model: Path, folder: Path, name: str) -> str:
    """Copy a model into a folder unless it is there already, and return its name there."""
    # Settings also come from other machines: no path out of the folder.
    if not (name.endswith(".onnx") and is_plain_name(name)):
        raise BundleError(f"{name!r} is not the name of a model file.", where=str(model))
    digest = sha256_file(model)
    if (folder / name).exists() and sha256_file(folder / name) != digest:
        name = f"{name.removesuffix('.onnx')}-{digest[:8]}.onnx"
    if not (folder / name).exists():
        shutil.copyfile(model, folder / name)
    return name


def read_bundle(path: Path) -> BundleFolder:
    """Return the bundle in the folder `path`, after checking all of it.

    Raises:
        BundleError: this is not a bundle; or a file was changed, added, removed or renamed, or is
            a link; or the parts do not fit each other. The message names the file.
    """
    if not path.is_dir():
        raise BundleError("This is not a bundle: there is no such folder.", where=str(path))
    manifest, digest = _read_manifest(path / MANIFEST)
    _check_names(manifest, where=str(path / MANIFEST))
    _check_listing(path, {file.path for file in manifest.files} | {MANIFEST})
    for file in manifest.files:
        _check_content(path / file.path, file)
    golden = load_golden(path / _GOLDEN)
    if golden.info != manifest.golden:
        raise damaged("The golden file is not the one that the manifest describes", path / _GOLDEN)
    labels = _read_labels(path / _LABELS) if manifest.num_labels else ()
    if len(labels) != manifest.num_labels:
        raise damaged(
            f"There are {len(labels)} labels; the manifest says {manifest.num_labels}",
            path / _LABELS,
        )
    _check_labels(labels, golden, where=str(path / _LABELS))
    return BundleFolder(
        path=path,
        manifest=manifest,
        digest=digest,
        model=path / _MODEL,
        golden=golden,
        labels=labels,
    )


# --- the manifest --------------------------------------------------------------------------------


def digest_of(manifest: Manifest) -> str:
    """Return the SHA-256 of a manifest's text, which stands for the whole bundle."""
    return _digest(json.loads(dump_json(manifest)))


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json_text(record).encode()).hexdigest()


def _manifest_text(record: Mapping[str, Any]) -> str:
    """Return the text of manifest.json: the record, and the digest of its own text before that."""
    return _json_text({**record, "digest": _digest(record)})


def _json_text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _read_manifest(path: Path) -> tuple[Manifest, str]:
    """Return the manifest and its digest."""
    if path.is_symlink() or not path.is_file():
        raise BundleError(
            f"This is not a bundle: it has no {MANIFEST}.",
            where=str(path.parent),
            fix="give the folder that `resdeploy bundle` wrote",
        )
    raw = path.read_bytes()
    try:
        record = json.loads(raw)
        digest = record.pop("digest")
        # The text itself, not only its meaning, must be that of write_bundle: no byte is free,
        # neither a space nor a repeated key.
        intact = _manifest_text(record).encode() == raw
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise damaged("The manifest is damaged, or is not one of a bundle", path) from error
    if not intact:
        raise damaged("The manifest was changed after the bundle was written", path)
    try:
        return load_json(Manifest, _json_text(record), where=str(path)), digest
    except ResdeployError as error:
        raise BundleError(error.what, where=error.where, fix=error.fix or _REBUILD) from error


def _without_folders(export: ExportReport) -> ExportReport:
    """Return `export` with file names where it had paths, which differ between machines."""
    verification = export.verification
    if verification is not None:
        verification = dataclasses.replace(verification, model=_file_name_only(verification.model))
    return dataclasses.replace(export, file=_file_name_only(export.file), verification=verification)


def _file_name_only(file: FileInfo) -> FileInfo:
    return dataclasses.replace(file, path=PurePosixPath(file.path.replace("\\", "/")).name)


# --- checks --------------------------------------------------------------------------------------


def is_plain_name(name: str) -> bool:
    """Return True for the name of a file, rather than a path, on every system."""
    # ":" would name a drive or a hidden stream on Windows.
    return name not in ("", ".", "..") and not any(c in name for c in "/\\:\0")


def damaged(what: str, where: Path | str) -> BundleError:
    """Return the error for a bundle that is not as it was written."""
    return BundleError(f"{what}.", where=str(where), fix=_REBUILD)


def _check_names(manifest: Manifest, *, where: str) -> None:
    """Raise BundleError unless the manifest lists plain file names of this folder, each once."""
    names = [file.path for file in manifest.files]
    for name in names:
        if name == MANIFEST or not is_plain_name(name):
            raise BundleError(
                f"The manifest lists {name!r}, which is not a file of this folder.",
                where=where,
                fix="do not use this bundle: no resdeploy wrote it",
            )
    # Case is ignored, as some file systems do: two such names would be one file there.
    if len({name.casefold() for name in names}) != len(names):
        raise damaged("The manifest lists a file twice", where)
    wanted = {_MODEL, _GOLDEN, _README} | ({_LABELS} if manifest.num_labels else set())
    wanted |= {settings.model for settings in manifest.tuned}
    if missing := sorted(wanted - set(names)):
        raise damaged(f"The manifest does not list {missing[0]}", where)


def _check_listing(path: Path, names: set[str]) -> None:
    """Raise BundleError unless the folder holds these files, as ordinary files, and no others."""
    found = {entry.name for entry in os.scandir(path)}
    if missing := sorted(names - found):
        raise damaged(f"The file {missing[0]} is missing", path / missing[0])
    if added := sorted(found - names):
        raise BundleError(
            f"The file {added[0]} is not in the manifest: it was added or renamed.",
            where=str(path / added[0]),
            fix="move it elsewhere, or copy the bundle again from where it was made",
        )
    for name in sorted(names):
        status = (path / name).lstat()
        if not stat.S_ISREG(status.st_mode):
            raise damaged(f"{name} is not an ordinary file", path / name)
        if status.st_nlink > 1:
            # It could be changed through its other name after the check.
            raise BundleError(
                f"{name} has a second name elsewhere (a hard link).",
                where=str(path / name),
                fix="make a copy of the bundle (cp -r) and use that",
            )


def _check_content(path: Path, file: FileInfo) -> None:
    size_bytes = path.stat().st_size
    if size_bytes != file.size_bytes:
        raise damaged(
            f"The file {file.path} has {size_bytes} bytes; the manifest says {file.size_bytes}",
            path,
        )
    if sha256_file(path) != file.sha256:
        raise damaged(f"The file {file.path} was changed after the bundle was written", path)


def _check_labels(labels: Sequence[str], golden: Golden, *, where: str) -> None:
    floats = [output.width for output in golden.info.outputs if not output.is_exact]
    num_outputs = (floats or [0])[0] if golden.info.outputs else golden.reference.shape[-1]
    if labels and num_outputs and len(labels) != num_outputs:
        raise BundleError(f"{len(labels)} labels for {num_outputs} outputs.", where=where)
    for label in labels:
        if label.splitlines() != [label]:
            raise BundleError(f"The label {label!r} is empty, or more than one line.", where=where)


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise damaged("The labels are not UTF-8 text", path) from error


def write_text(path: Path, text: str) -> None:
    """Write the same bytes on every system: Windows too gets UTF-8 and line feeds alone."""
    path.write_text(text, encoding="utf-8", newline="\n")
