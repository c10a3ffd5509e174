"""Which private environment a device uses: another one as soon as anything in it is another."""

import asyncio
import dataclasses

import pytest

from resdeploy.errors import ResdeployError
from resdeploy.remote.fleet import parse_address
from resdeploy.remote.installation import install
from resdeploy.remote.job_client import DeviceInfo, Environment

DEVICE = parse_address("board")
ABOUT = DeviceInfo("/job", "/usr/bin/python3", (3, 12, 1), "aarch64")


class Asked:
    """A link to a device that has every environment already, and notes which one was wanted."""

    async def prepare(self, name):
        self.name = name
        return Environment(f"/cache/{name}", complete=True)


def asked_for(wheel, *, device=DEVICE, about=ABOUT):
    link = Asked()
    installation = asyncio.run(install(link, device, about, wheel))
    assert installation.origin == "found"
    assert installation.python == f"/cache/{link.name}/bin/python"
    return link.name


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "resdeploy.whl"
    path.write_bytes(b"one")
    return path


def test_the_same_again_is_the_same_environment(wheel):
    assert asked_for(wheel) == asked_for(wheel)


def test_another_wheel_extra_python_or_wheelhouse_is_another_environment(wheel, tmp_path):
    house = tmp_path / "house"
    house.mkdir()
    (house / "a.whl").write_bytes(b"a")
    with_house = dataclasses.replace(DEVICE, wheelhouse=str(house))
    names = [
        asked_for(wheel),
        asked_for(wheel, device=dataclasses.replace(DEVICE, extra="gpu")),
        asked_for(wheel, about=dataclasses.replace(ABOUT, python_version=(3, 12, 2))),
        asked_for(wheel, about=dataclasses.replace(ABOUT, executable="/opt/python3")),
        asked_for(wheel, device=with_house),
    ]
    (house / "a.whl").write_bytes(b"b")
    names.append(asked_for(wheel, device=with_house))
    wheel.write_bytes(b"two")
    names.append(asked_for(wheel))
    assert len(set(names)) == len(names)


def test_an_empty_wheelhouse_is_refused_with_the_way_to_fill_it(wheel, tmp_path):
    device = dataclasses.replace(DEVICE, wheelhouse=str(tmp_path / "none"))
    with pytest.raises(ResdeployError, match="no wheels") as raised:
        asked_for(wheel, device=device)
    assert "pip download" in raised.value.fix
