"""The names of the library: all there, nothing heavy before its use, no module in their way."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import resdeploy

VERBS = {
    *("load", "export", "fold_batchnorm", "verify", "quantize", "tune", "bench", "bundle"),
    *("check", "predict", "evaluate", "train", "ship"),
}
NOUNS = {"Bundle", "Model", "SessionSpec"}


def fresh(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_import_brings_nothing_with_it():
    shown = "import sys; before = set(sys.modules); import resdeploy; dir(resdeploy);"
    ours = fresh(f"{shown} print(*sorted(set(sys.modules) - before))").split()
    assert [name for name in ours if name.startswith("resdeploy.")] == []
    heavy = {"torch", "onnx", "onnxruntime", "numpy", "PIL", "click", "rich", "dataclasses"}
    assert not heavy & set(ours)


def test_the_import_takes_at_most_fifteen_milliseconds():
    script = "import time; start = time.process_time(); import resdeploy;"
    assert min(float(fresh(f"{script} print(time.process_time() - start)")) for _ in "abc") < 0.015


def test_a_name_brings_no_more_than_it_needs():
    names = sorted(VERBS | {"Bundle", "SessionSpec", "ResdeployError"})
    uses = "".join(f"resdeploy.{name};" for name in names)
    loaded = fresh(f"import sys, resdeploy; {uses} print(*sys.modules)").split()
    assert not {"torch", "onnx", "onnxruntime", "numpy", "click"} & set(loaded)


def test_all_is_exactly_what_there_is():
    errors = {name for name in resdeploy.__all__ if name.endswith("Error")}
    assert set(resdeploy.__all__) == VERBS | NOUNS | errors | {"__version__"}
    assert dir(resdeploy) == sorted(resdeploy.__all__)
    for name in errors:
        assert issubclass(getattr(resdeploy, name), Exception)
    for name in VERBS:
        assert getattr(resdeploy, name).__name__ == name
        assert getattr(resdeploy, name) is getattr(resdeploy, name)


def test_star_gives_all_of_it():
    script = "from resdeploy import *; print(callable(load), callable(bundle), Model)"
    assert fresh(script).startswith("True True <class")


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'exprot'"):
        _ = resdeploy.exprot


def test_a_room_does_not_replace_the_verb_of_its_name():
    """After the import of a room, `resdeploy.export` must still be the function."""
    package = Path(resdeploy.__file__).parent
    rooms = sorted({path.stem for path in package.iterdir()} & set(resdeploy.__all__))
    script = "".join(f"import resdeploy.{room}\n" for room in rooms)
    script += "import resdeploy\n" + "".join(
        f"assert callable(resdeploy.{room}), {room!r}\n" for room in rooms
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", sorted(VERBS))
def test_a_verb_says_what_it_takes_returns_and_raises(name):
    verb = getattr(resdeploy, name)
    text = inspect.getdoc(verb)
    for part in ("Args:", "Raises:", "Returns:", "Example:", ">>> "):
        assert part in text, part
    parameters = list(inspect.signature(verb).parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])
    assert all(f"    {p.name}:" in text for p in parameters)
    assert set(inspect.get_annotations(verb)) == {*(p.name for p in parameters), "return"}
