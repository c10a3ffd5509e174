"""The devices that a user names: `--on user@host:port`, or a fleet file.

A fleet file is TOML: a table `[[device]]` for each device, with the fields of `DeviceSpec`, and
`[defaults]` for what they share:

    [defaults]
    user = "pi"

    [[device]]
    host = "kitchen.local"

    [[device]]
    name = "the old one"
    host = "10.0.0.7"
    python = "python3.12"
    wheelhouse = "wheels-aarch64"

Files of this machine (`identity`, `wheelhouse`) are relative to the fleet file.
"""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resdeploy.errors import ResdeployError
from resdeploy.schema.codec import from_json
from resdeploy.schema.remotes import DeviceSpec

__all__ = ["load_fleet", "parse_address", "refuse_duplicates"]

_FORM = "[user@]host[:port], with an IPv6 address in brackets: pi@[fe80::1]:22"
_ADDRESS = re.compile(
    r"(?:(?P<user>[^@:\s]+)@)?"
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^@:\s\[\]]+))"
    r"(?::(?P<port>\d{1,5}))?"
)
_EXTRA = re.compile(r"[a-z0-9]+(?:[-_.,][a-z0-9]+)*")


def parse_address(text: str) -> DeviceSpec:
    """Return the device at [user@]host[:port].

    Raises:
        ResdeployError: the text has another form.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or text.startswith("-"):
        raise ResdeployError(
            f"{text!r} is not the address of a device.", fix=f"write it as {_FORM}"
        )
    port = None if match["port"] is None else int(match["port"])
    spec = DeviceSpec(name=text, host=match["ipv6"] or match["host"], user=match["user"], port=port)
    _check(spec, where=text)
    return spec


def load_fleet(path: Path) -> tuple[DeviceSpec, ...]:
    """Return the devices of a fleet file, in its order.

    Raises:
        ResdeployError: it cannot be read, or is not a fleet file.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ResdeployError(f"The fleet file cannot be read: {error}.", where=str(path)) from error
    unknown = sorted(set(data) - {"defaults", "device"})
    devices, defaults = data.get("device"), data.get("defaults", {})
    if unknown or not devices or not isinstance(devices, list) or not isinstance(defaults, dict):
        what = f"does not know {unknown[0]!r}" if unknown else "names no device"
        raise ResdeployError(
            f"The fleet file {what}.",
            where=str(path),
            fix="write one table [[device]] with its `host` for each, and [defaults] if you like",
        )
    return tuple(
        _device(defaults, device, path, where=f"{path}: device {number}")
        for number, device in enumerate(devices, start=1)
    )


def refuse_duplicates(devices: Sequence[DeviceSpec]) -> None:
    """Refuse a fleet in which a device, or a name, occurs twice.

    Two jobs on one device would time each other.

    Raises:
        ResdeployError: something is there twice; the message names it.
    """
    for field in ("address", "name"):
        counts = Counter(getattr(device, field) for device in devices)
        if twice := [text for text, count in counts.items() if count > 1]:
            raise ResdeployError(
                f"Two devices have the {field} {twice[0]!r}.", fix="name each device once"
            )


def _device(defaults: dict[str, Any], device: Any, path: Path, *, where: str) -> DeviceSpec:
    if not isinstance(device, dict):
        raise ResdeployError("A device is a table.", where=where, fix="write [[device]] above it")
    fields = {**defaults, **device}
    if "host" not in fields:
        raise ResdeployError("The device has no `host`.", where=where)
    fields.setdefault("name", str(fields["host"]))
    for name in ("identity", "wheelhouse"):  # files of this machine
        if isinstance(fields.get(name), str):
            fields[name] = str(path.parent / Path(fields[name]).expanduser())
    spec = from_json(DeviceSpec, fields, where=where)
    _check(spec, where=where)
    return spec


def _check(spec: DeviceSpec, *, where: str) -> None:
    """Refuse values of the right type that cannot be used."""
    timeouts = [t for t in (spec.connect_timeout_s, spec.timeout_s) if t is not None]
    rules = {
        f"The host {spec.host!r} is not a name or an address.": re.fullmatch(
            r"[^-\s@/][^\s@/]*", spec.host
        ),
        f"The port {spec.port} is not between 1 and 65535.": spec.port is None
        or 0 < spec.port < 2**16,
        f"The extra {spec.extra!r} is not a name such as cpu.": _EXTRA.fullmatch(spec.extra),
        "A timeout is not a number above 0 seconds.": all(0 < t < math.inf for t in timeouts),
        f"The interpreter {spec.python!r} is not a command.": re.match("[^-]", spec.python),
    }
    for wrong, holds in rules.items():
        if not holds:
            raise ResdeployError(wrong, where=where)
