"""The figures that README.md, docs/ and the model cards state: their sources, and what is stale.

    python -m benchmarks.figures                list what is stale, measure again what takes minutes
    python -m benchmarks.figures --list-only

`figures.toml` quotes each figure with the words around it, so that a sentence may move from page to
page. A measured figure names a measurement and points into its JSON; the test
`tests/benchmarks/test_figures.py` holds the words to the JSON, and the numbers to the list.
"""

import functools
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

REPOSITORY = Path(__file__).parents[1]

# A number with a unit, or a count of a count.
NUMBER = r"\d[\d,]*(?:\.\d+)?"
UNITS = r"%|\u00d7|x(?! ?\d)\b|times\b|[mµun]?s\b|(?:second|minute|hour|point)s?\b|ulp\b|[kMG]B\b"
FIGURE = re.compile(rf"(?<![\w.,])({NUMBER}) ?(?:{UNITS})|(?<![\w.,])({NUMBER}) of {NUMBER}")

# From a value of a JSON file to the number that is stated.
FORMS = {
    "itself": lambda value: value,
    "ms": lambda value: value / 1e6,
    "percent": lambda value: 100 * value,
    "excess": lambda value: 100 * (value - 1),
    "inverse": lambda value: 1 / value,
}


def pages() -> dict[str, str]:
    """Return the pages that may state a figure, by their paths."""
    found = ["README.md", "docs/**/*.md", "models/*/README.md"]
    paths = [path for pattern in found for path in sorted(REPOSITORY.glob(pattern))]
    return {str(path.relative_to(REPOSITORY)): path.read_text() for path in paths}


def parts(page: str) -> tuple[str, list[str]]:
    """Return the prose of a page on one line, without commands, and its fenced blocks.

    On one line a quotation is found however it is wrapped.
    """
    blocks = re.findall(r"^```.*?^```", page, flags=re.DOTALL | re.MULTILINE)
    for block in blocks:
        page = page.replace(block, "")
    prose = re.sub(r"^ {4}(resdeploy|python|pip|make) .*$", "", page, flags=re.MULTILINE)
    return " ".join(prose.split()), blocks


def load() -> dict[str, Any]:
    """Return the list: its measurements by name, and its figures."""
    return tomllib.loads((REPOSITORY / "benchmarks" / "figures.toml").read_text())


def values_at(data: Any, pointer: str) -> Iterator[float]:
    """Yield the values at a JSON pointer; `*` stands for every entry of a list."""
    found = [data]
    for part in pointer.split("/")[1:]:
        if part == "*":
            found = [one for each in found for one in each]
        else:
            found = [each[int(part) if isinstance(each, list) else part] for each in found]
    yield from found


def measured(data: Any, value: Mapping[str, Any]) -> float:
    """Return the number that an entry states, taken from the JSON of its measurement.

    The median, where its pointer leads to several; the product, where it has several pointers.
    """
    pointers = [value["at"]] if isinstance(value["at"], str) else value["at"]
    product = math.prod(statistics.median(values_at(data, pointer)) for pointer in pointers)
    return FORMS[value.get("as", "itself")](product)


def numbers_in(says: str) -> list[str]:
    """Return the numbers of a quotation that have a unit, in their order."""
    return [match[1] or match[2] for match in FIGURE.finditer(says)]


def stated_values(figure: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return each number that a figure states, with its source; none where not measured."""
    if "row" not in figure:
        return [(value["is"], value) for value in figure.get("values", ())]
    row = figure["row"]
    return [
        (number, {**row, "at": row["at"].replace("*", str(place))})
        for place, number in enumerate(numbers_in(figure["says"]))
    ]


def agrees(stated: str, found: float) -> bool:
    """Test for a number that reads as stated, rounded to that many places."""
    plain = stated.replace(",", "")
    return f"{found:.{len(plain.partition('.')[2])}f}" == plain


@functools.cache
def committed(path: str) -> Any:
    """Return the JSON of a measurement."""
    return json.loads((REPOSITORY / path).read_text())


def changes_since(measurement: Mapping[str, Any]) -> list[str]:
    """Return the commits that touched what a measurement depends on, newest first."""
    command = ["git", "log", "--oneline", f"{measurement['commit']}..HEAD", "--"]
    done = subprocess.run(
        [*command, *measurement["paths"]], cwd=REPOSITORY, capture_output=True, text=True
    )
    return done.stdout.splitlines() if done.returncode == 0 else ["its commit is not known here"]


def measure_again(measurement: Mapping[str, Any]) -> Any:
    """Return the JSON of a shorter run of a measurement's script."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "again.json"
        command = [*shlex.split(measurement["again"]), "--json", str(out)]
        subprocess.run([sys.executable, *command[1:]], cwd=REPOSITORY, check=True)
        return json.loads(out.read_text())


def again(listed: Mapping[str, Any], name: str) -> bool:
    """Measure again, shorter, and return whether every figure that says how near still holds."""
    data, all_hold = measure_again(listed["measurement"][name]), True
    for figure in listed["figure"]:
        for stated, value in stated_values(figure):
            if value["from"] != name or "within" not in value:
                continue
            try:
                found = measured(data, value)
            except LookupError:  # the shorter run does not go so far
                continue
            holds = abs(found - float(stated.replace(",", ""))) <= value["within"]
            all_hold &= holds
            word = "holds" if holds else "NO LONGER HOLDS"
            click.echo(f"{word}: {stated} is now {found:.4g}, in “{figure['says']}”")
    return all_hold


@click.command()
@click.option("--list-only", is_flag=True, help="Measure nothing again.")
def main(list_only: bool) -> None:
    """List stale measurements, and measure again those that take minutes."""
    listed = load()
    for name, one in listed["measurement"].items():
        changes = changes_since(one)
        click.echo(f"{name}: " + (f"stale, {len(changes)} commits" if changes else "as measured"))
        for line in changes[:3]:
            click.echo(f"    {line}")
    names = [name for name, one in listed["measurement"].items() if "again" in one]
    held = [again(listed, name) for name in names if not list_only]
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
