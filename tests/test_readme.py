"""The README and docs/ tell the truth: commands exist and parse, links lead somewhere."""

import re
import shlex
from pathlib import Path

import click
import pytest

from resdeploy.cli import cli
from resdeploy.recipe import zoo

REPOSITORY = Path(__file__).parent.parent
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])


def documented_commands() -> list[str]:
    found = []
    for path in [*PAGES, *REPOSITORY.glob("models/*/README.md")]:
        page = path.read_text(encoding="utf-8")
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
def test_every_command_is_documented(name):
    commands = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    assert f"`resdeploy {name}" in commands


def test_the_readme_is_for_the_first_five_minutes():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("name", zoo())
def test_every_named_model_says_what_to_expect(name):
    page = (REPOSITORY / "models" / name / "README.md").read_text(encoding="utf-8")
    assert f"resdeploy train {name}" in page
    assert "Expected" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
