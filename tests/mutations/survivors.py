"""Mutation testing of the folds and of the proof with mutmut: who survives has a reason.

    python tests/mutations/survivors.py                 # a ninth of all, the same ones every time
    python tests/mutations/survivors.py 'resdeploy.fold.algebra.*'
    python tests/mutations/survivors.py '*'             # all: hours

What is mutated, and which tests may kill it, is in `[tool.mutmut]` of pyproject.toml. Functions
whose survivors have a reason are in `survivors.toml`. Other survivors are shown, each with its
difference, and are too many where a module has more of them than `CEILING`.
"""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
REASONS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
# The first mutant of each function, the eleventh, the twenty-first: no function is left out.
SAMPLE = "*__mutmut_*1"
# Of a module's mutants, how many may survive without a reason; one alone always may.
CEILING = 0.2
# Beyond this share the machine was too busy to tell a mutant that hangs from one that waits.
MOST_TIMEOUTS = 0.05

# Exit codes of pytest and of mutmut: tests failed or broke off; passed; no test reaches the mutant.
KILLED, SURVIVED = (1, 3), (0, 33)


def module_of(mutant: str) -> str:
    return mutant.rpartition(".")[0]


def function_of(mutant: str) -> str:
    """`layers.Layer.rewrite` of `resdeploy.fold.layers.xǁLayerǁrewrite__mutmut_8`."""
    name = re.sub(r"^x[_ǁ]|__mutmut_\d+$", "", mutant.rpartition(".")[2])
    return f"{module_of(mutant).rpartition('.')[2]}.{name.replace('ǁ', '.')}"


def mutmut(folder: Path, *arguments: str) -> str:
    program = str(Path(sys.executable).with_name("mutmut"))
    done = subprocess.run(
        [program, *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"mutmut failed\n{done.stdout[-4000:]}")
    return done.stdout


def exit_codes(folder: Path, pattern: str) -> dict[str, int | None]:
    """What became of each mutant: None of one that was not tried."""
    found: dict[str, int | None] = {}
    for file in sorted((folder / "mutants").rglob("*.meta")):
        found.update(json.loads(file.read_text("utf-8"))["exit_code_by_key"])
    return {name: code for name, code in found.items() if fnmatch.fnmatchcase(name, pattern)}


def judge(folder: Path, codes: dict[str, int | None]) -> list[str]:
    """Print who survived; return what is wrong."""
    tried = Counter(map(module_of, codes))
    survivors = [name for name, code in codes.items() if code in SURVIVED]
    unexplained = [name for name in survivors if function_of(name) not in REASONS]
    undecided = [name for name, code in codes.items() if code not in KILLED + SURVIVED]
    for name in unexplained:
        print(mutmut(folder, "show", name))
    survived, without = Counter(map(module_of, survivors)), Counter(map(module_of, unexplained))
    for module, number in sorted(tried.items()):
        counts = f"{survived[module]:4} survive, {without[module]:3} without a reason"
        print(f"{module:36} {number:5} mutants, {counts}")
    print(f"{len(codes)} mutants, {len(survivors)} survive, {len(undecided)} took too long")
    wrong = [
        f"{module}: {number} of {tried[module]} mutants survive without a reason"
        for module, number in sorted(without.items())
        if number > max(1, CEILING * tried[module])
    ]
    if len(undecided) > MOST_TIMEOUTS * len(codes):
        wrong.append(f"{len(undecided)} of {len(codes)} mutants took too long: a busy machine?")
    return wrong


def main(pattern: str = SAMPLE) -> int:
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        for part in ("resdeploy", "tests", "models"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / part, folder / part, ignore=ignored)
        shutil.copy(REPOSITORY / "pyproject.toml", folder)
        mutmut(folder, "run", pattern)
        wrong = judge(folder, exit_codes(folder, pattern))
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:2]))
