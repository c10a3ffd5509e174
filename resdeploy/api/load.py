"""`resdeploy.load`: a trained model, or a bundle, from its files."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack, get_args, overload

from resdeploy.api.arguments import (
    InputShape,
    PathLike,
    Providers,
    Source,
    is_path,
    model_of,
    one_of,
    path_of,
)
from resdeploy.errors import ResdeployError
from resdeploy.schema.files import SourceSpec, UsualPreprocess, stated_inputs
from resdeploy.schema.recipes import Scalar

if TYPE_CHECKING:
    from torch import nn

    from resdeploy.api.bundle import Bundle
    from resdeploy.export.source import SourceModel

__all__ = ["load"]


class _Stated(TypedDict, total=False):
    options: Mapping[str, Scalar] | None
    input_shape: InputShape | None
    recipe: str | None
    weights: str | None
    preprocess_as: UsualPreprocess | None
    mean: Sequence[float]
    std: Sequence[float]
    resize: int | None
    crop: int | Sequence[int] | None
    labels: PathLike | None


@overload
def load(source: PathLike, *, arch: str, **stated: Unpack[_Stated]) -> "SourceModel": ...
@overload
def load(source: "nn.Module", *, input_shape: InputShape) -> "SourceModel": ...
@overload
def load(
    source: "Source",
    *,
    arch: str | None = None,
    provider: Providers | None = None,
    **stated: Unpack[_Stated],
) -> "SourceModel | Bundle": ...
def load(
    source: "Source",
    *,
    arch: str | None = None,
    options: Mapping[str, Scalar] | None = None,
    input_shape: InputShape | None = None,
    recipe: str | None = None,
    weights: str | None = None,
    preprocess_as: UsualPreprocess | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    resize: int | None = None,
    crop: int | Sequence[int] | None = None,
    labels: PathLike | None = None,
    provider: Providers | None = None,
) -> "SourceModel | Bundle":
    """Load a trained model, or open a bundle.

    Args:
        source: a run directory or checkpoint of resdeploy; weights from elsewhere; a torch module
            in eval mode on the CPU, with `input_shape`; or a bundle, a folder or a `.zip`.
        arch: the architecture that weights from elsewhere belong to; None to find it by their names
            and shapes.
        options: that architecture's options, such as {"shortcut": "A"}.
        input_shape: of one sample, without the batch, such as (3, 224, 224).
        recipe: a recipe, by name or path, whose preprocessing and labels apply.
        weights: of several sets of weights in a file, the one that is meant: "raw", "ema", or its
            prefix.
        preprocess_as: the way from a picture to an input, by name.
        mean: of the pixels, per channel, in 0…1, or in 0…255 where one is above 1.
        std: their deviation, in the same units.
        resize: the shorter side of a picture in pixels, before the crop.
        crop: the size that is cut out of the centre, or its height and width.
        labels: the class names: a file, a folder of class folders, or "imagenet".
        provider: of a bundle: where to run it; None for the settings that `tune` found.

    Returns:
        A `Model` with `.module` (in eval mode) and `.input_shape`; of a bundle, a `Bundle`.

    Raises:
        ResdeployError: the file is missing, damaged, or does not fit the arguments.
        TypeError: `source` is something else.

    Example:
        >>> resdeploy.load("resnet50.pth", preprocess_as="imagenet").input_shape
        (3, 224, 224)
        >>> resdeploy.load("parts.zip")("photo.png").classes[0].label
        'cat'
    """
    from resdeploy.api.bundle import Bundle
    from resdeploy.bundle.archive import is_archive
    from resdeploy.bundle.folder import MANIFEST

    said = {
        "arch": arch,
        "options": options,
        "input_shape": input_shape,
        "recipe": recipe,
        "weights": weights,
        "preprocess_as": preprocess_as,
        "mean": tuple(mean) or None,
        "std": tuple(std) or None,
        "resize": resize,
        "crop": crop,
        "labels": labels,
    }
    given = [name for name, value in said.items() if value is not None]
    if preprocess_as is not None:
        one_of(preprocess_as, "preprocess_as", get_args(UsualPreprocess))
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
            weights=weights,
            preprocess_as=preprocess_as,
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
            resize=resize,
            crop=() if crop is None else (crop,) if isinstance(crop, int) else tuple(crop),
            labels=None if labels is None else str(path_of(labels, "labels")),
            **stated_inputs(input_shape),
        )
    elif unfit := [name for name in given if name != "input_shape"]:
        raise ResdeployError(f"{unfit[0]} is for a file; this is {type(source).__name__}.")
    if provider is not None:
        raise ResdeployError("provider is for a bundle: a network runs in torch.")
    return model_of(source, input_shape=input_shape)
