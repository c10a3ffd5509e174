"""Tables and verdicts: no word is cut, and PASS and FAIL differ in colour on a terminal."""

import io

import click
import pytest
from rich.console import Console

from resdeploy.cli import cli
from resdeploy.cli.render import render
from resdeploy.cli.tables import Grid, coloured, shared_width
from resdeploy.schema.machines import DoctorReport, Finding

VERDICT = Grid(
    columns=(
        *("provider", "verdict", "R", "z rms", "z max", "T", "error as of", "same top-1"),
        "accuracy",
    ),
    rows=(("openvino", "PROVED", "1.04", "0.98", "3.21", "0.004", "float32", "100.00%", "99.44%"),),
)
TUNED = Grid(
    columns=("model", "session", "batch", "p50", "memory", "size", "evidence", ""),
    rows=(
        (
            *("resnet50-int8.onnx", "cpu, 2 threads, no spinning", "1", "12.345 ms", "123 MB"),
            *("25.5 MB", "proved as float32 (R = 1.04)", "not significantly slower"),
        ),
    ),
)


def drawn(grid: Grid, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(grid.drawn(width))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("grid", [VERDICT, TUNED])
@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_word_of_a_table_is_cut(grid, width):
    lines = drawn(grid, width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for cell in (*grid.columns, *grid.rows[0]):
        assert set(cell.split()) <= set(words), cell


def test_a_table_keeps_its_frame_where_there_is_room():
    assert any("┃" in line for line in drawn(VERDICT, 120))
    assert not any("┃" in line for line in drawn(VERDICT, 80))


def test_a_row_that_does_not_fit_is_a_line_for_each_cell():
    assert "p50      12.345 ms" in "\n".join(drawn(TUNED, 60))


def test_columns_share_what_is_left():
    assert shared_width([2, 3, 4], [2, 30, 9], 20) == [2, 9, 9]
    assert shared_width([2, 3], [2, 3], 5) == [2, 3]


def spoken(text: str, **settings: object) -> str:
    console = Console(file=io.StringIO(), width=200, **settings)
    console.print(coloured(text))
    return console.file.getvalue()


def test_verdicts_have_colours_on_a_terminal_alone(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = {
        word: spoken(word, force_terminal=True, color_system="standard")
        for word in ("PASS", "PROVED", "AGREES", "FAIL")
    }
    assert "32m" in shown["PASS"]
    assert "32m" in shown["PROVED"]
    assert "33m" in shown["AGREES"]
    assert "31m" in shown["FAIL"]
    assert spoken("cpu: PASS", force_terminal=False) == "cpu: PASS\n"
    assert spoken("FAILED [cuda]", force_terminal=True) == "FAILED [cuda]\n"


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_are_off_where_they_are_not_wanted(monkeypatch, variable):
    monkeypatch.setenv(*variable)
    assert "31m" not in spoken("FAIL", force_terminal=True)


def test_no_word_of_a_line_is_cut_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "30")
    name = "a-name-that-is-longer-than-the-whole-line.json"
    where = tuple(f"some words about {name} and more".split())
    finding = Finding(subject="x", verdict="fault", what=" ".join(where), fix=None)
    render(DoctorReport(providers=("cpu",), findings=(finding,)))
    shown = capsys.readouterr().out
    assert set(where) <= set(shown.split())
    assert all(len(line) <= 30 for line in shown.splitlines() if name not in line)


@pytest.mark.parametrize("name", ["", *cli.commands])
def test_help_fits_into_80_columns(name):
    command = cli.commands[name] if name else cli
    context = click.Context(command, info_name=name, terminal_width=80)
    assert max(map(len, command.get_help(context).splitlines())) <= 80
