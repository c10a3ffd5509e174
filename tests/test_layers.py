"""Who may import what, each module in a fresh interpreter."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from resdeploy.cli import cli

HEAVY = {
    *("torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "onnxsim"),
    *("numpy", "PIL", "rich", "safetensors", "sklearn", "mnist1d", "asyncssh"),
}

# By the first part of a module's name below `resdeploy`; the tree of ARCHITECTURE.md.
ALLOWED = {
    "errors": set(),
    "api": set(),
    "schema": set(),
    "recipe": set(),
    "files": set(),
    "__main__": set(),
    "cli": {"rich"},
    "affine_layer": {"numpy"},
    "affine_map": {"numpy"},
    "algebra": {"numpy"},
    "batches": {"numpy"},
    "compare": {"numpy"},
    "evidence": {"numpy"},
    "stats": {"numpy"},
    "paired": {"numpy"},
    "racing": {"numpy"},
    "proportions": {"numpy"},
    "preprocess": {"numpy"},
    "golden_file": {"numpy"},
    "bundle_folder": {"numpy"},
    "bundle_archive": {"numpy"},
    "bundle_readme": set(),
    "compatibility": set(),
    "remote": {"numpy", "asyncssh"},
    "target": {"numpy", "onnxruntime"},
    "graph": {"numpy", "onnx", "onnx_ir"},
    "quant": {"numpy", "onnx", "onnxruntime"},
    "host": HEAVY,
}

PACKAGE = Path(__file__).parent.parent / "resdeploy"


def modules() -> list[str]:
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names.append(".".join(part for part in parts if part != "__init__"))
    return [name for name in names if name]


def loaded_by(statement: str) -> set[str]:
    script = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names = json.loads(run.stdout.splitlines()[-1])
    return {name.partition(".")[0] for name in names} & HEAVY


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_pulls_in_only_what_it_may(layer):
    members = [name for name in modules() if name.partition(".")[0] == layer]
    assert members, f"ALLOWED lists {layer}, which is gone"
    statement = "\n".join(f"import resdeploy.{name}" for name in members)
    assert loaded_by(statement) <= ALLOWED[layer]


def test_every_module_belongs_to_a_layer():
    assert {name.partition(".")[0] for name in modules()} == set(ALLOWED)


def test_help_of_every_command_loads_nothing_heavy():
    calls = [f"run([{name!r}, '--help'])" for name in sorted(cli.commands)]
    statement = "\n".join(
        [
            "import contextlib, io",
            "from resdeploy.cli import cli",
            "def run(arguments):",
            "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):",
            "        cli(arguments)",
            "run(['--help'])",
            *calls,
        ]
    )
    assert loaded_by(statement) == set()


def test_data_sets_are_read_without_torch():
    """Evaluation on a target reads them, where no torch is."""
    assert loaded_by("import resdeploy.host.data") == {"numpy"}


def imports_of(path: Path) -> set[str]:
    """Return the modules that a file imports anywhere, but not those for the type checker alone."""
    found, rest = set(), [ast.parse(path.read_text(encoding="utf-8"))]
    while rest:
        node = rest.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        rest += ast.iter_child_nodes(node)
    return found


def test_torch_is_imported_in_host_alone():
    offenders = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != "host"
        and any(name.partition(".")[0] == "torch" for name in imports_of(path))
    ]
    assert offenders == []


def test_no_benchmark_imports_the_runtime_before_its_telemetry_is_off():
    scripts = (PACKAGE.parent / "benchmarks").rglob("*.py")
    assert not [path for path in scripts if "\nimport onnxruntime" in path.read_text("utf-8")]


@pytest.mark.parametrize(
    ("room", "known"), [("graph", set()), ("target", set()), ("quant", {"target"})]
)
def test_a_room_knows_the_root_and_only_these_rooms(room, known):
    """Of the rooms below `host`, quantisation opens sessions, as everybody does."""
    found = {
        node.module.split(".")[1]
        for path in (PACKAGE / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resdeploy.")
    }
    assert found & {"graph", "target", "quant", "host", "remote", "cli"} == {room} | known


def test_sessions_are_opened_by_one_door():
    """It turns off the fallback to the CPU, and optimisations that are known to be wrong.

    `probe` asks providers that the table does not have whether they start, and runs no model. The
    runner `onnxruntime` is the runtime without all that, for `bench` to hold ours against.
    """
    doors = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "InferenceSession(" in path.read_text(encoding="utf-8")
    }
    assert doors == {"target/session.py", "target/probe.py", "target/session_runner.py"}


# Each calls one function there, and is no verb of the library.
CALLS_BELOW = {
    "demo": {"resdeploy.host.demo.run_demo"},
    "doctor": {"resdeploy.target.doctor.examine"},
    "probe": {"resdeploy.target.probe.probe"},
    "selftest": {
        "resdeploy.host.build.load_source",
        "resdeploy.host.selftest.selftest",
    },
}


def test_a_command_calls_a_verb_and_nothing_below():
    rooms = tuple(f"resdeploy.{room}." for room in ("host", "graph", "target", "quant"))
    found = {
        path.stem: below
        for path in (PACKAGE / "cli").glob("*.py")
        if (below := {name for name in imports_of(path) if name.startswith(rooms)})
    }
    assert found == CALLS_BELOW


def test_the_process_that_is_timed_reads_the_records_it_needs_and_no_others():
    """Each takes a millisecond to make; with all of them the worker's import doubles."""
    script = "import sys, resdeploy.target.bench_worker; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    subjects = {
        name.rpartition(".")[2]
        for name in run.stdout.split()
        if name.startswith("resdeploy.schema.")
    }
    assert subjects == {"benchmarks", "codec", "files", "machines", "sessions", "sources"}
