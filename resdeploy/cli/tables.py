"""Tables for people, and figures with their units."""

import os
from collections.abc import Iterable, Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resdeploy.schema.sessions import SESSION_OPTIONS, SessionSpec

__all__ = ["milliseconds", "pass_or_fail", "print_table", "session_text"]


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout, its title above it."""
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # As plain text: "[cuda]" is an extra, not markup.
        table.add_row(*map(Text, row))
    # Apart from the table, which would break it at its own width.
    click.echo(title)
    out = Console(highlight=False, soft_wrap=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = 120  # when piped, so that no figure is cut
    out.print(table)


def pass_or_fail(passed: bool) -> str:
    """Return the verdict in capitals."""
    return "PASS" if passed else "FAIL"


def milliseconds(duration_ns: float) -> str:
    """Return a duration in milliseconds."""
    return f"{duration_ns / 1e6:.3f} ms"


def session_text(session: SessionSpec) -> str:
    """Return a session in words: its provider, and settings other than the default."""
    parts = [session.provider]
    if session.num_threads is not None:
        parts.append(f"{session.num_threads} thread{'s' * (session.num_threads > 1)}")
    for name, option in SESSION_OPTIONS.items():
        value = getattr(session, name)
        if name not in ("provider", "num_threads") and value != option.default:
            parts.append(option.shown.format(value))
    return ", ".join(parts)
