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

RUNTIME = {"numpy", "onnxruntime"}
ONNX = {"numpy", "onnx", "onnx_ir"}

# The rooms of ARCHITECTURE.md from the bottom up, and what each may load. A room imports those
# above it in this list alone. What loads more than its room, or must load less, has its own line.
ALLOWED = {
    "extras": set(),
    "errors": set(),
    "schema": set(),
    "files": set(),
    "near": set(),
    "recipe": set(),
    "architectures": set(),
    "statistics": {"numpy"},
    "data": {"numpy"},
    "data.names": set(),
    "session": RUNTIME,
    "session.batches": {"numpy"},
    "session.onnx_wire": {"numpy"},
    "session.providers": set(),
    "machine": set(),
    "machine.probe": RUNTIME,
    "graph": ONNX,
    "graph.affine_layer": {"numpy"},
    "fold": ONNX,
    "fold.affine_map": {"numpy"},
    "fold.algebra": {"numpy"},
    "verify": {"numpy"},
    **dict.fromkeys(("verify.attribution", "verify.conformance", "verify.outputs"), RUNTIME),
    **dict.fromkeys(
        (
            *("verify.certify", "verify.fault_file", "verify.faults", "verify.normal_form"),
            *("verify.normal", "verify.own_layers", "verify.reference_agreement"),
            *("verify.reference_file", "verify.run_layers"),
        ),
        ONNX,
    ),
    "verify.verdict": ONNX | RUNTIME,
    "bundle": RUNTIME,
    **{key: {"numpy"} for key in ("bundle.archive", "bundle.folder")},
    "bundle.layouts": ONNX | RUNTIME,
    "networks": HEAVY,
    "training": HEAVY,
    "weights": HEAVY,
    "export": HEAVY,
    "bench": RUNTIME,
    "bench.torch_runner": HEAVY,
    "quant": {"numpy", "onnx", "onnxruntime"},
    "tune": RUNTIME,
    "tune.variants": {"numpy", "onnx", "onnxruntime"},
    "ship": {"numpy"},
    "api": set(),
    "api.fold_onnx": ONNX | RUNTIME,
    **dict.fromkeys(("api.demo", "api.selftest"), HEAVY),
    "remote": {"numpy", "asyncssh"},
    "cli": {"rich"},
    "__main__": set(),
}

ROOMS = [entry for entry in ALLOWED if "." not in entry]
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


def module_file(name: str) -> Path:
    path = PACKAGE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def entry_of(name: str) -> str:
    """Return the line of ALLOWED that a module is held to: its own, or that of what it lies in."""
    while name not in ALLOWED:
        name, _, _ = name.rpartition(".")
    return name


@pytest.mark.parametrize("entry", ALLOWED)
def test_a_room_pulls_in_only_what_it_may(entry):
    members = [name for name in modules() if entry_of(name) == entry]
    assert members, f"ALLOWED lists {entry}, which is gone"
    statement = "\n".join(f"import resdeploy.{name}" for name in members)
    assert loaded_by(statement) <= ALLOWED[entry]


def test_every_module_lies_in_a_room():
    assert {name.partition(".")[0] for name in modules()} == set(ROOMS)


def test_no_import_points_upward():
    upward = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"  # its names are lazy
        for name in imports_of(path)
        if (below := name.removeprefix("resdeploy.").partition(".")[0]) in ROOMS
        and ROOMS.index(below) > ROOMS.index(path.relative_to(PACKAGE).with_suffix("").parts[0])
    ]
    assert upward == []


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
    assert loaded_by("import resdeploy.data.datasets") == {"numpy"}


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


def test_torch_is_imported_where_networks_are_made_alone():
    rooms = [entry for entry, allowed in ALLOWED.items() if allowed == HEAVY]
    offenders = [
        name
        for name, path in ((name, module_file(name)) for name in modules())
        if entry_of(name) not in rooms
        and any(found.partition(".")[0] == "torch" for found in imports_of(path))
    ]
    assert offenders == []


def test_no_benchmark_imports_the_runtime_before_its_telemetry_is_off():
    scripts = (PACKAGE.parent / "benchmarks").rglob("*.py")
    assert not [path for path in scripts if "\nimport onnxruntime" in path.read_text("utf-8")]


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
    assert doors == {"session/session.py", "machine/probe.py", "bench/session_runner.py"}


# Each calls one function there, and is no verb of the library.
CALLS_BELOW = {
    "doctor": {"resdeploy.machine.doctor.examine"},
    "probe": {"resdeploy.machine.probe.probe"},
}
# Beside verbs: options and progress, records, devices, and the names of the providers.
OPEN_TO_COMMANDS = ("api", "cli", "errors", "files", "remote", "schema", "session.providers")


def test_a_command_calls_a_verb_and_nothing_below():
    found = {}
    for name in cli.commands:
        imports = imports_of(PACKAGE / "cli" / f"{name.replace('-', '_')}.py")
        own = {imported for imported in imports if imported.startswith("resdeploy.")}
        below = {
            i for i in own if not i.startswith(tuple(f"resdeploy.{o}." for o in OPEN_TO_COMMANDS))
        }
        found |= {name: below} if below else {}
    assert found == CALLS_BELOW


def test_the_process_that_is_timed_reads_the_records_it_needs_and_no_others():
    """Each takes a millisecond to make; with all of them the worker's import doubles."""
    script = "import sys, resdeploy.bench.worker; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    subjects = {
        name.rpartition(".")[2]
        for name in run.stdout.split()
        if name.startswith("resdeploy.schema.")
    }
    assert subjects == {"benchmarks", "codec", "files", "machines", "sessions"}
