"""Paths judged by their names and by what lies there, without reading a file."""

import os
from collections.abc import Iterator
from pathlib import Path

from resdeploy.data.names import DATA_NAMES, IMAGE_SUFFIXES
from resdeploy.errors import ResdeployError
from resdeploy.files import refuse_output
from resdeploy.near import did_you_mean
from resdeploy.recipe import zoo
from resdeploy.schema.files import CHECKPOINT_NAME, CHECKPOINT_SUFFIXES, MANIFEST

__all__ = [
    *("require_data", "require_file", "require_model", "require_output", "require_trained"),
    "require_unused",
]

_MOST_FILES = 10_000

_TO_ONNX = "python -m tf2onnx.convert"
_COMPILED = (
    "it is compiled and cannot be read back: give the ONNX file or checkpoint it was made of"
)
# Of files that other tools write: their format, and the way from there.
_FOREIGN = {
    ".h5": ("Keras", f"convert it first: {_TO_ONNX} --keras {{0}} --output model.onnx"),
    ".keras": ("Keras", f"convert it first: {_TO_ONNX} --keras {{0}} --output model.onnx"),
    ".hdf5": ("Keras", f"convert it first: {_TO_ONNX} --keras {{0}} --output model.onnx"),
    ".pb": (
        "TensorFlow",
        f"convert it first: {_TO_ONNX} --saved-model FOLDER --output model.onnx",
    ),
    ".tflite": (
        "TensorFlow Lite",
        f"convert it first: {_TO_ONNX} --tflite {{0}} --output model.onnx",
    ),
    **dict.fromkeys((".engine", ".plan", ".trt"), ("TensorRT", _COMPILED)),
    **dict.fromkeys((".xml",), ("OpenVINO", _COMPILED)),
    **dict.fromkeys((".mlmodel", ".mlpackage", ".mlmodelc"), ("Core ML", _COMPILED)),
    ".rknn": ("Rockchip", _COMPILED),
    ".hef": ("Hailo", _COMPILED),
    ".dlc": ("Qualcomm", _COMPILED),
    ".ort": ("ONNX Runtime's own format", "give the .onnx file it was made of"),
    ".caffemodel": ("Caffe", "convert it to ONNX first, or give the weights for PyTorch"),
    ".params": ("MXNet", "convert it first, in Python: mxnet.onnx.export_model(…)"),
    **dict.fromkeys(
        (".pdmodel", ".pdparams"),
        ("PaddlePaddle", "convert it first: paddle2onnx --model_dir FOLDER --save_file model.onnx"),
    ),
}


def require_file(path: Path) -> None:
    """Raise a `ResdeployError` unless there is something at `path`; it names what is near."""
    if path.exists():
        return
    folder = path.parent
    if not folder.is_dir():
        raise ResdeployError(
            f"There is no folder {str(folder)!r}.", where=str(path), fix=_near(folder, "a file")
        )
    raise ResdeployError("There is no such file.", where=str(path), fix=_near(path, "a file"))


def require_trained(path: Path, *, takes_files: bool = True) -> None:
    """Raise a `ResdeployError` unless `path` may be a trained model, or a file made of one.

    `takes_files` is False where an ONNX file or a bundle will not do.
    """
    _refuse_what_is_no_path(path)
    require_file(path)
    _refuse_foreign(path)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            if not takes_files:
                raise _made_of_one(path, "a bundle")
        elif not any(_holds(path, (CHECKPOINT_NAME, "config.json"), (".safetensors",))):
            raise _no_model_in(path)
    elif not takes_files and path.suffix.lower() == ".onnx":
        raise _made_of_one(path, "an ONNX file")


def require_model(path: Path) -> None:
    """Raise a `ResdeployError` unless `path` may be an ONNX file or a bundle."""
    require_file(path)
    _refuse_foreign(path)
    is_run = (path / CHECKPOINT_NAME).is_file()
    if is_run or (path.is_file() and path.suffix.lower() in CHECKPOINT_SUFFIXES):
        raise ResdeployError(
            "This is a trained model; an ONNX file or a bundle is needed here.",
            where=str(path),
            fix=f"export it first: resdeploy export {path} -o {path.stem}.onnx",
        )
    if path.is_dir() and not (path / MANIFEST).is_file():
        raise _no_model_in(path)


def require_output(path: Path, *, force: bool) -> None:
    """Raise a `ResdeployError` unless `path` may be written, as far as its folder tells."""
    refuse_output(path, force=force)
    suffix = path.suffix.lower()
    if suffix in _FOREIGN:
        raise ResdeployError(
            f"{_FOREIGN[suffix][0]} files are not written by resdeploy.",
            where=str(path),
            fix=f"write {path.with_suffix('.onnx').name}, and convert that on the target",
        )


