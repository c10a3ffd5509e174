"""Tables for people, and figures with their units."""

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table
from rich.text import Text

from resdeploy.schema.sessions import SESSION_OPTIONS, SessionSpec

__all__ = ["Lines", "milliseconds", "pass_or_fail", "session_text", "table"]

# A record as text.
Lines = Iterator[str | Table]


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """Yield a table, its title above it, since the table would break it at its own width."""
    yield title
    grid = Table()
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        # As plain text: "[cuda]" is an extra, not markup.
        grid.add_row(*map(Text, row))
    yield grid


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
