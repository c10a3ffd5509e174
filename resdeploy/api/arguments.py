"""The arguments that verbs share: paths, sessions, data sets and models, read into records."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.files import InputShape as InputShape
from resdeploy.schema.files import stated_inputs
from resdeploy.schema.recipes import DataSpec, SourceSpec
from resdeploy.schema.sessions import SessionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import nn

    from resdeploy.export.source import SourceModel

__all__ = [
    *("Data", "InputShape", "Inputs", "Layout", "OnProgress", "OnStage", "PathLike"),
    *("Providers", "Source"),
    *("data_of", "export_spec", "is_onnx", "is_path", "model_of", "one_of", "optional_data"),
    *("optional_path", "path_of", "session_of", "sessions_of", "silent", "source_spec"),
]

Layout = Literal["NCHW", "NHWC"]
PathLike = str | os.PathLike[str]
Data = str | os.PathLike[str] | DataSpec
Providers = str | SessionSpec | Sequence[str | SessionSpec]
if TYPE_CHECKING:
    # A trained model: loaded, a module of torch, a request, or a path.
    Source = SourceModel | nn.Module | SourceSpec | str | os.PathLike[str]
    Input = PathLike | Image | NDArray[Any]
    # Samples for a bundle: an image, an array, a file or folder of them, or several of these.
    Inputs = Input | Sequence[Input]
else:
    Source = Inputs = Any

OnStage = Callable[[str], None]
OnProgress = Callable[[int, int | None, str], None]


def silent(*_: object) -> None:
    """Show nothing: the default of every `on_stage` and `on_progress`."""


def is_path(value: object) -> bool:
    """Return True for a path."""
    return isinstance(value, str | os.PathLike)


def path_of(value: object, name: str) -> Path:
    """Return a path; TypeError, with the argument's `name`, for anything else."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, not {type(value).__name__}")
    return Path(value)


def optional_path(value: object, name: str) -> Path | None:
    """Return a path, or None for None."""
    return None if value is None else path_of(value, name)


def one_of(value: str, name: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in (known := tuple(choices)):
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def sessions_of(provider: Providers, name: str = "provider") -> list[SessionSpec]:
    """Return the sessions for names of providers, or `SessionSpec`s; ValueError for none."""
    found: list[Any] = [provider]
    if isinstance(provider, Iterable) and not isinstance(provider, str):
        found = [*provider]
    if not found:
        raise ValueError(f"{name} must name at least one")
    for one in found:
        if not isinstance(one, str | SessionSpec):
            raise TypeError(f"{name} must be a name or a SessionSpec, not {type(one).__name__}")
    return [SessionSpec(provider=one) if isinstance(one, str) else one for one in found]


def session_of(provider: Providers, name: str = "provider") -> SessionSpec:
    """Return the session for a provider's name or a `SessionSpec`; ValueError for several."""
    session, *others = sessions_of(provider, name)
    if others:
        raise ValueError(f"{name} must be one")
    return session


def data_of(data: Data, name: str = "data") -> DataSpec:
    """Return the data set that a text such as "cifar10:PATH", or a path, names."""
    if isinstance(data, DataSpec):
        return data
    from resdeploy.data.datasets import parse_data

    return parse_data(data if isinstance(data, str) else str(path_of(data, name)))


def optional_data(data: Data | None, name: str = "data") -> DataSpec | None:
    """Return a data set, or None for None."""
    return None if data is None else data_of(data, name)


def export_spec(
    *,
    batch: int | Literal["dynamic"],
    fold: bool,
    opset: int | None,
    target: PathLike | None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> ExportSpec:
    """Return the request to export, in a form that the target's runtime reads."""
    from resdeploy.machine.compatibility import for_target

    if batch != "dynamic" and (type(batch) is not int or batch < 1):
        raise ValueError(f"batch must be 'dynamic' or a positive number, not {batch!r}")
    spec = ExportSpec(
        batch=batch,
        fold=fold,
        input_names=tuple(input_names),
        output_names=tuple(output_names),
    )
    return for_target(spec, opset=opset, target=optional_path(target, "target"))


def source_spec(source: object, input_shape: InputShape | None = None) -> SourceSpec | None:
    """Return the request for a trained model in a file; None for a live one."""
    if isinstance(source, SourceSpec):
        return source
    if not isinstance(source, str | os.PathLike):
        return None
    return SourceSpec(path=os.fspath(source), **stated_inputs(input_shape))


def is_onnx(spec: SourceSpec) -> bool:
    """Return True for the request for an ONNX file."""
    return spec.path is not None and Path(spec.path).suffix.lower() == ".onnx"


def model_of(
    source: "Source",
    *,
    input_shape: InputShape | None = None,
    embed_preprocess: bool = False,
    layout: Layout = "NCHW",
    dynamic: Sequence[str] = (),
    name: str = "source",
) -> "SourceModel":
    """Return the trained model of a source, with its preprocessing inside if that is asked for.

    With `layout` NHWC it takes its images with their channels last; sides in `dynamic` stay open.
    """
    from resdeploy.export.embedded import embed_preprocess as embedded
    from resdeploy.export.source import (
        SourceModel,
        load_source,
        model_of_module,
        with_open_sides,
    )

    if (spec := source_spec(source, input_shape)) is not None:
        model = load_source(spec)
    elif isinstance(source, SourceModel):
        model = source
    else:
        model = model_of_module(source, input_shape, name=name)
    if embed_preprocess:
        return with_open_sides(embedded(model), dynamic)
    model = with_open_sides(model, dynamic)
    if layout == "NHWC":
        from resdeploy.export.channels_last import channels_last

        return channels_last(model)
    return model
