"""Devices over SSH, and the results of each."""

from typing import Literal

from resdeploy.errors import EXIT_CHECK_FAILED, EXIT_PASSED
from resdeploy.schema.benchmarks import BenchComparison, BenchReport
from resdeploy.schema.bundles import CheckReport
from resdeploy.schema.codec import Record, record
from resdeploy.schema.machines import ProbeReport
from resdeploy.schema.tunings import TuneReport

RemoteCommand = Literal["check", "bench", "probe", "tune"]


@record
class DeviceSpec(Record):
    """A device, and how to work on it; None leaves it to `~/.ssh/config` or to a default.

    Attributes:
        name: its name in tables; by default the address.
        host: its name or address, or an alias of `~/.ssh/config`.
        identity: file of the private key to log in with.
        environment: folder there of a virtual environment that holds resdeploy; None makes a
            private one, with the interpreter `python` and that `extra` of resdeploy.
        wheelhouse: folder here of wheels to install from, for a device without a package index.
        cache: folder there for private environments and running jobs; None is `resdeploy` in the
            user's cache.
        provider: replaces `--provider` on this device.
        connect_timeout_s: the longest time until its first answer.
        timeout_s: the longest time for the whole job; None for no limit.
    """

    name: str
    host: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    environment: str | None = None
    python: str = "python3"
    extra: str = "cpu"
    wheelhouse: str | None = None
    cache: str | None = None
    provider: str | None = None
    connect_timeout_s: float = 20.0
    timeout_s: float | None = None

    @property
    def address(self) -> str:
        """The device as `--on` takes it: user@host:port, without the parts that are None."""
        user = "" if self.user is None else f"{self.user}@"
        if self.port is None:
            return f"{user}{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{user}{host}:{self.port}"


@record
class Installation(Record):
    """The Python environment that was used on a device.

    `python` is the path of its interpreter there; `machine` the device's name of its processor,
    such as aarch64; `origin` is "given" by the user, "made" for this run, or "found" as an earlier
    run made it; `wheel_sha256` is of the resdeploy in it, None for a given environment.
    """

    python: str
    python_version: str
    machine: str
    origin: Literal["given", "made", "found"]
    wheel_sha256: str | None = None


@record
class DeviceFailure(Record):
    """The failure of a device: its stage, and the error's three parts."""

    stage: str
    what: str
    where: str | None
    fix: str | None
    exit_code: int


@record
class DeviceResult(Record):
    """The records of one device up to its failure, if any.

    `host_key` is the fingerprint of the device's proven key.
    """

    device: DeviceSpec
    host_key: str | None = None
    installation: Installation | None = None
    check: CheckReport | None = None
    bench: BenchReport | None = None
    comparison: BenchComparison | None = None
    probe: ProbeReport | None = None
    tune: TuneReport | None = None
    failure: DeviceFailure | None = None

    @property
    def passed(self) -> bool:
        """True without a failure, and with no failed check or comparison."""
        verdicts = (self.check, self.comparison)
        return self.failure is None and all(one is None or one.passed for one in verdicts)


@record
class RemoteReport(Record):
    """One command on every device of a fleet, in the order they were named."""

    command: RemoteCommand
    devices: tuple[DeviceResult, ...]

    @property
    def passed(self) -> bool:
        """True if every device passed."""
        return all(result.passed for result in self.devices)

    @property
    def exit_code(self) -> int:
        """0 if all passed, else 1; the largest code of the failures if every device failed."""
        if self.passed:
            return EXIT_PASSED
        failures = [result.failure for result in self.devices]
        codes = [failure.exit_code for failure in failures if failure is not None]
        return max(codes) if len(codes) == len(failures) else EXIT_CHECK_FAILED
