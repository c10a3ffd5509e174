"""`--on` and `--fleet` against real SSH servers: what comes back, and what is left behind."""

import pytest

from resdeploy.schema import RemoteReport, load_json


def report_of(result):
    return load_json(RemoteReport, result.stdout, where="stdout")


def test_a_bundle_is_checked_on_a_device_and_nothing_stays(run, make_device, fleet_file, bundle):
    device = make_device()
    result = run("check", bundle, "--fleet", fleet_file(device), "--json")
    assert result.exit_code == 0, result.output
    (found,) = report_of(result).devices
    assert found.check.passed
    assert found.installation.origin == "given"
    assert found.host_key.startswith("SHA256:")
    assert device.left_behind() == []
    assert device.running() == {}
