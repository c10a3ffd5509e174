"""Progress on stderr: drawn on a terminal, absent when piped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Update", "show_stages", "show_steps"]


class Update(Protocol):
    """Shows how many steps are done, of how many if that is known, and a remark."""

    def __call__(self, done: int, total: int | None, remark: str) -> None:
        """Show that so many steps are done."""


@contextmanager
def show_stages(title: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with the name of the stage that the given function was last called with."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with _progress(*columns) as progress:
        task = progress.add_task(title, total=None)
        yield lambda stage: progress.update(task, description=f"{title}: {stage}")


@contextmanager
def show_steps(title: str) -> Iterator[Update]:
    """Show a bar; the given function takes (steps done, steps in all or None, a remark)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[remark]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with _progress(*columns) as progress:
        task = progress.add_task(title, total=None, remark="")

        def update(done: int, total: int | None, remark: str) -> None:
            progress.update(task, completed=done, total=total, remark=remark)

        yield update


def _progress(*columns: object) -> Progress:
    console = Console(stderr=True)
    return Progress(
        *columns,  # type: ignore[arg-type]
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
