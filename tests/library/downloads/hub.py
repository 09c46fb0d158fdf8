"""A web server of this machine that serves files as the model hubs do, and misbehaves where a test tells it to. Every
request is written down with its headers."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from modules.library.downloads.reach import Patience, Reach

HASTE = Patience(connect_s=5, stall_s=0.4, slow_s=0.3, least_rate=2000, tries=3, first_wait_s=0.01, longest_wait_s=2.0)


@dataclass
class Blob:
    """One file. `faults` are used up, one a request; each gets the handler and the bytes asked for."""

    data: bytes
    etag: str | None = '"v1"'
    disposition: str | None = None
    kind: str = "application/octet-stream"
    ranges: bool = True
    needs: str | None = None  # the token
    faults: list[Callable[["Handler", bytes, int], None]] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        return sha256(self.data).hexdigest()


@dataclass
class Asked:
    path: str
    headers: dict[str, str]


class Hub:
    def __init__(self) -> None:
        self.blobs: dict[str, Blob] = {}
        self.redirects: dict[str, str] = {}
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[Asked] = []
        self._reaches: list[Reach] = []
        self.free = threading.Event()  # set at the end: whoever holds a connection lets it go
        handler = type("Bound", (Handler,), {"hub": self})
        self._server = QuietServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.free.set()
        for reach in self._reaches:
            reach.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def encrypt(self, key: Path, certificate: Path) -> None:
        """From now on it speaks TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)

    def reach(self, *others: "Hub", **more: Any) -> Reach:
        local = frozenset({self.host, *(other.host for other in others)})
        self._reaches.append(Reach(local=local, patience=HASTE, proxies=dict, **more))
        return self._reaches[-1]

    def paths(self) -> list[str]:
        return [one.path for one in self.asked]


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up here, as tests tell them to."""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.hub
        hub.asked.append(Asked(self.path, {k.lower(): v for k, v in self.headers.items()}))
        bare = self.path.partition("?")[0]
        try:
            if self.path in hub.redirects or bare in hub.redirects:
                self.plain(302, {"Location": hub.redirects.get(self.path) or hub.redirects[bare]})
            elif self.path in hub.answers or bare in hub.answers:
                self.plain(*(hub.answers.get(self.path) or hub.answers[bare]))
            elif bare in hub.blobs:
                self.blob(hub.blobs[bare])
            else:
                self.plain(404, {}, b"{}")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def plain(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.head(status, {"Content-Length": str(len(body)), **headers})
        self.wfile.write(body)

    def blob(self, blob: Blob) -> None:
        if blob.needs and self.headers.get("authorization") != f"Bearer {blob.needs}":
            self.plain(401, {"Content-Type": "application/json"}, b'{"error":"Unauthorized"}')
            return
        start, size = self.start_of(blob), len(blob.data)
        if start is not None and start >= size:
            self.plain(416, {"Content-Range": f"bytes */{size}"})
            return
        data = blob.data[start or 0 :]
        if blob.faults:
            blob.faults.pop(0)(self, data, start or 0)
            return
        self.head(206 if start is not None else 200, self.headers_of(blob, data, start))
        self.wfile.write(data)

    def start_of(self, blob: Blob) -> int | None:
        wanted, condition = self.headers.get("range"), self.headers.get("if-range")
        if not blob.ranges or not wanted or (condition and condition != blob.etag):
            return None
        return int(wanted.removeprefix("bytes=").partition("-")[0])

    def headers_of(self, blob: Blob, data: bytes, start: int | None) -> dict[str, str]:
        headers = {"Content-Length": str(len(data)), "Content-Type": blob.kind}
        if blob.etag:
            headers["ETag"] = blob.etag
        if blob.disposition:
            headers["Content-Disposition"] = blob.disposition
        if start is not None:
            headers["Content-Range"] = f"bytes {start}-{len(blob.data) - 1}/{len(blob.data)}"
        return headers

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


# --- faults ----------------------------------------------------------------------------------------------------------

Fault = Callable[[Handler, bytes, int], None]


def status(code: int, **headers: str) -> Fault:
    return lambda handler, data, start: handler.plain(code, {k.replace("_", "-"): v for k, v in headers.items()})


def ends_after(count: int, etag: str = '"v1"') -> Fault:
    """Promises all, and hangs up."""

    def fault(handler: Handler, data: bytes, start: int) -> None:
        headers = {"Content-Length": str(len(data)), "ETag": etag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{start + len(data)}"
        handler.head(206 if start else 200, headers)
        handler.wfile.write(data[:count])
        handler.hang_up()

    return fault


def stops_after(count: int) -> Fault:
    """Promises all, sends some, and then nothing: not even an end."""

    def fault(handler: Handler, data: bytes, start: int) -> None:
        handler.head(200, {"Content-Length": str(len(data)), "ETag": '"v1"'})
        handler.wfile.write(data[:count])
        handler.wfile.flush()
        handler.hub.free.wait(120)
        handler.close_connection = True

    return fault


def drips(handler: Handler, data: bytes, start: int) -> None:
    handler.head(200, {"Content-Length": str(len(data)), "ETag": '"v1"'})
    for byte in data:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        if handler.hub.free.wait(0.05):
            return


def as_if(code: int, body: bytes, **headers: str) -> Fault:
    """Any answer at all."""
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return lambda handler, data, start: handler.plain(code, named, body)


def in_chunks(body: bytes, times: int = 1, ends: bool = True) -> Fault:
    def fault(handler: Handler, data: bytes, start: int) -> None:
        handler.head(200, {"Transfer-Encoding": "chunked"})
        for _ in range(times):
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))
        handler.wfile.write(b"0\r\n\r\n" if ends else b"")
        handler.hang_up() if not ends else handler.wfile.flush()

    return fault


@contextmanager
def hubs(count: int = 1) -> Iterator[list[Hub]]:
    made = [Hub() for _ in range(count)]
    try:
        yield made
    finally:
        for hub in made:
            hub.close()
