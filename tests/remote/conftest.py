"""Devices to run on: real OpenSSH servers on loopback, each with a home of its own."""

import getpass
import os
import shutil
import sys
from pathlib import Path

import pytest
from servers import REPOSITORY, SSHD, Device, free_port, keygen, remember


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The home of who runs resdeploy: a key, and known hosts."""
    if SSHD is None:
        pytest.skip("needs sshd: apt install openssh-server")
    ssh = tmp_path / "user" / ".ssh"
    ssh.mkdir(parents=True, mode=0o700)
    keygen(ssh / "id_ed25519")
    monkeypatch.setenv("HOME", str(ssh.parent))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return ssh.parent


@pytest.fixture
def make_device(user, tmp_path):
    """Start a server; its host key is known unless `known=False`."""
    devices = []
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)

    def make(*settings, known=True, python_path=REPOSITORY):
        folder = tmp_path / f"device{len(devices)}"
        (folder / "home").mkdir(parents=True)
        keygen(folder / "host_key")
        shutil.copy(user / ".ssh" / "id_ed25519.pub", folder / "authorized_keys")
        device = Device(folder, free_port(), list(settings), python_path).start()
        devices.append(device)
        if known:
            remember(user, device.port, device.host_key)
        return device

    yield make
    for device in devices:
        device.stop()


@pytest.fixture
def fleet_file(tmp_path):
    """Write a fleet file in which every device uses this interpreter's environment."""

    def write(*devices, path=tmp_path / "fleet.toml", **fields):
        fields = {"environment": sys.prefix, **fields}
        lines = []
        for number, device in enumerate(devices):
            lines += ["[[device]]", f'name = "device {number}"', 'host = "127.0.0.1"']
            lines += [f"port = {device.port}", f'user = "{getpass.getuser()}"']
            lines += [f"{name} = {value!r}" for name, value in fields.items() if value is not None]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def fake_resdeploy(tmp_path):
    """Write a program that a device takes for resdeploy, and return the folder to find it in."""

    def write(program, name="fake"):
        package = tmp_path / name / "resdeploy"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(program)
        return package.parent

    return write


@pytest.fixture
def run():
    from click.testing import CliRunner

    from resdeploy.cli import cli

    def invoke(*arguments):
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """A model that returns its input of 16 numbers as scores, and bundles: right and wrong."""
    import numpy as np
    import onnx
    from flat_bundle import write_small_bundle
    from onnx import parser

    from resdeploy.bundle.archive import write_archive

    folder = tmp_path_factory.mktemp("packed")
    text = (
        '<ir_version: 8, opset_import: ["": 18]> flat (float[N, 1, 4, 4] x) => (float[N, 16] y)'
        " { y = Flatten (x) }"
    )
    onnx.save(parser.parse_model(text), folder / "flat.onnx")
    inputs = np.random.default_rng(0).normal(size=(3, 1, 4, 4)).astype(np.float32)
    for name, factor in (("right", 1.0), ("wrong", 1.01)):
        reference = factor * inputs.reshape(3, 16).astype(np.float64)
        write_small_bundle(folder / name, "flat", folder / "flat.onnx", inputs, reference)
    write_archive(folder / "right", folder / "right.zip")
    return folder


@pytest.fixture
def model(packed):
    return packed / "flat.onnx"


@pytest.fixture
def bundle(packed):
    return packed / "right.zip"


@pytest.fixture
def wrong_bundle(packed):
    """A folder, whose reference is another function than its model."""
    return packed / "wrong"
