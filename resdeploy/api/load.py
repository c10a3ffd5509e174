"""`resdeploy.load`: a trained model, or a bundle, from its files."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, overload

from resdeploy.api.arguments import (
    InputShape,
    PathLike,
    Providers,
    Source,
    is_path,
    model_of,
    path_of,
)
from resdeploy.errors import ResdeployError
from resdeploy.schema.files import stated_inputs
from resdeploy.schema.recipes import Scalar, SourceSpec

if TYPE_CHECKING:
    from torch import nn

    from resdeploy.api.bundle import Bundle
    from resdeploy.export.source import SourceModel

__all__ = ["load"]


@overload
def load(
    source: PathLike,
    *,
    arch: str,
    options: Mapping[str, Scalar] | None = None,
    input_shape: InputShape | None = None,
    recipe: str | None = None,
) -> "SourceModel": ...
@overload
def load(source: "nn.Module", *, input_shape: InputShape) -> "SourceModel": ...
@overload
def load(
    source: "Source",
    *,
    arch: str | None = None,
    options: Mapping[str, Scalar] | None = None,
    input_shape: InputShape | None = None,
    recipe: str | None = None,
    provider: Providers | None = None,
) -> "SourceModel | Bundle": ...
def load(
    source: "Source",
    *,
    arch: str | None = None,
    options: Mapping[str, Scalar] | None = None,
    input_shape: InputShape | None = None,
    recipe: str | None = None,
    provider: Providers | None = None,
) -> "SourceModel | Bundle":
    """Load a trained model, or open a bundle.

    Args:
        source: a run directory or checkpoint of resdeploy; weights from elsewhere, with `arch`;
            a torch module in eval mode on the CPU, with `input_shape`; or a bundle, a folder or a
            `.zip`.
        arch: the architecture that weights from elsewhere belong to.
        options: that architecture's options, such as {"shortcut": "A"}.
        input_shape: of one sample, without the batch, such as (3, 224, 224).
        recipe: a recipe, by name or path, whose preprocessing and labels apply.
        provider: of a bundle: where to run it; None for the settings that `tune` found.

    Returns:
        A `Model` with `.module` (in eval mode) and `.input_shape`; of a bundle, a `Bundle`.

    Raises:
        ResdeployError: the file is missing, damaged, or does not fit the arguments.
        TypeError: `source` is something else.

    Example:
        >>> resdeploy.load("resnet50.pth", arch="resnet50").input_shape
        (3, 224, 224)
        >>> resdeploy.load("parts.zip")("photo.png").classes[0].label
        'cat'
    """
    from resdeploy.api.bundle import Bundle
    from resdeploy.bundle.archive import is_archive
    from resdeploy.bundle.folder import MANIFEST

    said = {"arch": arch, "options": options, "input_shape": input_shape, "recipe": recipe}
    given = [name for name, value in said.items() if value is not None]
    if is_path(source):
        path = path_of(source, "source")
        if is_archive(path) or (path / MANIFEST).is_file():
            if given:
                raise ResdeployError(
                    f"A bundle says itself what it holds: {given[0]} is not for it.",
                    where=str(path),
                )
            return Bundle(path, provider=provider)
        source = SourceSpec(
            path=str(path),
            arch=arch,
            options={name: str(value) for name, value in (options or {}).items()},
            recipe=recipe,
            **stated_inputs(input_shape),
        )
    elif unfit := [name for name in given if name != "input_shape"]:
        raise ResdeployError(f"{unfit[0]} is for a file; this is {type(source).__name__}.")
    if provider is not None:
        raise ResdeployError("provider is for a bundle: a network runs in torch.")
    return model_of(source, input_shape=input_shape)
