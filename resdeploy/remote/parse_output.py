"""Output of a command on a device, parsed: a record or an error, and never more than data."""

import re
from typing import TypeVar

from resdeploy.errors import EnvironmentLacksError, ReportedError, ResdeployError
from resdeploy.remote.job_client import MOST_OUTPUT_BYTES, CompletedCommand
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.remotes import DeviceSpec

__all__ = ["failure_of", "read_record"]

T = TypeVar("T")

# Control characters as JSON spells them, but \n and \t: a terminal obeys them.
_CONTROLS = re.compile(r"\\u00(?:0[0-8be-f]|1[0-9a-f]|7f|[89][0-9a-f])|\\[bfr]")
_REPORTED = re.compile(
    r"^[Ee]rror: (?P<what>.*?)(?:\n  where: (?P<where>.*?))?(?:\n  fix:   (?P<fix>.*?))?\Z",
    re.DOTALL | re.MULTILINE,
)
_MOST_LINES = 5


def read_record(cls: type[T], text: bytes, *, where: str) -> T:
    """Return the record that a device sent.

    Raises:
        EnvironmentLacksError: this is not that record, or it holds what no record holds.
    """
    try:
        record = load_json(cls, text, where=where)
    except (ResdeployError, RecursionError) as error:
        what = error.what if isinstance(error, ResdeployError) else "it is nested without end."
        found = error.where if isinstance(error, ResdeployError) else where
        raise EnvironmentLacksError(
            f"The device did not send a {cls.__name__}: {what}",
            where=found,
            fix="see that the same version of resdeploy is in its environment",
        ) from error
    if _CONTROLS.search(dump_json(record)):
        raise EnvironmentLacksError(
            f"The {cls.__name__} of the device holds control characters.", where=where
        )
    return record


def failure_of(command: str, ended: CompletedCommand, device: DeviceSpec) -> ReportedError:
    """Return the error of a command without a record, in the device's own words."""
    stderr = ended.stderr.strip()
    where, fix = device.address, "see that the same version of resdeploy is in its environment"
    if ended.code is None:
        what = f"`resdeploy {command}` printed more than {MOST_OUTPUT_BYTES >> 20} MiB there."
        fix = "ask for fewer --runs"
    elif ended.code < 0:
        what = f"`resdeploy {command}` was killed there by signal {-ended.code}."
        fix = "see there whether memory ran out: dmesg"
    elif "No module named resdeploy" in stderr:
        what = "There is no resdeploy in the device's environment."
        where = f"{where}: {device.environment}"
        fix = "install the wheel of resdeploy and onnxruntime in it, or leave out `environment`"
    elif (match := _REPORTED.search(stderr)) is not None:
        kind = ResdeployError if ended.code == ResdeployError.exit_code else EnvironmentLacksError
        there = where if match["where"] is None else f"{where}: {match['where']}"
        return kind(match["what"], where=there, fix=match["fix"])
    else:
        what = f"`resdeploy {command}` ended there with code {ended.code}."
        last = "\n         ".join(stderr.splitlines()[-_MOST_LINES:])
        where = f"{where}: {last}" if last else where
    return EnvironmentLacksError(what, where=where, fix=fix)
