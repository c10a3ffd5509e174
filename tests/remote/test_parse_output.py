"""Output of a device: a record as it is, an error in its words, and nothing else."""

import pytest

from resdeploy.errors import EnvironmentLacksError, ResdeployError
from resdeploy.remote.fleet import parse_address
from resdeploy.remote.job_client import CompletedCommand
from resdeploy.remote.parse_output import failure_of, read_record
from resdeploy.schema.codec import dump_json
from resdeploy.schema.machines import DoctorReport, Finding

DEVICE = parse_address("pi@board")


def a_report(what):
    finding = Finding(subject="cpu", verdict="ok", what=what)
    return DoctorReport(providers=("cpu",), findings=(finding,))


def test_a_record_comes_back_as_it_was_sent():
    report = a_report("naïve “quoted” \\ 100 %\n\ttwo lines")
    assert read_record(DoctorReport, dump_json(report).encode(), where="x") == report


@pytest.mark.parametrize("character", ["\x1b", "\x00", "\x07", "\r", "\x08", "\x9b", "\x7f"])
def test_a_record_that_would_command_a_terminal_is_refused(character):
    text = dump_json(a_report(f"a{character}b")).encode()
    with pytest.raises(EnvironmentLacksError, match="control characters"):
        read_record(DoctorReport, text, where="x")


def test_an_error_is_told_as_it_was_there_with_the_device_in_front():
    text = "warning: old\nerror: It broke:\n  badly.\n  where: a.onnx\n  fix:   mend it\n"
    error = failure_of("check", CompletedCommand(2, b"", text), DEVICE)
    assert isinstance(error, ResdeployError)
    assert error.what == "It broke:\n  badly."
    assert (error.where, error.fix) == ("pi@board: a.onnx", "mend it")
    assert isinstance(
        failure_of("check", CompletedCommand(3, b"", text), DEVICE), EnvironmentLacksError
    )


def test_a_usage_error_of_another_version_is_told():
    text = "Usage: resdeploy bench\nTry --help\n\nError: No such option: --new\n"
    assert (
        failure_of("bench", CompletedCommand(2, b"", text), DEVICE).what == "No such option: --new"
    )
