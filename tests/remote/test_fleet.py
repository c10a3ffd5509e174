"""Addresses and fleet files: what they mean, and what is refused."""

import dataclasses
import re

import pytest
from servers import REPOSITORY

from resdeploy.errors import ResdeployError
from resdeploy.remote.fleet import load_fleet, parse_address, refuse_duplicates
from resdeploy.schema.remotes import DeviceFailure, DeviceResult, RemoteReport


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("board", None, "board", None),
        ("pi@kitchen.local", "pi", "kitchen.local", None),
        ("pi@10.0.0.7:2222", "pi", "10.0.0.7", 2222),
        ("[::1]:2222", None, "::1", 2222),
        ("pi@[fe80::1%eth0]", "pi", "fe80::1%eth0", None),
    ],
)
def test_an_address_is_read(text, user, host, port):
    device = parse_address(text)
    assert (device.user, device.host, device.port) == (user, host, port)
    assert device.name == text


def test_an_address_comes_back_as_it_was_written():
    for text in ("board", "pi@kitchen.local", "pi@10.0.0.7:2222", "pi@[::1]:2222"):
        assert parse_address(text).address == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "pi@", "pi@host:", "host:0", "host:65536", "host:ssh", "::1", "[::1", "a b"),
        *("-oProxy=x", "user@-host", "host\n", "pi:secret@host"),
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ResdeployError):
        parse_address(text)


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "fleet.toml"
        path.write_text(text)
        return path

    return make


def test_a_fleet_file_has_defaults_and_files_beside_it(write, tmp_path):
    path = write(
        '[defaults]\nuser = "pi"\nwheelhouse = "wheels"\nconnect_timeout_s = 5\n'
        '[[device]]\nhost = "a"\n'
        '[[device]]\nname = "old"\nhost = "b"\nuser = "root"\nidentity = "~/key"\nport = 22\n'
    )
    first, second = load_fleet(path)
    assert (first.name, first.user, first.connect_timeout_s) == ("a", "pi", 5.0)
    assert first.wheelhouse == str(tmp_path / "wheels")
    assert (second.name, second.address) == ("old", "root@b:22")
    assert second.identity.endswith("/key")
    assert "~" not in second.identity


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "names no device"),
        ("[[device]", "cannot be read"),
        ('[[devices]]\nhost = "a"', "does not know 'devices'"),
        ('device = ["a"]', "is a table"),
        ('[device]\nhost = "a"', "names no device"),
        ('defaults = 1\n[[device]]\nhost = "a"', "names no device"),
        ('[[device]]\nuser = "a"', "no `host`"),
        ('[[device]]\nhost = "a"\npassword = "b"', "Unknown field 'password'"),
        ('[[device]]\nhost = "a"\nport = "b"', "Expected a whole number"),
        ('[[device]]\nhost = "a"\nport = 0', "port 0"),
        ('[[device]]\nhost = "a b"', "is not a name or an address"),
        ('[[device]]\nhost = "-a"', "is not a name or an address"),
        ('[[device]]\nhost = "a"\nextra = "cpu];x"', "is not a name such as cpu"),
        ('[[device]]\nhost = "a"\ntimeout_s = 0', "above 0"),
        ('[[device]]\nhost = "a"\ntimeout_s = inf', "above 0"),
        ('[[device]]\nhost = "a"\nconnect_timeout_s = nan', "above 0"),
        ('[[device]]\nhost = "a"\npython = "-c"', "is not a command"),
    ],
)
def test_what_is_no_fleet_file_is_refused_and_named(write, text, what):
    path = write(text)
    with pytest.raises(ResdeployError, match=what) as raised:
        load_fleet(path)
    assert str(path) in raised.value.where


def test_the_fleet_file_of_the_page_is_one(write):
    page = (REPOSITORY / "docs/fleet.md").read_text()
    example = re.search(r"```toml\n(.*?)```", page, flags=re.DOTALL)[1]
    first, second = load_fleet(write(example))
    assert first.address == "pi@kitchen.local"
    told = set(re.findall(r"^(\w+) =", example, flags=re.MULTILINE))
    assert told == {field.name for field in dataclasses.fields(second)}


def test_a_fleet_file_that_is_not_there(tmp_path):
    with pytest.raises(ResdeployError, match="cannot be read"):
        load_fleet(tmp_path / "none.toml")


def test_a_device_that_is_named_twice_is_refused(write):
    twice = [parse_address("pi@a"), parse_address("pi@a")]
    with pytest.raises(ResdeployError, match="Two devices have the address 'pi@a'"):
        refuse_duplicates(twice)
    named = load_fleet(
        write('[[device]]\nname = "x"\nhost = "a"\n[[device]]\nname = "x"\nhost = "b"\n')
    )
    with pytest.raises(ResdeployError, match="Two devices have the name 'x'"):
        refuse_duplicates(named)
    refuse_duplicates([parse_address("pi@a"), parse_address("pi@a:2222")])


def test_the_exit_code_is_that_of_the_failures_only_if_there_is_no_result():
    device = parse_address("a")

    def failed(code):
        failure = DeviceFailure(stage="connect", what="", where=None, fix=None, exit_code=code)
        return DeviceResult(device=device, failure=failure)

    def code_of(*results):
        return RemoteReport(command="check", devices=results).exit_code

    passed = DeviceResult(device=device)
    assert code_of(passed, passed) == 0
    assert code_of(passed, failed(3)) == 1
    assert code_of(failed(3), failed(2)) == 3
    assert code_of(failed(2)) == 2
