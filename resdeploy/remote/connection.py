"""An SSH connection to a device with a known host key; every failure explained.

Keys come from the agent, from the user's default files, or from the device's `identity`; the
user's `~/.ssh/config` counts. Passwords are never asked for. The host key is always checked, even
where the user's configuration says not to.
"""

import asyncio
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh

from resdeploy.errors import EnvironmentLacksError
from resdeploy.schema.remotes import DeviceSpec

__all__ = ["KEEPALIVE_S", "connected", "ssh_arguments"]

# The connection is lost after four in a row without an answer.
KEEPALIVE_S = 15
_CLOSE_TIMEOUT_S = 5.0


class _Client(asyncssh.SSHClient):
    """SSH client that records an unknown host key, and refuses it."""

    def __init__(self) -> None:
        self.unknown: asyncssh.SSHKey | None = None
        self.address = ""

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        self.unknown, self.address = key, addr
        return False


@asynccontextmanager
async def connected(device: DeviceSpec) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Yield a connection to `device`, closed when the block ends.

    Raises:
        EnvironmentLacksError: there is none; the message says whether it is the address, the
            host's key or the user's.
    """
    client = _Client()
    options = await _options(device, client)
    known_hosts = _known_hosts(options, device)
    try:
        async with asyncio.timeout(device.connect_timeout_s):
            connection = await asyncssh.connect(
                device.host,
                *(() if device.port is None else (device.port,)),
                options=options,
                known_hosts=known_hosts,
            )
    except TimeoutError as error:
        raise _unreachable(
            device, f"has not answered in {device.connect_timeout_s:g} seconds"
        ) from error
    except asyncssh.HostKeyNotVerifiable as error:
        raise _host_key_error(device, options, known_hosts, client, error) from error
    except asyncssh.PermissionDenied as error:
        raise EnvironmentLacksError(
            "The device does not let this user log in.",
            where=f"{options.username}@{options.host}",
            fix=f"put your public key there: ssh-copy-id {ssh_arguments(device)}; a key with a "
            "passphrase must be in the agent: ssh-add",
        ) from error
    except asyncssh.KeyExchangeFailed as error:
        raise EnvironmentLacksError(
            f"The device and this machine agree on no kind of key: {error.reason}.",
            where=device.address,
            fix="if its known host key is of a kind that it no longer has, look at the new one: "
            f"ssh {ssh_arguments(device)}",
        ) from error
    except (OSError, asyncssh.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _unreachable(device, f"cannot be reached: {reason}") from error
    try:
        yield connection
    finally:
        connection.close()
        with suppress(Exception):
            await asyncio.wait_for(connection.wait_closed(), _CLOSE_TIMEOUT_S)


async def _options(device: DeviceSpec, client: _Client) -> asyncssh.SSHClientConnectionOptions:
    """Return the SSH options: the user's configuration, overridden by the device's record."""
    identity = None if device.identity is None else [device.identity]
    own = {"username": device.user, "port": device.port, "client_keys": identity}
    try:
        options: asyncssh.SSHClientConnectionOptions = (
            await asyncssh.SSHClientConnectionOptions.construct(
                config=(),  # ~/.ssh/config; the default here would be none
                host=device.host,
                client_factory=lambda: client,
                password_auth=False,
                kbdint_auth=False,
                keepalive_interval=KEEPALIVE_S,
                **{name: value for name, value in own.items() if value is not None},
            )
        )
    except (OSError, ValueError) as error:
        # A damaged key, one with a passphrase, or a line of ~/.ssh/config.
        raise EnvironmentLacksError(
            f"The settings for SSH cannot be used: {error}.",
            where=device.identity or "~/.ssh",
            fix="a key with a passphrase must be in the agent (ssh-add); else correct the file",
        ) from error
    return options


def _known_hosts(
    options: asyncssh.SSHClientConnectionOptions, device: DeviceSpec
) -> asyncssh.SSHKnownHosts:
    """Return the trusted host keys, from the files that ssh reads."""
    # With "UserKnownHostsFile none" asyncssh would check nothing.
    named: Any = options.known_hosts or ["~/.ssh/known_hosts"]
    paths = [Path(path).expanduser() for path in named]
    try:
        return asyncssh.read_known_hosts([str(path) for path in paths if path.is_file()])
    except (OSError, ValueError) as error:
        raise EnvironmentLacksError(
            f"The known hosts cannot be read: {error}.",
            where=", ".join(map(str, paths)),
            fix=f"correct the file that ssh {ssh_arguments(device)} complains of",
        ) from error


def _host_key_error(
    device: DeviceSpec,
    options: asyncssh.SSHClientConnectionOptions,
    known_hosts: asyncssh.SSHKnownHosts,
    client: _Client,
    error: asyncssh.HostKeyNotVerifiable,
) -> EnvironmentLacksError:
    where = device.address
    if client.unknown is None:
        return EnvironmentLacksError(f"The host key is refused: {error.reason}.", where=where)
    fingerprint = f"{client.unknown.get_algorithm()} {client.unknown.get_fingerprint()}"
    port = options.port if options.port != 22 else None
    known = asyncssh.match_known_hosts(known_hosts, options.host, client.address, port)[0]
    if known:
        entry = options.host if port is None else f"[{options.host}]:{port}"
        return EnvironmentLacksError(
            f"The device's host key is not the one that is known: it is {fingerprint}. "
            "The device was set up anew, or something else answers in its place.",
            where=where,
            fix=f"if you know why, forget the old key: ssh-keygen -R {shlex.quote(entry)}",
        )
    return EnvironmentLacksError(
        f"The device's host key is not known: {fingerprint}.",
        where=where,
        fix=f"log in once and compare it: ssh {ssh_arguments(device)}; or, on a network that you "
        f"trust: ssh-keyscan -p {options.port} {shlex.quote(options.host)} >> ~/.ssh/known_hosts",
    )


def ssh_arguments(device: DeviceSpec) -> str:
    """Return the arguments of `ssh` for the same device."""
    port = [] if device.port is None else ["-p", str(device.port)]
    identity = [] if device.identity is None else ["-i", device.identity]
    host = device.host if device.user is None else f"{device.user}@{device.host}"
    return shlex.join([*port, *identity, host])


def _unreachable(device: DeviceSpec, what: str) -> EnvironmentLacksError:
    return EnvironmentLacksError(
        f"The device {what}.",
        where=device.address,
        fix=f"see that it is on, and that this works: ssh {ssh_arguments(device)}",
    )
