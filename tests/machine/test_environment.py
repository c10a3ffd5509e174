"""The machine and the software, as far as they can be read, and nothing about their owner."""

import getpass
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import resdeploy
from resdeploy.machine import environment as environment_module
from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import dump_json, load_json, to_json
from resdeploy.schema.machines import Environment


def test_this_machine_is_described():
    environment = read_environment()
    assert environment.machine == platform.machine()
    assert environment.system.split()[0] == platform.system()
    assert 1 <= environment.num_cpus_allowed <= environment.num_cpus == os.cpu_count()
    assert environment.versions["numpy"] == np.__version__
    assert environment.versions["resdeploy"] == resdeploy.__version__
    assert environment.versions["python"] == platform.python_version()
    assert any(name.startswith("onnxruntime") for name in environment.versions)
    assert list(environment.versions) == sorted(environment.versions)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_is_in_bytes():
    ram_bytes = read_environment().ram_bytes
    assert ram_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_record_survives_json():
    environment = read_environment()
    assert load_json(Environment, dump_json(environment), where="x") == environment


def test_no_user_host_or_path_is_in_it():
    text = json.dumps(to_json(read_environment()))
    for secret in {getpass.getuser(), socket.gethostname(), os.getcwd(), os.path.expanduser("~")}:
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text), secret
    assert "/" not in re.sub(r"\bw/|\bN/A\b", "", text)


def test_a_kernel_named_by_its_builder_shows_its_numbers_only(monkeypatch):
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-annas-laptop+")
    assert read_environment().system == f"{platform.system()} 6.1.0"


def test_a_machine_that_tells_nothing_raises_nothing(monkeypatch):
    def refuse(*_, **__):
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(os, "getloadavg", refuse)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(platform, "processor", lambda: "")
    environment = read_environment()
    assert environment.cpu_model is None
    assert environment.ram_bytes is None
    assert environment.load_average_1min is None
    assert environment.cpu_governor is None
    assert environment.gpu_names == ()
    assert environment.num_cpus == 1


def fake_files(monkeypatch, **texts):
    monkeypatch.setattr(
        environment_module, "read_text", lambda path: texts.get(path.rsplit("/", 1)[-1], "")
    )


def test_files_of_an_x86_machine_are_understood(monkeypatch):
    fake_files(
        monkeypatch,
        cpuinfo="processor\t: 0\nmodel name\t: Xeon 1\n\nprocessor\t: 1\nmodel name\t: Xeon 2\n",
        meminfo="MemFree:  1 kB\nMemTotal:       16 kB\n",
        scaling_governor="powersave\n",
    )
    environment = read_environment()
    assert environment.cpu_model == "Xeon 1"
    assert environment.ram_bytes == 16 * 1024
    assert environment.cpu_governor == "powersave"


def test_an_arm_board_is_named_by_its_device_tree(monkeypatch):
    fake_files(monkeypatch, cpuinfo="CPU part\t: 0xd0b\n", model="Raspberry Pi 5 Model B Rev 1.0\0")
    assert read_environment().cpu_model == "Raspberry Pi 5 Model B Rev 1.0"


@pytest.mark.skipif(sys.platform != "linux", reason="sets an affinity")
@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1), ("", 8), ("x y", 8)],
)
def test_a_containers_share_of_cpu_time_is_what_is_allowed(monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    fake_files(monkeypatch, **{"cpu.max": quota})
    assert read_environment().num_cpus_allowed == expected


def test_gpus_are_named_without_their_serial_numbers(monkeypatch):
    listing = "GPU 0: NVIDIA H200 (UUID: GPU-1-2)\nGPU 1: Tesla T4 (UUID: GPU-3-4)\n"
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=listing)
    )
    assert read_environment().gpu_names == ("NVIDIA H200", "Tesla T4")


def test_a_driver_that_hangs_or_fails_is_no_gpu(monkeypatch):
    for error in (
        subprocess.TimeoutExpired("nvidia-smi", 10),
        subprocess.CalledProcessError(9, "nvidia-smi"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(subprocess, "run", fail)
        assert read_environment().gpu_names == ()


def test_a_distribution_with_a_broken_record_is_passed_over(monkeypatch):
    class Nameless(importlib.metadata.Distribution):
        def read_text(self, filename):
            return "Summary: no name\n" if filename == "METADATA" else None

        def locate_file(self, path):
            return path

    class Unreadable(Nameless):
        def read_text(self, filename):
            raise PermissionError

    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [Nameless(), Unreadable()])
    assert set(read_environment().versions) == {"python", "resdeploy"}
