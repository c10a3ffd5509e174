"""The Python environment on a device: the one it has, or a private one made for resdeploy.

A private environment lies in the user's cache folder there, under a digest of all that it was made
of, so that it is made once. It needs no root, and nothing of it is seen outside that folder.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

from resdeploy.errors import EnvironmentLacksError, ResdeployError
from resdeploy.files import sha256_file
from resdeploy.remote.job_client import CompletedCommand, DeviceInfo, JobClient
from resdeploy.schema.remotes import DeviceSpec, Installation

__all__ = ["OLDEST_PYTHON", "install"]

OLDEST_PYTHON = (3, 11)


async def install(
    client: JobClient, device: DeviceSpec, about: DeviceInfo, wheel: Path | None
) -> Installation:
    """Return an environment on the device in which resdeploy runs, after making it if need be.

    `wheel` is the resdeploy to install; not needed where the device's environment is given.

    Raises:
        EnvironmentLacksError: its Python is too old, or nothing can be installed there.
        ResdeployError: the wheelhouse is no folder of wheels.
    """
    shown = ".".join(map(str, about.python_version))
    if about.python_version < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise EnvironmentLacksError(
            f"The device's {device.python} is Python {shown}; resdeploy needs {oldest} or newer.",
            where=f"{device.address}: {about.executable}",
            fix=f'install one there, and name it in a fleet file: python = "python{oldest}"',
        )
    given = Installation(
        python=about.executable, python_version=shown, machine=about.machine, origin="given"
    )
    if device.environment is not None or wheel is None:
        return given
    wheels = _wheelhouse(device)
    wheel_sha256 = sha256_file(wheel)
    parts = [wheel_sha256, device.extra, shown, about.executable]
    parts += [f"{path.name} {sha256_file(path)}" for path in wheels]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    environment = await client.prepare(name)
    if not environment.complete:
        await _make(client, device, (about.executable, environment.folder), wheel, wheels)
        await client.complete()
    origin: Literal["found", "made"] = "found" if environment.complete else "made"
    python = f"{environment.folder}/bin/python"
    return replace(given, python=python, origin=origin, wheel_sha256=wheel_sha256)


def _wheelhouse(device: DeviceSpec) -> list[Path]:
    if device.wheelhouse is None:
        return []
    wheels = sorted(Path(device.wheelhouse).glob("*.whl"))
    if not wheels:
        raise ResdeployError(
            "There are no wheels in the wheelhouse.",
            where=device.wheelhouse,
            fix="fill it for the device's Python: pip download --only-binary=:all: "
            "--platform manylinux_2_28_aarch64 --python-version 3.11 -d FOLDER "
            "numpy click rich pillow onnxruntime",
        )
    return wheels


async def _make(
    client: JobClient, device: DeviceSpec, places: tuple[str, str], wheel: Path, wheels: list[Path]
) -> None:
    """Make the environment `places[1]` with the interpreter `places[0]`."""
    interpreter, folder = places
    made = await client.run([interpreter, "-m", "venv", "--clear", folder])
    if made.code != 0:
        raise EnvironmentLacksError(
            f"The device's Python makes no environment: {_last(made)}",
            where=f"{device.address}: {interpreter}",
            fix="on Debian: sudo apt install python3-venv; or name an `environment` that has "
            "resdeploy in a fleet file",
        )
    for path in (wheel, *wheels):
        await client.put(path, f"wheels/{path.name}")
    # Offline with a wheelhouse: a package missing there is an error, not a download.
    source = ["--no-index", "--find-links", "wheels"] if wheels else []
    done = await client.run(
        [
            *(f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--no-input"),
            *("--disable-pip-version-check", "--only-binary=:all:", *source),
            f"wheels/{wheel.name}[{device.extra}]",
        ]
    )
    if done.code != 0:
        raise EnvironmentLacksError(
            f"pip on the device cannot install resdeploy[{device.extra}]: {_last(done)}",
            where=f"{device.address}: {folder}",
            fix="give it a package index, or a `wheelhouse` in a fleet file: a folder here with "
            "wheels for the device",
        )


def _last(ended: CompletedCommand) -> str:
    """Return the last error line of a command's output, or its last line."""
    text = ended.stderr + "\n" + ended.stdout.decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or [f"it ended with code {ended.code}"])[-1]
