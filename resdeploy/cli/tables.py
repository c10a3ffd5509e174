"""Tables for people, and figures with their units."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from resdeploy.schema.sessions import SESSION_OPTIONS, SessionSpec

__all__ = ["Grid", "Lines", "coloured", "milliseconds", "pass_or_fail", "session_text", "table"]

_VERDICT = re.compile(r"\b(?:(PASS|PROVED)|(AGREES)|(FAIL))\b")
_STYLES = ("bold green", "bold yellow", "bold red")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table as text, before it is known how wide it may be."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def drawn(self, width: int) -> Table:
        """Return it for a terminal so many characters wide, with no word cut.

        Where the words need the room of the frame it goes; where they need more, a row is as many
        lines as it has cells.
        """
        least = self._words()
        # A space on either side of each column, and the frame; or two between columns.
        budget, drawn = width - 3 * len(least) - 1, Table()
        if sum(least) > budget:
            budget = width - 2 * (len(least) - 1)
            drawn = Table(
                box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
            )
        if sum(least) > budget:
            return self._upright()
        widths = shared_width(least, self._lines(), budget)
        for column, size in zip(self.columns, widths, strict=True):
            drawn.add_column(column, overflow="fold", width=size)
        for row in self.rows:
            # As plain text: "[cuda]" is an extra, not markup.
            drawn.add_row(*map(coloured, row))
        return drawn

    def _upright(self) -> Table:
        drawn = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
        for row in self.rows:
            for column, cell in zip(self.columns, row, strict=True):
                if cell:
                    drawn.add_row(column, coloured(cell))
            drawn.add_row()
        return drawn

    def _words(self) -> list[int]:
        """Return the width of the longest word of each column, in characters."""
        return [
            max(len(word) for cell in cells for word in cell.split() or [""])
            for cells in self._cells()
        ]

    def _lines(self) -> list[int]:
        return [
            max(len(line) for cell in cells for line in cell.splitlines() or [""])
            for cells in self._cells()
        ]

    def _cells(self) -> Iterator[tuple[str, ...]]:
        yield from zip(self.columns, *self.rows, strict=True)


def shared_width(least: Sequence[int], wanted: Sequence[int], budget: int) -> list[int]:
    """Return the widths of columns that share `budget` characters: at least `least` of each.

    No column gets more than is `wanted` of it, and the sum of `least` is within the budget.
    """
    widths = [*least]
    spare = budget - sum(least)
    # The one that needs the least first: what it leaves is for the others.
    order = sorted(range(len(least)), key=lambda column: wanted[column] - least[column])
    for rank, column in enumerate(order):
        more = min(max(0, wanted[column] - least[column]), spare // (len(order) - rank))
        widths[column] += more
        spare -= more
    return widths


# A record as text.
Lines = Iterator[str | Grid]


def coloured(text: str) -> Text:
    """Return a text with its verdicts in green, yellow or red, where there is colour."""
    found = Text(text)
    for match in _VERDICT.finditer(text):
        found.stylize(_STYLES[(match.lastindex or 1) - 1], *match.span())
    return found


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """Yield a table, its title above it, since the table would break it at its own width."""
    yield title
    yield Grid(columns=tuple(columns), rows=tuple(map(tuple, rows)))


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
