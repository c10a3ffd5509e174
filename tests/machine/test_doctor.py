"""Looking over an installation: every fault is found, named, and comes with what helps."""

import subprocess
import sys
from collections import namedtuple

import pytest

from resdeploy.errors import ResdeployError
from resdeploy.machine import doctor
from resdeploy.machine.doctor import examine

Version = namedtuple("Version", "major minor micro")


def faults(report):
    return {f.subject: f for f in report.findings if f.verdict == "fault"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The hashes of a whole wheel are looked at in one test only."""
    monkeypatch.setattr(doctor, "_first_damage", lambda _: None)


def site(tmp_path, name, version, files=None, folder="site"):
    """Make an installed package: its metadata, its files, and its record of them."""
    folder = tmp_path / folder
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    rows = []
    for path, (content, recorded) in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            (folder / path).write_bytes(content)
        rows.append(f"{path},sha256={recorded},{len(content or b'')}\n")
    (info / "RECORD").write_text("".join([*rows, f"{info.name}/RECORD,,\n"]))
    return folder


def only(monkeypatch, *folders):
    """Let these folders' packages be all that there are, and their import succeed."""
    find = doctor.importlib.metadata.distributions
    monkeypatch.setattr(
        doctor.importlib.metadata,
        "distributions",
        lambda **asked: find(path=[str(folder) for folder in folders], **asked),
    )
    monkeypatch.setattr(doctor, "_import_failure", lambda: None)


def test_this_installation_is_well():
    report = examine()
    assert report.passed, report
    assert report.findings[0].subject == "python"
    assert report.findings[-1].what == "CPUExecutionProvider starts, and computes"


def test_a_provider_that_cannot_start_is_a_fault_with_its_fix(no_cuda):
    report = examine(["cpu", "cuda"])
    assert not report.passed
    assert set(faults(report)) == {"cuda"}
    assert "onnxruntime-gpu" in faults(report)["cuda"].fix


def test_an_unknown_provider_is_the_users_error():
    with pytest.raises(ResdeployError, match="no provider 'tpu'"):
        examine(["tpu"])


def test_an_old_python_is_a_fault(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", Version(3, 10, 4))
    assert "3.11 or newer" in faults(examine())["python"].fix


def test_a_package_that_is_missing_or_too_old_is_a_fault(monkeypatch):
    needs = ["no-such-package>=1.0", "numpy>=999.1", "torch>=999 ; extra == 'export'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: needs)
    found = faults(examine())
    assert set(found) == {"no-such-package", "numpy"}
    assert "not installed" in found["no-such-package"].what
    assert found["numpy"].fix == 'pip install -U "numpy>=999.1"'


def test_resdeploy_that_is_not_installed_is_a_remark(monkeypatch):
    def not_found(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", not_found)
    report = examine()
    assert report.passed
    assert any(f.subject == "resdeploy" and f.verdict == "remark" for f in report.findings)


def test_a_temporary_folder_that_cannot_be_written_to_is_a_fault(monkeypatch):
    def refuse():
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    found = doctor._temporary_folder()
    assert found.verdict == "fault"
    assert "Permission denied" in found.what
    assert "TMPDIR" in found.fix


def test_two_runtimes_are_a_fault_and_nothing_is_tried(monkeypatch, tmp_path):
    site(tmp_path, "onnxruntime", "1.31.1")
    only(monkeypatch, site(tmp_path, "onnxruntime_gpu", "1.31.1"))
    found = faults(examine())
    assert "overwrite each other" in found["runtime"].what
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in found["runtime"].fix
    assert "not tried" in found["cpu"].what


def test_a_runtime_that_is_only_hidden_is_no_fault(monkeypatch, tmp_path):
    first = site(tmp_path, "onnxruntime_gpu", "1.31.1", folder="first")
    only(monkeypatch, first, site(tmp_path, "onnxruntime", "1.30.0", folder="second"))
    report = examine()
    assert report.passed
    said = [finding.what for finding in report.findings if finding.subject == "runtime"]
    assert "onnxruntime 1.30.0 stands later on the search path" in said[0]
    assert said[1].startswith("onnxruntime-gpu 1.31.1")


def test_a_plugin_beside_a_runtime_is_no_fault(monkeypatch, tmp_path):
    site(tmp_path, "onnxruntime-ep-openvino", "1.8.1")
    only(monkeypatch, site(tmp_path, "onnxruntime", "1.31.1"))
    assert examine().passed


@pytest.mark.parametrize(("version", "verdict"), [("1.17.3", "fault"), ("1.18.0", "remark")])
def test_an_old_runtime_is_a_fault_and_an_older_one_a_remark(
    monkeypatch, tmp_path, version, verdict
):
    only(monkeypatch, site(tmp_path, "onnxruntime", version))
    (found,) = (f for f in examine().findings if f.subject == "runtime" and f.verdict != "ok")
    assert found.verdict == verdict
    assert "pip install -U" in found.fix


GOOD = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"  # of b"hello"


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"hello", None), (b"hellO", "was changed"), (None, "No such file"), (b"", "was changed")],
)
def test_a_damaged_wheel_is_found_by_its_record(monkeypatch, tmp_path, content, what):
    monkeypatch.undo()
    files = {"onnxruntime/a.so": (b"hello", GOOD), "onnxruntime/b.so": (content, GOOD)}
    only(monkeypatch, site(tmp_path, "onnxruntime", "1.31.1", files))
    found = faults(examine())
    assert ("runtime" in found) == (what is not None)
    if what is not None:
        assert what in found["runtime"].what
        assert "onnxruntime/b.so" in found["runtime"].what
        assert "--force-reinstall --no-deps onnxruntime==1.31.1" in found["runtime"].fix


def test_the_wheel_that_is_here_is_as_it_was_packed(monkeypatch):
    monkeypatch.undo()
    for distribution in doctor._installed_runtimes()[0].values():
        assert doctor._first_damage(distribution) is None


@pytest.mark.parametrize(
    ("code", "stderr", "what", "fix"),
    [
        (
            1,
            "ModuleNotFoundError: No module named 'onnxruntime'",
            "not installed",
            "pip install onnxruntime",
        ),
        (1, "compiled using NumPy 1.x\nImportError", "built for NumPy 1", "numpy<2"),
        (1, "ImportError: cannot import name 'x'", "cannot import name", "uninstall every"),
        (-4, "", "SIGILL", "another version"),
        (-11, "", "SIGSEGV", "another version"),
    ],
)
def test_an_import_that_fails_is_explained(monkeypatch, code, stderr, what, fix):
    done = subprocess.CompletedProcess([], code, stdout="", stderr=stderr)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    found = faults(examine())["runtime"]
    assert what in found.what
    assert fix in found.fix


def test_an_import_that_hangs_ends(monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert "does not come to an end" in faults(examine())["runtime"].what


def test_the_oldest_versions_are_those_of_the_package():
    text = (doctor.Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'cpu = ["onnxruntime>={}.{}"]'.format(*doctor.OLDEST_RUNTIME) in text
    assert 'requires-python = ">={}.{}"'.format(*doctor._OLDEST_PYTHON) in text


def test_nothing_of_the_runtime_is_loaded_to_look_at_it():
    script = "import sys, resdeploy.machine.doctor; print('onnxruntime' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
