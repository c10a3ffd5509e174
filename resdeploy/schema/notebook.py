"""The HTML form of a record, for notebooks: its verdict, then its fields as a table."""

import dataclasses
import html
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["html_of"]

# Of a list or a mapping; the rest is a number, as --json has it all.
_MOST_ITEMS = 20


def html_of(record: Any) -> str:
    """Return a record as one HTML fragment: a heading, and a row for each field; all escaped.

    Records within it are folded up. Of a long list, as of latencies, the first items are shown.
    """
    return "".join(_record(record, is_open=True))


def _record(record: Any, *, is_open: bool = False) -> Iterator[str]:
    yield f"<details{' open' if is_open else ''}><summary>{type(record).__name__}"
    if isinstance(verdict := getattr(record, "passed", None), bool):
        yield f" <b>{'PASS' if verdict else 'FAIL'}</b>"
    yield "</summary>"
    yield from _table(
        (field.name, getattr(record, field.name)) for field in dataclasses.fields(record)
    )
    yield "</details>"


def _table(rows: Any) -> Iterator[str]:
    yield "<table>"
    for name, value in rows:
        yield f'<tr><th style="text-align:left">{html.escape(str(name))}</th>'
        yield '<td style="text-align:left">'
        yield from _value(value)
        yield "</td></tr>"
    yield "</table>"


def _value(value: Any) -> Iterator[str]:
    if dataclasses.is_dataclass(value):
        yield from _record(value)
    elif isinstance(value, tuple) or (isinstance(value, Mapping) and value):
        shown = list(value.items() if isinstance(value, Mapping) else value)[:_MOST_ITEMS]
        if isinstance(value, Mapping):
            yield from _table(shown)
        elif any(map(dataclasses.is_dataclass, shown)):
            for item in shown:
                yield from _value(item)
        else:
            yield html.escape(", ".join(map(str, shown)))
        if len(value) > _MOST_ITEMS:
            yield f" and {len(value) - _MOST_ITEMS} more"
    else:
        yield html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))