def require_unused(directory: Path) -> None:
    """Raise a `ResdeployError` where a run, or something else, is in a directory."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ResdeployError(
            "The run directory is in use.",
            where=str(directory),
            fix="go on with the run in it by --resume, replace it with --force, or give another "
            "directory with -o",
        )


def require_data(text: str) -> None:
    """Raise a `ResdeployError` unless `text` may be a data set, or a file or folder of one."""
    name, _, place = text.partition(":")
    if name in ("image-folder", "npz") and place:
        text = place
    elif name in DATA_NAMES:  # the readers of the others say which file is missing
        return
    path = Path(text).expanduser()
    if path.suffix == ".npz":
        require_file(path)
    if not path.exists():
        beside = [one.name for one in _beside(path)]
        raise ResdeployError(
            f"There is no data set {text!r}, and no such folder.",
            where=text,
            fix=did_you_mean(
                path.name,
                (*DATA_NAMES, *beside),
                otherwise="one of: digits, mnist1d, cifar10:PATH, cifar100:PATH, FILE.npz, a "
                "folder of images",
            ),
        )
    if path.is_dir() and not any(_holds(path, (), IMAGE_SUFFIXES, deep=True)):
        raise ResdeployError(
            "This folder holds no images.",
            where=text,
            fix=f"give a folder of {', '.join(IMAGE_SUFFIXES)}, or of one folder for each class",
        )


def _refuse_what_is_no_path(path: Path) -> None:
    """Refuse a name of the zoo, and a factory, which other commands and options take."""
    if path.exists():
        return
    if str(path) in zoo():
        raise ResdeployError(
            "This is a recipe, not a trained model.",
            where=str(path),
            fix=f"train it first: resdeploy train {path}, or give it with --recipe",
        )
    module, colon, name = str(path).rpartition(":")
    if colon and name.isidentifier() and module:
        raise ResdeployError(
            "There is no such file.", where=str(path), fix=f"of a factory: --model {path}"
        )


def _refuse_foreign(path: Path) -> None:
    if (known := _FOREIGN.get(path.suffix.lower())) is not None:
        kind, fix = known
        raise ResdeployError(f"This is a file of {kind}.", where=str(path), fix=fix.format(path))
    if (path / "saved_model.pb").is_file():
        fix = f"convert it first: {_TO_ONNX} --saved-model {path} --output model.onnx"
        raise ResdeployError("This is a folder of TensorFlow.", where=str(path), fix=fix)


def _made_of_one(path: Path, kind: str) -> ResdeployError:
    return ResdeployError(
        f"This is {kind}; a trained PyTorch model is needed here.",
        where=str(path),
        fix="give the checkpoint or run directory it was made of; `resdeploy fold-bn` folds an "
        "ONNX file",
    )


def _no_model_in(path: Path) -> ResdeployError:
    """Return the refusal of a folder, which names the models in it and in its folders."""
    inside = sorted(_holds(path, (), (*CHECKPOINT_SUFFIXES, ".onnx", ".zip")))
    inside += sorted(
        one
        for one in _entries(path)
        if any((one / name).is_file() for name in (CHECKPOINT_NAME, MANIFEST))
    )
    fix = "give a file, or a folder that resdeploy wrote"
    if inside:
        more = ", …" if len(inside) > 3 else ""
        fix = f"did you mean {' or '.join(map(str, inside[:3]))}{more}?"
    return ResdeployError("This folder is not a model.", where=str(path), fix=fix)


def _holds(
    folder: Path, names: tuple[str, ...], suffixes: tuple[str, ...], *, deep: bool = False
) -> Iterator[Path]:
    """Yield the files of a folder, or of all below it too, of these names or suffixes."""
    num_seen = 0
    for place, folders, files in os.walk(folder, followlinks=True):
        for name in files:
            if name in names or name.lower().endswith(suffixes):
                yield Path(place) / name
        num_seen += len(files)
        if not deep or num_seen > _MOST_FILES:
            folders.clear()


def _near(path: Path, kind: str) -> str:
    """Return the fix for a path that is not there."""
    beside = {one.name: one for one in _beside(path)}
    if twins := [name for name in beside if path.stem and Path(name).stem == path.stem]:
        return f"did you mean {' or '.join(str(beside[name]) for name in sorted(twins)[:3])}?"
    by_path = {str(one): one for one in beside.values()}
    return did_you_mean(str(path), by_path, otherwise=f"give {kind} that exists")


def _beside(path: Path) -> list[Path]:
    return _entries(path.parent)


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder, hidden files left out; [] where there is none."""
    try:
        return [one for one in folder.iterdir() if not one.name.startswith(".")]
    except OSError:
        return []
