"""Where a download may go, and how: https only, to addresses of the public internet only, over few redirects, and with
a token for nobody but its own host. A name is resolved once; the address that was checked is the one connected to."""

import ipaddress
import logging
import re
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpcore
import httpx

from modules.library.downloads.errors import DownloadError
from modules.runtime.version import VERSION

log = logging.getLogger(__name__)

MOST_HOPS = 5
MOST_ADDRESS = 4096  # characters
MOST_TEXT = 16 * 2**20  # bytes of an answer that is read whole
REDIRECTS = (301, 302, 303, 307, 308)
AGENT = f"Easel/{VERSION}"

# Proxy programs that answer for every name (Clash, Surge, sing-box in "fake IP" mode) give addresses of this block,
# which no real network uses.
FAKE_IP = ipaddress.ip_network("198.18.0.0/15")
_CARRIERS = (  # IPv6 blocks that carry an IPv4 address, and where in it
    (ipaddress.ip_network("64:ff9b::/96"), 0),
    (ipaddress.ip_network("2002::/16"), 80),
)

TokenFor = Callable[[str], str | None]


@dataclass(frozen=True)
class Patience:
    """Seconds, unless said otherwise."""

    connect_s: float = 15.0
    stall_s: float = 30.0  # without a byte
    slow_s: float = 60.0  # below the least rate
    least_rate: float = 1024.0  # bytes a second
    tries: int = 6  # in a row, without progress
    first_wait_s: float = 1.0  # doubles with each try
    longest_wait_s: float = 120.0


@dataclass(frozen=True)
class Answer:
    """What came at the end of the redirects; its body can be read once."""

    status: int
    url: str
    headers: Mapping[str, str]  # in lower case
    pieces: Iterable[bytes]
    cut: Callable[[], None]  # ends the connection, from any thread

    def read(self, most: int = MOST_TEXT) -> bytes:
        """Up to `most` bytes; what follows is not fetched."""
        found = bytearray()
        for piece in self.pieces:
            found += piece
            if len(found) >= most:
                break
        return bytes(found[:most])


