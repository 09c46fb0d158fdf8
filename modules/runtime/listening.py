"""The port: opening it, the address that a browser reaches it by, and who may come in. Standard library only."""

import contextlib
import errno
import ipaddress
import os
import secrets
import socket
import sys
from argparse import Namespace
from collections.abc import Mapping
from urllib.parse import quote

from modules.runtime.flags import DEFAULT_PORT, FlagError, host_of
from modules.runtime.paths import absolute

PORTS_TO_TRY = 100
TOKEN_VARIABLE = "EASEL_TOKEN"
SOCKET_VARIABLE = "EASEL_SOCKET"


class ListenError(OSError):
    """An address that cannot be listened on; the message is one sentence for the user."""


def open_listener(flags: Namespace) -> socket.socket:
    """A listening socket on the port of the flags, or on the first free one from 7860. Raises `ListenError`."""
    host = host_of(flags)
    family, address = _resolve(host)
    ports = range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TO_TRY) if flags.port is None else [flags.port]
    for port in ports:
        try:
            return _listen(family, (address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ListenError(_sentence(host, port, error)) from error
    if flags.port is None:
        raise ListenError(f"the ports {ports[0]} to {ports[-1]} on {host} are all taken; name a free one with --port")
    raise ListenError(f"port {flags.port} on {host} is taken by another program; name another with --port, or none")


def inherited_listener(environ: Mapping[str, str]) -> socket.socket | None:
    """The socket that launch.py opened for us. It outlives a crash: visitors wait meanwhile."""
    number = environ.get(SOCKET_VARIABLE)
    return socket.socket(fileno=int(number)) if number else None


def is_exposed(host: str) -> bool:
    """Whether other machines can reach this address."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() != "localhost"


def token_from(flags: Namespace, environ: Mapping[str, str]) -> str | None:
    """The secret of the printed link, 256 bits: needed where other machines can reach us and no password was set."""
    if environ.get(TOKEN_VARIABLE):
        return environ[TOKEN_VARIABLE]
    return secrets.token_urlsafe(32) if is_exposed(host_of(flags)) and not passwords_from(flags) else None


def passwords_from(flags: Namespace) -> dict[str, str]:
    """User to password, from `--gradio-auth`, its file and `--api-auth`. Raises `FlagError`."""
    given = [("--gradio-auth", flags.gradio_auth or ""), ("--api-auth", flags.api_auth or "")]
    if flags.gradio_auth_path:
        try:
            given.append(("--gradio-auth-path", absolute(flags.gradio_auth_path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise FlagError(f"--gradio-auth-path: {flags.gradio_auth_path} cannot be read: {error}") from error
    passwords: dict[str, str] = {}
    for flag, text in given:
        for pair in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
            user, colon, password = pair.partition(":")
            if not user or not colon or not password:
                raise FlagError(f"{flag}: it needs user:password, or several of them with commas between")
            passwords[user] = password
    if not passwords and any(text for _, text in given):
        raise FlagError(f"{given[-1][0]}: no user:password was found in it")
    return passwords


def address_of(listener: socket.socket, flags: Namespace) -> str:
    """The page's address as seen from this machine: `http://127.0.0.1:7860`."""
    host = host_of(flags)
    port = listener.getsockname()[1]
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(host)
        if ip.is_unspecified:
            host = "127.0.0.1" if ip.version == 4 else "::1"
    scheme = "https" if flags.tls_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def with_token(address: str, token: str | None) -> str:
    return f"{address}/?token={quote(token)}" if token else f"{address}/"


def network_address() -> str | None:
    """This machine's own address in its network; asks the routing table, and sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1: no packet leaves for a datagram socket's connect
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(f"--server-name: {host!r} is no address of this machine; try 127.0.0.1 or 0.0.0.0") from error
    family, _, _, _, address = found[0]
    return family, str(address[0])


def _listen(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        listener.bind(address)
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    return listener


def _sentence(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--server-name: {host} is no address of this machine; try 127.0.0.1 or 0.0.0.0"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is not allowed for this user; choose a --port from 1024 to 65535"
    return f"nothing can listen on {host} port {port}: {os.strerror(error.errno or 0)}"
