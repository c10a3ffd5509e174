"""Progress on stderr: drawn on a terminal, absent when piped."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from resdeploy.api.arguments import OnProgress, OnStage

__all__ = ["show_devices", "show_stages", "show_steps"]


@contextmanager
def show_stages(title: str) -> Iterator[OnStage]:
    """Show a spinner with the name of the stage that the given function was last called with."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with _progress(*columns) as progress:
        task = progress.add_task(title, total=None)
        yield lambda stage: progress.update(task, description=f"{title}: {stage}")


@contextmanager
def show_steps(title: str) -> Iterator[OnProgress]:
    """Show a bar; the given function takes (steps done, total or None, a remark).

    With `RESDEPLOY_PROGRESS=lines`, lines on stderr instead, for a program to pass on.
    """
    if os.environ.get("RESDEPLOY_PROGRESS") == "lines":
        yield _say_in_lines
        return
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
        yield lambda done, total, remark: progress.update(
            task, completed=done, total=total, remark=remark
        )


def _say_in_lines(done: int, total: int | None, remark: str) -> None:
    steps = "" if total is None else f", {done} of {total}"
    print(f"progress: {remark}{steps}", file=sys.stderr, flush=True)


@contextmanager
def show_devices(title: str, names: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
    """Show one row for each device; the given function takes its number and its new stage."""
    started = time.monotonic()
    stages = [("waiting", started)] * len(names)

    def table() -> Table:
        rows = Table(title=title, title_justify="left")
        for column in ("device", "stage", "time"):
            rows.add_column(column)
        for name, (stage, since) in zip(names, stages, strict=True):
            over = stage in ("done", "failed")
            seconds = since - started if over else time.monotonic() - since
            rows.add_row(Text(name), stage, f"{seconds:.0f} s")
        return rows

    def enter(number: int, stage: str) -> None:
        # What follows a colon says how far a stage is: it goes on.
        is_same = stages[number][0].partition(":")[0] == stage.partition(":")[0]
        stages[number] = (stage, stages[number][1] if is_same else time.monotonic())

    console = Console(stderr=True)
    if not console.is_terminal:
        yield enter
        return
    with Live(get_renderable=table, console=console, transient=True, refresh_per_second=4):
        yield enter


def _progress(*columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
