"""Progress on stderr: drawn on a terminal, plain lines elsewhere, each with the seconds so far."""

import os
import re
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

# Lines of steps between the first and the last.
_NUM_LINES = 10


@contextmanager
def show_stages(title: str) -> Iterator[OnStage]:
    """Show the name of the stage that the given function was last called with."""
    console = _console()
    if console is None:
        yield _Lines(title).say
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with _progress(console, *columns) as progress:
        task = progress.add_task(title, total=None)
        yield lambda stage: progress.update(task, description=f"{title}: {stage}")


@contextmanager
def show_steps(title: str) -> Iterator[OnProgress]:
    """Show a bar; the given function takes (steps done, total or None, a remark).

    Elsewhere than on a terminal a line for each tenth of the way, and for each new remark. With
    `RESDEPLOY_PROGRESS=lines` a line for every step, for a program to pass on.
    """
    if os.environ.get("RESDEPLOY_PROGRESS") == "lines":
        yield _say_in_lines
        return
    console = _console()
    if console is None:
        yield _Lines(title).step
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
    with _progress(console, *columns) as progress:
        task = progress.add_task(title, total=None, remark="")
        yield lambda done, total, remark: progress.update(
            task, completed=done, total=total, remark=remark
        )


class _Lines:
    """Plain lines on stderr, the same text once."""

    def __init__(self, title: str) -> None:
        self._title, self._started, self._last = title, time.monotonic(), ""

    def say(self, text: str, *, key: str | None = None) -> None:
        """Print a line, unless the last one had this key, or text without one."""
        key = text if key is None else key
        if key != self._last:
            self._last = key
            seconds = time.monotonic() - self._started
            print(f"{self._title}: {seconds:6.1f} s  {text}", file=sys.stderr, flush=True)

    def step(self, done: int, total: int | None, remark: str) -> None:
        """Print a line for a step, if it is the first of its tenth."""
        if total is None:
            self.say(remark)
        else:
            # Of a remark with figures in it, only the words tell stages apart.
            words = re.sub(r"[\d.,%]+", "", remark)
            tenth = _NUM_LINES * done // max(1, total)
            self.say(", ".join(filter(None, (remark, f"{done} of {total}"))), key=f"{words}{tenth}")


def _say_in_lines(done: int, total: int | None, remark: str) -> None:
    steps = "" if total is None else f", {done} of {total}"
    print(f"progress: {remark}{steps}", file=sys.stderr, flush=True)


@contextmanager
def show_devices(title: str, names: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
    """Show one row for each device; the given function takes its number and its new stage."""
    console = _console()
    if console is None:
        lines = [_Lines(f"{title} {name}") for name in names]
        # What follows a colon says how far a stage is: no line of its own.
        yield lambda number, stage: lines[number].say(stage.partition(":")[0])
        return
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

    with Live(get_renderable=table, console=console, transient=True, refresh_per_second=4):
        yield enter


def _console() -> Console | None:
    """Return the terminal on stderr; None where there is none that can draw."""
    console = Console(stderr=True)
    return console if console.is_terminal and not console.is_dumb_terminal else None


def _progress(console: Console, *columns: ProgressColumn) -> Progress:
    return Progress(*columns, console=console, transient=True)
