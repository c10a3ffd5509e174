"""A device that has nothing but Python: a private environment is made, once, also without index."""

import subprocess
import sys

import pytest

from resdeploy.remote.wheel import write_wheel
from resdeploy.schema.codec import load_json
from resdeploy.schema.remotes import RemoteReport

pytestmark = pytest.mark.slow


@pytest.fixture
def device(make_device, tmp_path):
    """A device on which no resdeploy is found by accident."""
    return make_device(python_path=tmp_path / "none")


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory):
    """The wheels that pip would download for resdeploy[cpu]."""
    folder = tmp_path_factory.mktemp("wheels")
    wheel = write_wheel(folder)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"),
            *("--dest", str(folder), f"{wheel}[cpu]"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"needs a package index: {done.stderr.strip().splitlines()[-1]}")
    wheel.unlink()
    return folder


def origin_of(result):
    assert result.exit_code == 0, result.output
    (found,) = load_json(RemoteReport, result.stdout, where="stdout").devices
    assert found.check is None or found.check.passed
    return found.installation.origin


def test_an_environment_is_made_once_from_an_index(run, device, fleet_file, bundle, wheelhouse):
    fleet = fleet_file(device, environment=None, python=sys.executable)
    assert origin_of(run("check", bundle, "--fleet", fleet, "--json")) == "made"
    assert origin_of(run("bench", bundle, "--fleet", fleet, "--runs", "20", "--json")) == "found"
    assert device.left_behind() == []
    assert device.running() == {}


def test_an_environment_is_made_from_a_wheelhouse_without_an_index(
    run, device, fleet_file, bundle, wheelhouse
):
    fleet = fleet_file(device, environment=None, python=sys.executable, wheelhouse=str(wheelhouse))
    assert origin_of(run("check", bundle, "--fleet", fleet, "--json")) == "made"
    assert origin_of(run("check", bundle, "--fleet", fleet, "--json")) == "found"


def test_a_wheelhouse_that_lacks_a_package_is_an_error_and_leaves_nothing(
    run, device, fleet_file, bundle, wheelhouse, tmp_path
):
    part = tmp_path / "part"
    part.mkdir()
    for wheel in wheelhouse.glob("*.whl"):
        if not wheel.name.startswith("rich"):
            (part / wheel.name).symlink_to(wheel)
    fleet = fleet_file(device, environment=None, python=sys.executable, wheelhouse=str(part))
    result = run("check", bundle, "--fleet", fleet)
    assert result.exit_code == 3
    assert "pip on the device cannot install resdeploy[cpu]: ERROR: " in result.stderr
    assert "rich" in result.stderr
    assert list((device.cache / "environments").glob("*[!k]")) == []


def test_pip_installs_the_wheel_of_a_checkout_and_that_makes_the_same_again(wheelhouse, tmp_path):
    """From a checkout and from what it installs: one wheel, byte for byte, or devices would
    install again what they have."""
    wheel = write_wheel(tmp_path)
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    install = ["install", "--quiet", "--no-index", "--find-links", wheelhouse, f"{wheel}[cpu]"]
    subprocess.run([python, "-m", "pip", *install], check=True, env={})
    (tmp_path / "again").mkdir()
    again = (
        "import pathlib; from resdeploy.remote.wheel import write_wheel;"
        f"write_wheel(pathlib.Path({str(tmp_path / 'again')!r}))"
    )
    subprocess.run([python, "-c", again], check=True, env={}, cwd=tmp_path)
    assert (tmp_path / "again" / wheel.name).read_bytes() == wheel.read_bytes()
    done = subprocess.run(
        [environment / "bin" / "resdeploy", "probe"], check=True, env={}, capture_output=True
    )
    assert b"onnxruntime" in done.stdout
