"""Progress on stderr: drawn on a terminal, absent when piped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

__all__ = ["show_stages", "show_steps"]


@contextmanager
def show_stages(title: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with the name of the stage that the given function was last called with."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with _progress(*columns) as progress:
        task = progress.add_task(title, total=None)
        yield lambda stage: progress.update(task, description=f"{title}: {stage}")


@contextmanager
def show_steps(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar; the given function takes (steps done, steps in all, a remark)."""
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

        def update(done: int, total: int, remark: str) -> None:
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
