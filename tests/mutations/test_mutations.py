"""Each condition of the folds, broken on purpose: a test must go red.

A condition that can be broken while every test stays green is a condition nobody checks. The lists
in `algebra.py` and `onnx_fold.py` name, for each, the exact source text, what breaks it, and the
test that notices. Their texts are looked up in the default run, so that the lists cannot fall
behind the code; the mutants themselves run with `-m slow`, each in a copy of the repository.

What is not listed, as no test could notice, is in the docstrings of the lists, with the reason.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import algebra
import onnx_fold
import pytest
from mutation import Mutation

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "resdeploy"
MUTATIONS = [*algebra.MUTATIONS, *onnx_fold.MUTATIONS]


def place(mutation: Mutation) -> Path:
    """Return the one file that holds the text of a mutation."""
    files = [PACKAGE / file for file in mutation.files]
    counts = {f: f.read_text("utf-8").count(mutation.source) for f in files if f.exists()}
    assert sum(counts.values()) == 1, (
        f"{mutation.condition}: its text occurs {sum(counts.values())} times; "
        "bring tests/mutations up to date"
    )
    return next(file for file, count in counts.items() if count)


def name(mutation: Mutation) -> str:
    return mutation.condition.replace(" ", "_")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=name)
def test_each_condition_is_still_where_the_list_says(mutation):
    source = place(mutation).read_text("utf-8")
    ast.parse(source.replace(mutation.source, mutation.broken))
    file, _, test = mutation.killer.partition("::")
    function, _, parameters = test.removesuffix("]").partition("[")
    tree = ast.parse((REPOSITORY / file).read_text("utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if file.endswith("test_fold_suite.py"):
        cases = (REPOSITORY / "tests/host/fold_suite.py").read_text("utf-8")
        assert f'"{parameters}"' in cases


def test_no_two_conditions_share_a_name():
    assert len({name(mutation) for mutation in MUTATIONS}) == len(MUTATIONS) >= 150


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=name)
def test_a_broken_condition_turns_a_test_red(mutation, tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for folder in ("resdeploy", "tests", "models"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    mutant = tmp_path / place(mutation).relative_to(REPOSITORY)
    source = mutant.read_text("utf-8")
    mutant.write_text(source.replace(mutation.source, mutation.broken), "utf-8")

    options = ["-x", "-q", "--show-capture=no", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, mutation.killer],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,  # seconds rather than minutes, unless the machine is busy
        check=False,
    )

    tail = result.stdout[-2000:] + result.stderr[-2000:]
    assert result.returncode == 1, f"{mutation.condition}: the mutant survives\n{tail}"
    assert re.search(r"\d+ failed", result.stdout), f"not a failed test\n{tail}"
