"""Real OpenSSH servers on loopback, each a device with a home of its own."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def processes_of(marker):
    """The command lines of processes in whose environment, folder or arguments `marker` is."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(process / name).read_bytes() for name in ("cmdline", "environ")]
            texts.append(os.readlink(process / "cwd").encode())
        except OSError:
            continue
        if any(marker.encode() in text for text in texts) and int(process.name) != os.getpid():
            found[int(process.name)] = texts[0].replace(b"\0", b" ").decode(errors="replace")
    return found


def wait_until(condition, *, seconds=20):
    """Wait for something that happens by itself, and say whether it did."""
    end = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return done


@dataclass
class Device:
    """An SSH server with its own host key, port and home."""

    folder: Path
    port: int
    settings: list = field(default_factory=list)
    process: subprocess.Popen | None = None

    @property
    def home(self):
        return self.folder / "home"

    @property
    def cache(self):
        return self.home / ".cache" / "resdeploy"

    @property
    def address(self):
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def host_key(self):
        return (self.folder / "host_key.pub").read_text().split()[:2]

    def start(self):
        config = self.folder / "sshd_config"
        python_path = f"PYTHONPATH={REPOSITORY}"
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder / 'host_key'}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            f"PidFile {self.folder / 'pid'}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            f'SetEnv "HOME={self.home}" "{python_path}" XDG_CACHE_HOME=',
            *self.settings,
        ]
        config.write_text("\n".join(lines) + "\n")
        log = (self.folder / "log").open("w")
        # In a session of its own, so that all of its processes can be found and killed at once.
        self.process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(config)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        assert wait_until(self._answers), (self.folder / "log").read_text()
        return self

    def _answers(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def running(self):
        """What runs on the device, but the server itself."""
        return {
            pid: line
            for pid, line in processes_of(str(self.home)).items()
            if not line.startswith("sshd")
        }

    def left_behind(self):
        """Files of jobs that are still there."""
        jobs = self.cache / "jobs"
        return sorted(path.name for path in jobs.iterdir()) if jobs.is_dir() else []

    def kill_server(self):
        """Kill the server and what serves its connections, as a power cut does; not the job."""
        for pid in [self.process.pid, *_descendants(self.process.pid)]:
            if (Path("/proc") / str(pid) / "comm").read_text().startswith("sshd"):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            for pid in [*_descendants(self.process.pid), self.process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.process.wait()


def _descendants(pid):
    children = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(process.name))
    found, waiting = [], [pid]
    while waiting:
        waiting += children.get(waiting[0], [])
        found += children.get(waiting.pop(0), [])
    return found


def keygen(path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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

    def make(*settings, known=True):
        folder = tmp_path / f"device{len(devices)}"
        (folder / "home").mkdir(parents=True)
        keygen(folder / "host_key")
        shutil.copy(user / ".ssh" / "id_ed25519.pub", folder / "authorized_keys")
        device = Device(folder, free_port(), list(settings)).start()
        devices.append(device)
        if known:
            remember(user, device.port, device.host_key)
        return device

    yield make
    for device in devices:
        device.stop()


def remember(user, port, host_key):
    with (user / ".ssh" / "known_hosts").open("a") as file:
        file.write(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")


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
def run():
    from click.testing import CliRunner

    from resdeploy.cli import cli

    def invoke(*arguments):
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A bundle in one file, whose model returns its input of 16 numbers as scores."""
    import numpy as np
    import onnx
    from onnx import parser

    from resdeploy.bundle import write_bundle
    from resdeploy.bundle_archive import write_archive
    from resdeploy.golden_file import Golden
    from resdeploy.schema import GoldenInfo, TensorSpec

    folder = tmp_path_factory.mktemp("bundle")
    text = (
        '<ir_version: 8, opset_import: ["": 18]> flat (float[N, 1, 4, 4] x) => (float[N, 16] y)'
        " { y = Flatten (x) }"
    )
    onnx.save(parser.parse_model(text), folder / "flat.onnx")
    inputs = np.random.default_rng(0).normal(size=(3, 1, 4, 4)).astype(np.float32)
    write_bundle(
        folder / "flat",
        name="flat",
        model=folder / "flat.onnx",
        golden=Golden(
            inputs=inputs,
            reference=inputs.reshape(3, 16).astype(np.float64),
            noise_l2=np.full(3, 1e-7),
            labels=None,
            info=GoldenInfo(source="flat", inputs="random", num_inputs=3),
        ),
        labels=(),
        preprocess=None,
        export=None,
        inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 1, 4, 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 16)),),
        versions={},
    )
    write_archive(folder / "flat", folder / "flat.zip")
    return folder / "flat.zip"
