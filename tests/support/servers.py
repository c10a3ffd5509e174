"""Real OpenSSH servers on loopback, each a device with a home of its own."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

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
    python_path: Path = REPOSITORY
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
            f'SetEnv "HOME={self.home}" "PYTHONPATH={self.python_path}" XDG_CACHE_HOME=',
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
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()


def parent_of(pid):
    """The process that started one; None if that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _descendants(pid):
    children = {}
    for process in Path("/proc").glob("[0-9]*"):
        children.setdefault(parent_of(process.name), []).append(int(process.name))
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


def remember(user, port, host_key):
    with (user / ".ssh" / "known_hosts").open("a") as file:
        file.write(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
