"""The networks that people deploy: what was measured stands in the page."""

import json
from pathlib import Path

from deployed_networks import NETWORKS

ROOT = Path(__file__).parents[2]
FORTY = json.loads((ROOT / "benchmarks/models/forty.json").read_text("utf-8"))["networks"]
PAGE = (ROOT / "docs/models.md").read_text("utf-8").split("## Forty-six networks\n")[1]


def row(name):
    return next(line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))


def test_every_measured_network_is_one_that_there_is():
    assert len(NETWORKS) >= 40
    assert set(FORTY) <= set(NETWORKS)


def test_the_page_has_the_outcome_of_each():
    for name, one in FORTY.items():
        cells = [cell.strip() for cell in row(name).strip("|").split("|")]
        norms = one.get("folded", 0) + one.get("not_folded", 0)
        folded = f"{one.get('folded', 0)}/{norms}"
        assert cells[1:3] == [one["outcome"], folded if folded != "0/0" else "none"], name


def test_what_is_not_proved_says_why():
    assert all(one["why"] for one in FORTY.values() if one["outcome"] != "PROVED")
