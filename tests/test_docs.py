"""The pages of docs/: their Python runs, block after block, and their links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import resdeploy
from resdeploy.networks import build_network
from resdeploy.schema.recipes import ModelSpec
from resdeploy.verify.normal_form import OPERATORS

DOCS = Path(__file__).parent.parent / "docs"
PYTHON = (DOCS / "python.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(ModelSpec(arch="cifar_resnet20", num_classes=10, options={}))
        network(torch.randn(16, 3, 32, 32))
        torch.save(network.state_dict(), "resnet20.th")
        Image.new("RGB", (40, 50), (90, 120, 60)).save("photo.png")
        blocks = re.findall(r"^```python\n(.*?)^```", PYTHON, flags=re.MULTILINE | re.DOTALL)
        for block in blocks:
            exec(compile(block, "docs/python.md", "exec"), {})
    assert len(blocks) == 4


def test_the_closed_list_of_operators_is_the_page_s():
    page = (DOCS / "closed-world.md").read_text(encoding="utf-8")
    table = page.split("## Operators\n")[1].split("\nLocal functions")[0]
    rows = re.findall(r"^\| ([A-Z][^|]*?) \|", table, flags=re.MULTILINE)
    listed = [name for row in rows for name in re.sub(r" \(.*\)", "", row).split(", ")]
    ours = {name for rules in OPERATORS.values() for name in rules} | {"Constant", "If"}
    assert sorted(listed) == sorted(ours)


def test_every_function_is_in_the_table_of_the_page():
    listed = re.findall(r"^\| `(\w+)\(", PYTHON, flags=re.MULTILINE)
    verbs = [name for name in resdeploy.__all__ if name.islower() and name[0] != "_"]
    assert sorted(listed) == verbs