class Reach:
    """`local`: "host:port" of servers that may be plain http on this machine: for tests, which hand them in; nothing
    that a user or a client says gets here. `token_for(host)` gives the token of that host alone."""

    def __init__(
        self,
        token_for: TokenFor = lambda host: None,
        local: frozenset[str] = frozenset(),
        patience: Patience | None = None,
        proxies: Callable[[], Mapping[str, str]] = urllib.request.getproxies,
    ):
        self.token_for, self.local, self.patience = token_for, local, patience or Patience()
        self._proxies = proxies
        self._pools: dict[tuple[str, str], Any] = {}  # by scheme and proxy

    @contextmanager
    def get(self, address: str, headers: Mapping[str, str] | None = None, token: str | None = None) -> Iterator[Answer]:
        """The answer at the end of the redirects. `token`: instead of the settings' one, for the first host only."""
        where = self.checked(address)
        first = authority(where)
        with ExitStack() as stack:
            for _hop in range(MOST_HOPS + 1):
                here = authority(where)
                secret = token if token and here == first else self.token_for(here)
                response = stack.enter_context(self._ask(where, headers or {}, secret))
                found = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers}
                if response.status not in REDIRECTS or "location" not in found:
                    yield Answer(response.status, str(where), found, _pieces(response), partial(_cut, response))
                    return
                where = self._next(where, found["location"])
                stack.close()
        raise DownloadError(f"{first} redirects more than {MOST_HOPS} times; the link leads nowhere")

    def checked(self, address: str) -> httpx.URL:
        """Raises DownloadError for an address that is never asked, whatever it resolves to."""
        if len(address) > MOST_ADDRESS or re.search(r"[\x00-\x20\x7f]", address):
            raise DownloadError("the link is too long, or holds spaces or control characters")
        try:
            where = httpx.URL(address)
            host, port = where.raw_host.decode("ascii"), where.port
        except (httpx.InvalidURL, UnicodeError, ValueError):
            raise DownloadError("the link cannot be read; it must look like https://host/path") from None
        if not host:
            raise DownloadError("the link names no host; it must look like https://host/path")
        if authority(where) in self.local:
            return where
        if where.scheme != "https":
            raise DownloadError(f"only https links are fetched, not {where.scheme or 'this'}:")
        if where.userinfo:
            raise DownloadError(
                "the link holds a user name or a password; take it out, tokens belong into the settings"
            )
        if port is not None and not 0 < port < 65536:
            raise DownloadError("the link's port is no port")
        with suppress(ValueError):
            refuse_private(host.strip("[]"), host)
        if host.rstrip(".").lower() == "localhost" or host.lower().rstrip(".").endswith((".localhost", ".local")):
            raise DownloadError(_PRIVATE.format(host=host[:80]))
        return where

    def _next(self, where: httpx.URL, location: str) -> httpx.URL:
        try:
            there = where.join(location)
        except (httpx.InvalidURL, UnicodeError, ValueError):
            raise DownloadError(f"{authority(where)} redirects to an address that cannot be read") from None
        if there.scheme != "https" and authority(there) not in self.local:
            raise DownloadError(
                f"{authority(where)} redirects to an address without encryption ({there.scheme}:); that is refused"
            )
        return self.checked(str(there.copy_with(fragment=None)))

    @contextmanager
    def _ask(self, where: httpx.URL, headers: Mapping[str, str], secret: str | None) -> Iterator[httpcore.Response]:
        patience, host = self.patience, authority(where)
        sent = {
            "Host": where.netloc.decode("ascii"),
            "User-Agent": AGENT,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        sent |= headers
        if secret:
            sent["Authorization"] = f"Bearer {secret}"
        url = httpcore.URL(scheme=where.raw_scheme, host=where.raw_host, port=where.port, target=where.raw_path or b"/")
        timeout = {
            "connect": patience.connect_s,
            "read": patience.stall_s,
            "write": patience.stall_s,
            "pool": patience.connect_s,
        }
        with (
            as_sentences(host),
            self._pool(where).stream(
                "GET", url, headers=list(sent.items()), extensions={"timeout": timeout}
            ) as response,
        ):
            yield response

    def _pool(self, where: httpx.URL) -> Any:
        """One for each proxy, and one for none; the certificates are read when the first https address is asked."""
        proxy = "" if authority(where) in self.local else self._proxy_for(where)
        key = (where.scheme, proxy)
        if key not in self._pools:
            context = httpx.create_ssl_context() if where.scheme == "https" else None
            if proxy:
                log.info("downloads go through the proxy of this machine's settings")
                self._pools[key] = _proxied(proxy, context)
            else:
                backend = CheckedBackend(self.local)
                self._pools[key] = httpcore.ConnectionPool(context, network_backend=backend, keepalive_expiry=10.0)
        return self._pools[key]

    def _proxy_for(self, where: httpx.URL) -> str:
        found = self._proxies()
        proxy = found.get("https") or found.get("all") or ""
        return "" if not proxy or urllib.request.proxy_bypass(where.host) else proxy

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


class CheckedBackend(httpcore.NetworkBackend):
    """Resolves a name once, refuses it if any of its addresses is not public, and connects to one that was checked."""

    def __init__(self, local: frozenset[str]):
        self._local = local
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        last: Exception | None = None
        for address in self._addresses(host, port):
            try:
                return self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise last or httpcore.ConnectError("no address")

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise DownloadError(f"the host {host[:80]} cannot be found; is this machine online?", again=True) from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if f"{host}:{port}" not in self._local:
            for address in addresses:
                refuse_private(address.partition("%")[0], host)
        return addresses

    def sleep(self, seconds: float) -> None:
        self._plain.sleep(seconds)


_PRIVATE = "{host} is an address of this machine or of a private network; downloads come from the public internet only"


def refuse_private(address: str, host: str) -> None:
    """Raises DownloadError for an address that is not public, ValueError for what is no address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped
        for block, shift in _CARRIERS:
            if ip in block:
                inner = ipaddress.IPv4Address(int(ip) >> shift & 0xFFFFFFFF)
        ip = inner or ip
    if ip.version == 4 and ip in FAKE_IP:
        return
    if not ip.is_global or ip.is_multicast:
        raise DownloadError(_PRIVATE.format(host=host[:80]))


def authority(where: httpx.URL) -> str:
    """Host, with its port where that is not the usual one: what a token belongs to."""
    host = where.raw_host.decode("ascii").lower().rstrip(".")
    return f"{host}:{where.port}" if where.port else host


@contextmanager
def as_sentences(host: str) -> Iterator[None]:
    """What the network does to us, in the user's words; the library's own words may hold addresses."""
    try:
        yield
    except httpcore.TimeoutException as error:
        what = "takes no connection" if isinstance(error, httpcore.ConnectTimeout) else "sends nothing any more"
        raise DownloadError(f"{host} {what}", again=True) from None
    except httpcore.ProxyError:
        raise DownloadError("the proxy of this machine's settings refuses the connection", again=True) from None
    except httpcore.ConnectError as error:
        if "certificate" in str(error).lower():
            raise DownloadError(f"{host} shows a certificate that is not trusted; nothing was fetched") from None
        raise DownloadError(f"{host} cannot be reached; is this machine online?", again=True) from None
    except (httpcore.NetworkError, httpcore.ProtocolError):
        raise DownloadError(f"the connection to {host} broke", again=True) from None


def _pieces(response: httpcore.Response) -> Iterator[bytes]:
    assert not isinstance(response.stream, bytes)
    yield from response.iter_stream()


def _cut(response: httpcore.Response) -> None:
    stream = response.extensions.get("network_stream")
    found = stream.get_extra_info("socket") if stream else None
    if found is not None:
        with suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)


def _proxied(address: str, context: ssl.SSLContext | None) -> Any:
    """Through a proxy the name is resolved there: only what can be told from the name itself is checked here."""
    proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
    if proxy.url.scheme not in ("http", "https"):
        raise DownloadError(
            f"this machine's settings name a {proxy.url.scheme} proxy; downloads need an http one (HTTPS_PROXY)"
        )
    url = httpcore.URL(
        scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=proxy.url.port, target=proxy.url.raw_path
    )
    return httpcore.HTTPProxy(url, proxy_auth=proxy.raw_auth, ssl_context=context, keepalive_expiry=10.0)
