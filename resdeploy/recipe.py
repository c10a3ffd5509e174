"""Recipes, read from `models/NAME/recipe.toml` and its `labels.txt`."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from resdeploy.errors import ResdeployError
from resdeploy.near import did_you_mean
from resdeploy.schema.codec import from_json
from resdeploy.schema.recipes import DataSpec, Preprocess, Recipe, TrainPrecision

__all__ = [
    *("adjust_recipe", "find_recipe", "load_inputs", "load_recipe", "zoo"),
    "zoo_directory",
]


def zoo_directory() -> Path:
    """Return the folder of the named models: `models/` of a checkout, or of the installed wheel."""
    package = Path(__file__).parent
    for candidate in (package / "models", package.parent / "models"):
        if candidate.is_dir():
            return candidate
    raise ResdeployError("The folder of named models is missing.", where=str(package))


def zoo() -> tuple[str, ...]:
    """Return the names of the models that come with resdeploy."""
    return tuple(sorted(path.parent.name for path in zoo_directory().glob("*/recipe.toml")))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Return the recipe of a named model, of a folder, or of a recipe.toml.

    Raises:
        ResdeployError: there is no such recipe, or it is incomplete or contradicts itself.
    """
    path = find_recipe(name_or_path)
    recipe = from_json(Recipe, _read(path), where=str(path))
    if recipe.labels and len(recipe.labels) != recipe.model.num_classes:
        raise ResdeployError(
            f"{len(recipe.labels)} labels for {recipe.model.num_classes} classes.",
            where=str(path.with_name("labels.txt")),
        )
    return recipe


def load_inputs(name_or_path: str | Path) -> tuple[Preprocess | None, tuple[str, ...]]:
    """Return the preprocessing and the labels of a recipe, which may hold nothing else.

    Raises:
        ResdeployError: there is no such recipe, it holds neither, or something that no recipe has.
    """
    path = find_recipe(name_or_path)
    data = _read(path)
    known = {field.name for field in dataclasses.fields(Recipe)}
    if unknown := sorted(set(data) - known):
        raise ResdeployError(
            f"Unknown field {unknown[0]!r}.",
            where=str(path),
            fix=f"a recipe has {', '.join(sorted(known))}",
        )
    preprocess = None
    if "preprocess" in data:
        preprocess = from_json(Preprocess, data["preprocess"], where=f"{path}: preprocess")
    labels = tuple(data.get("labels", ()))
    if preprocess is None and not labels:
        raise ResdeployError(
            "The recipe says neither how samples become inputs nor what the classes are called.",
            where=str(path),
            fix="give it a table [preprocess], or a labels.txt beside it",
        )
    return preprocess, labels


def _read(path: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ResdeployError(f"The recipe cannot be read: {error}.", where=str(path)) from error
    if "labels" in data:
        raise ResdeployError(
            "Labels belong in labels.txt, one a line, beside the recipe.", where=str(path)
        )
    labels = path.with_name("labels.txt")
    if labels.is_file():
        data["labels"] = labels.read_text(encoding="utf-8").splitlines()
    data.setdefault("name", path.parent.name)
    return data


def adjust_recipe(
    recipe: Recipe,
    *,
    data: DataSpec | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    precision: TrainPrecision | None = None,
    channels_last: bool | None = None,
    compiled: bool | None = None,
) -> Recipe:
    """Return `recipe` with other data, length, seed or arithmetic; None leaves it as it is.

    Other data keep the recipe's augmentation and split.
    """
    if data is not None:
        data = dataclasses.replace(recipe.data, name=data.name, path=data.path)
    asked = {
        "epochs": epochs,
        "seed": seed,
        "precision": precision,
        "channels_last": channels_last,
        "compile": compiled,
    }
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    train = dataclasses.replace(recipe.train, **changes)
    return dataclasses.replace(recipe, data=data or recipe.data, train=train)


def find_recipe(name_or_path: str | Path) -> Path:
    """Return the file of a recipe: that of a named model, of a folder, or itself.

    Raises:
        ResdeployError: there is none.
    """
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "recipe.toml"
    if path.is_file():
        return path
    named = zoo_directory() / str(name_or_path) / "recipe.toml"
    if named.is_file():
        return named
    raise ResdeployError(
        f"There is no recipe {str(name_or_path)!r}.",
        fix=did_you_mean(
            str(name_or_path),
            zoo(),
            otherwise=f"give a path to a recipe.toml, or one of: {', '.join(zoo())}",
        ),
    )
