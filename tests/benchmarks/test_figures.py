"""Every figure that the pages state is listed, and is what its JSON says."""

from collections import Counter

import pytest

from benchmarks import figures
from benchmarks.figures import (
    FIGURE,
    REPOSITORY,
    agrees,
    committed,
    measured,
    numbers_in,
    parts,
    stated_values,
)

LISTED = figures.load()
PAGES = {path: parts(text) for path, text in figures.pages().items()}
# What a figure is that nobody here measured: a rule of the program, somebody else's result, what a
# command printed, plain arithmetic.
ORIGINS = {"rule", "cited", "printed", "arithmetic"}


def unlisted(pages, listed):
    """Return what the pages state and the list does not have, with the words around it."""
    quoted = [figure["says"] for figure in listed["figure"]]
    found = []
    for path, (prose, blocks) in pages.items():
        spans = [(prose.find(says), len(says)) for says in quoted]
        for match in FIGURE.finditer(prose):
            if not any(0 <= at <= match.start() and match.end() <= at + n for at, n in spans):
                around = prose[max(0, match.start() - 40) : match.end() + 20]
                found.append(f"{path}: {match[0]!r} in “{around}”")
        found += [
            f"{path}: what a command printed, from {block.splitlines()[1]!r} on"
            for block in blocks
            if FIGURE.search(block) and not any(says in block for says in quoted)
        ]
    return found


def test_every_figure_of_the_pages_is_listed():
    assert unlisted(PAGES, LISTED) == [], "add each to benchmarks/figures.toml"


def test_every_figure_of_the_list_stands_on_a_page():
    texts = [text for prose, blocks in PAGES.values() for text in (prose, *blocks)]
    gone = [f["says"] for f in LISTED["figure"] if not any(f["says"] in text for text in texts)]
    assert gone == [], "take each out of benchmarks/figures.toml, or quote what the page says now"


@pytest.mark.parametrize("figure", LISTED["figure"], ids=lambda figure: figure["says"][:40])
def test_a_figure_is_what_its_json_says(figure):
    pairs = stated_values(figure)
    assert bool(pairs) != ("origin" in figure)
    assert figure.get("origin", "rule") in ORIGINS
    if pairs:
        assert Counter(numbers_in(figure["says"])) <= Counter(number for number, _ in pairs)
    for number, value in pairs:
        assert number in figure["says"]
        found = measured(committed(LISTED["measurement"][value["from"]]["json"]), value)
        assert agrees(number, found), f"{number} is stated, {found:.6g} was measured"


@pytest.mark.parametrize("name", LISTED["measurement"])
def test_a_measurement_says_where_it_comes_from_and_what_makes_it_stale(name):
    one = LISTED["measurement"][name]
    assert one["script"]
    assert len(one["commit"]) >= 7
    assert one["paths"]
    for path in (one["json"], *one["paths"]):
        assert (REPOSITORY / path).exists(), path
    stated = [value for figure in LISTED["figure"] for _, value in stated_values(figure)]
    assert any(value["from"] == name for value in stated), "nothing states it"


@pytest.mark.parametrize(
    "new",
    [
        "It is 3.7x faster.",
        "It is 2 \u00d7 as fast.",
        "A run takes 12.5 ms.",
        "and gains 4 %,",
        "in 20 s",
        "1.2 times the other",
        "9 of 10 are right",
        "needs 40 MB",
        "```\np50 3 ms\n```",
    ],
)
def test_a_new_figure_is_noticed(new):
    pages = {**PAGES, "docs/new.md": parts(new)}
    assert len(unlisted(pages, LISTED)) == 1


@pytest.mark.parametrize("new", ["images of 32 x 32", "opset 18", "0.5", "20x20", "ResNet-50"])
def test_what_is_no_figure_is_left_alone(new):
    assert unlisted({"docs/new.md": parts(new)}, LISTED) == []


def test_a_figure_that_was_moved_to_another_page_and_wrapped_is_still_known():
    says = next(f["says"] for f in LISTED["figure"] if len(stated_values(f)) > 1)
    page = parts("Moved:\n" + says.replace(" ", "\n") + ", as it was.")
    assert unlisted({"docs/moved.md": page}, LISTED) == []


def test_what_is_stated_is_compared_as_it_is_rounded():
    assert agrees("3.4", 3.3512)
    assert not agrees("3.4", 3.4512)
    assert agrees("10,000", 10_000.4)
    data = {"a": [{"b, c": 1.0}, {"b, c": 3.0}, {"b, c": 2.0}], "n": 4}
    assert measured(data, {"at": "/a/*/b, c"}) == 2
    assert measured(data, {"at": ["/a/1/b, c", "/n"]}) == 12
    assert measured(data, {"at": "/n", "as": "inverse"}) == 0.25


def test_a_changed_json_is_noticed(monkeypatch):
    figure = next(f for f in LISTED["figure"] if len(stated_values(f)) > 1)
    true = committed

    def scaled(one):
        if isinstance(one, dict):
            return {name: scaled(value) for name, value in one.items()}
        if isinstance(one, list):
            return [scaled(value) for value in one]
        return one * 1.3 if isinstance(one, int | float) else one

    monkeypatch.setitem(globals(), "committed", lambda path: scaled(true(path)))
    with pytest.raises(AssertionError, match="was measured"):
        test_a_figure_is_what_its_json_says(figure)


def test_commits_since_a_measurement_are_those_that_touched_its_paths():
    one = {"commit": "HEAD", "paths": ["resdeploy"]}
    assert figures.changes_since(one) == []
    assert figures.changes_since({**one, "commit": "0" * 40})
