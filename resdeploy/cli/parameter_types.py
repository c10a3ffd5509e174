"""Parameter types: names that shells complete, and what a command can tell before it runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from resdeploy.architectures import ARCHITECTURE_NAMES, unknown_architecture
from resdeploy.cli.command import Checked
from resdeploy.cli.path_checks import (
    require_data,
    require_file,
    require_model,
    require_output,
    require_trained,
    require_unused,
)
from resdeploy.recipe import find_recipe, zoo
from resdeploy.session.providers import PROVIDERS, find_provider

__all__ = [
    *("ARCHITECTURE", "DATA", "FACTORY", "FILE", "MODEL", "OUTPUT", "PROVIDER", "RECIPE"),
    *("RUN", "SOURCE", "TRAINED"),
]


class _Name(Checked):
    """A name of a list, which shells complete."""

    def names(self) -> Iterable[str]:
        """Return the list."""
        raise NotImplementedError

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that go on from what is typed."""
        return [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]


class _Architecture(_Name):
    name = "name"

    def names(self) -> Iterable[str]:
        return ARCHITECTURE_NAMES

    def check(self, value: str | None, params: Mapping[str, Any]) -> None:
        if value is not None and value not in ARCHITECTURE_NAMES:
            raise unknown_architecture(value)


class _Provider(_Name):
    name = "name"

    def names(self) -> Iterable[str]:
        return PROVIDERS

    def check(self, value: str, params: Mapping[str, Any]) -> None:
        find_provider(value)


class _Recipe(_Name):
    name = "name|path"

    def names(self) -> Iterable[str]:
        return zoo()

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the named models, then whatever file the shell finds."""
        found = super().shell_complete(ctx, param, incomplete)
        return found or [CompletionItem(incomplete, type="file")]

    def check(self, value: str | None, params: Mapping[str, Any]) -> None:
        if value is not None:
            find_recipe(value)


class _Path(click.Path, Checked):
    """A path, which shells complete, judged by where it leads."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)


class _File(_Path):
    def check(self, value: Path | None, params: Mapping[str, Any]) -> None:
        if value is not None:
            require_file(value)


class _Model(_Path):
    def check(self, value: Path | None, params: Mapping[str, Any]) -> None:
        if value is not None:
            require_model(value)


class _Source(_Path):
    def __init__(self, *, takes_files: bool) -> None:
        super().__init__()
        self._takes_files = takes_files

    def check(self, value: Path | None, params: Mapping[str, Any]) -> None:
        if value is not None:
            require_trained(value, takes_files=self._takes_files)


class _Output(_Path):
    def check(self, value: Path | None, params: Mapping[str, Any]) -> None:
        if value is not None:
            require_output(value, force=params["force"])


class _Run(_Path):
    """The directory of a training, which may be there to be resumed, and is made if need be."""

    def check(self, value: Path | None, params: Mapping[str, Any]) -> None:
        if value is None and params["recipe"] in zoo():
            value = Path("runs") / params["recipe"]
        if value is not None and not (params["resume"] or params["force"]):
            require_unused(value)


class _Data(Checked):
    name = "data"

    def check(self, value: str | None, params: Mapping[str, Any]) -> None:
        if value is not None:
            require_data(value)


class _Factory(Checked):
    name = "factory"

    def check(self, value: str | None, params: Mapping[str, Any]) -> None:
        if value is not None:
            from resdeploy.cli.factory_check import require_factory

            require_factory(value)


ARCHITECTURE, PROVIDER, RECIPE = _Architecture(), _Provider(), _Recipe()
FILE, MODEL, OUTPUT, DATA, FACTORY = _File(), _Model(), _Output(), _Data(), _Factory()
RUN = _Run()
# A model in any form, and a trained one alone.
SOURCE, TRAINED = _Source(takes_files=True), _Source(takes_files=False)
