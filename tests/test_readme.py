"""The README tells the truth: its commands exist and parse, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import click
import pytest

from resdeploy.cli import cli
from resdeploy.recipe import zoo

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def documented_commands() -> list[str]:
    pages = [README, *(path.read_text() for path in REPOSITORY.glob("models/*/README.md"))]
    found = []
    for page in pages:
        found += re.findall(r"^ {4}(resdeploy .*)$", page, flags=re.MULTILINE)
        found += [text for text in re.findall(r"`(resdeploy [^`]*)`", page) if " -o " in text]
    return sorted(set(found))


@pytest.mark.parametrize("line", documented_commands())
def test_every_documented_command_line_parses(line):
    _, name, *arguments = shlex.split(line)
    cli.commands[name].make_context(name, arguments)


def test_a_command_line_that_does_not_exist_would_be_noticed():
    with pytest.raises(click.UsageError):
        cli.commands["export"].make_context("export", ["x.pth", "--no-such-option", "-o", "y"])


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_is_in_the_readme(name):
    assert f"`resdeploy {name}" in README


@pytest.mark.parametrize("name", zoo())
def test_every_named_model_says_what_to_expect(name):
    page = (REPOSITORY / "models" / name / "README.md").read_text(encoding="utf-8")
    assert f"resdeploy train {name}" in page
    assert "Expected" in page


@pytest.mark.parametrize("page", sorted(path.name for path in REPOSITORY.glob("*.md")))
def test_links_and_file_names_lead_somewhere(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (REPOSITORY / target).exists(), target
