"""The one door: every HTTP, SSE and WebSocket request passes it first, those of Gradio included. It knows no route.

In order: Host, Origin and Sec-Fetch-Site (a foreign page in the user's browser must not reach us), credentials where
some are set, Gradio's open doors, the size and pace of the body. Every answer gets the security headers."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health"})  # says that we are alive, and nothing else; needs no credentials
MOST_BODY = 128 * 2**20  # bytes; routes have smaller limits of their own
BODY_PAUSE_S = 30.0  # between two pieces of a body
TRIES_A_MINUTE = 10  # wrong credentials an address
COOKIE_AGE_S = 30 * 86400

# Inline scripts run only with this answer's nonce (scope["state"]["csp_nonce"] tells it to the page); Gradio makes
# event handlers from text, which is eval.
SCRIPTS = "'self' 'nonce-{nonce}' 'unsafe-eval' blob:"
POLICY = (
    f"default-src 'self'; script-src {SCRIPTS}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
SECURITY_HEADERS: dict[str, str] = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
STRIPPED = ("access-control-", "server", "x-powered-by")  # Gradio reflects any Origin with credentials

GRADIO_PROXY = re.compile(r"(^|/)proxy=", re.IGNORECASE)
GRADIO_REMOTE_FILE = re.compile(r"(^|/)file=\s*([a-z][a-z0-9+.\-]*:|[/\\]{2})", re.IGNORECASE)


class Refusal(Exception):
    def __init__(self, status: int, sentence: str, headers: tuple[tuple[str, str], ...] = ()):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class Gate:
    """Loopback names are always allowed; `hosts` are further names or addresses that the server is reached by. With
    credentials set, any address is allowed, because a foreign page can lend us a name but no cookie."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str] = frozenset(),
        token: str | None = None,
        basic: Mapping[str, str] | None = None,  # user -> password
    ):
        if token is not None and len(token) < 16:
            raise ValueError("the token must have at least 16 characters")
        self.app = app
        self._hosts = frozenset(host.strip("[]").lower() for host in hosts)
        self._token = token
        self._basic = [f"{user}:{password}" for user, password in (basic or {}).items()]
        self._tries = Tries()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)  # lifespan
            return
        try:
            headers = single_headers(scope)
            self._check_host(headers)
            check_origin(scope, headers)
            if self._asks_for_cookie(scope, headers):
                await send_all(Guarded(scope, send), *cookie_page(scope, headers, self._cookie_value()))
                return
            self._check_credentials(scope, headers)
            check_gradio_doors(scope)
            body = Body(receive, headers) if scope["type"] == "http" else None
        except Refusal as refusal:
            await refuse(scope, send, refusal)
            return
        await self._pass_on(scope, body.receive if body else receive, Guarded(scope, send), body)

    async def _pass_on(self, scope: Scope, receive: Receive, send: "Guarded", body: "Body | None") -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if body is None or body.refusal is None:
                send.failure(error)
        if scope["type"] == "http" and not send.started:
            refusal = (body and body.refusal) or Refusal(500, f"internal error {send.id}; the log has the details")
            await refuse(scope, send.send, refusal, send.id if refusal.status == 500 else None)

    # --- host ----------------------------------------------------------------------------------------------------

    def _check_host(self, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        name, _ = split_host(host)
        if name is None or not (is_loopback(name) or name in self._hosts or (self._guarded and is_address(name))):
            raise Refusal(403, f"this server is not reached by the name {host[:80]!r}; start it with --server-name")

    # --- credentials ---------------------------------------------------------------------------------------------

    @property
    def _guarded(self) -> bool:
        return bool(self._token or self._basic)

    def _cookie_value(self) -> str:
        return hashlib.sha256(f"easel cookie {self._token}".encode()).hexdigest()

    def _asks_for_cookie(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        """`/?token=…`: the address that the terminal shows. Right: the browser gets a cookie in its place."""
        if scope["type"] != "http" or scope["method"] != "GET" or not self._token:
            return False
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if "token" not in query:
            return False
        # The access log reads the scope after us: the token must not be written there.
        rest = {key: value for key, value in query.items() if key != "token"}
        scope["query_string"] = urlencode(rest).encode("ascii")
        if self._tries.too_many(scope):
            raise too_many()
        if not equal(query["token"], self._token):
            self._tries.note(scope)
            raise Refusal(401, "the token in the address is not the one of this server; see its terminal")
        return True

    def _check_credentials(self, scope: Scope, headers: Mapping[str, str]) -> None:
        if not self._guarded or scope["path"] in OPEN_PATHS:
            return
        if self._token and equal(read_cookie(headers), self._cookie_value()):
            return
        given = headers.get("authorization")
        if given is not None:
            if self._tries.too_many(scope):
                raise too_many()
            if self._right(given):
                return
            self._tries.note(scope)
        asks = (("www-authenticate", 'Basic realm="Easel", charset="UTF-8"'),) if self._basic else ()
        raise Refusal(401, "this server needs its token: open the address that its terminal shows", asks)

    def _right(self, authorization: str) -> bool:
        kind, _, value = authorization.partition(" ")
        if kind == "Bearer":
            return self._token is not None and equal(value, self._token)
        if kind != "Basic":
            return False
        try:
            pair = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return False
        matches = [equal(pair, known) for known in self._basic]  # all of them: the time must not tell which
        return any(matches)


class Tries:
    """Wrong credentials by address, of the last minute."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, scope: Scope) -> None:
        times = self._times.setdefault(_address(scope), deque(maxlen=TRIES_A_MINUTE))
        times.append(time.monotonic())
        while len(self._times) > 10_000:
            self._times.popitem(last=False)

    def too_many(self, scope: Scope) -> bool:
        times = self._times.get(_address(scope))
        return times is not None and len(times) == TRIES_A_MINUTE and time.monotonic() - times[0] < 60


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def too_many() -> Refusal:
    return Refusal(429, "too many wrong tokens or passwords; wait a minute", (("retry-after", "60"),))


def equal(given: str, known: str) -> bool:
    """In constant time, whatever the lengths."""
    return hmac.compare_digest(hashlib.sha256(given.encode()).digest(), hashlib.sha256(known.encode()).digest())


def read_cookie(headers: Mapping[str, str]) -> str:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    morsel = cookies.get(cookie_name(headers))
    return morsel.value if morsel else ""


def cookie_name(headers: Mapping[str, str]) -> str:
    """Browsers share cookies between ports; two servers of one machine must not."""
    return f"easel_{split_host(headers['host'])[1] or 'default'}"


def cookie_page(scope: Scope, headers: Mapping[str, str], value: str) -> tuple[int, Headers, bytes]:
    """A page that goes on by itself: behind a plain redirect from another site, browsers leave Strict cookies out."""
    query = scope["query_string"].decode("ascii")
    target = "/" + scope["path"].lstrip("/\\") + (f"?{query}" if query else "")
    safe = re.sub(r"[^A-Za-z0-9_\-./?=&%+]", "", target).replace("&", "&amp;")
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    cookie = f"{cookie_name(headers)}={value}; Path=/; Max-Age={COOKIE_AGE_S}; HttpOnly; SameSite=Strict{secure}"
    page = (
        f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={safe}">'
        f'<title>Easel</title><a href="{safe}">Go on</a>'
    )
    kind = (b"content-type", b"text/html; charset=utf-8")
    return 200, [kind, (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")], page.encode()


# --- what a foreign page may not do ----------------------------------------------------------------------------------


def single_headers(scope: Scope) -> dict[str, str]:
    """Headers that decide something must not come twice."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        if name in found and name in ("host", "origin", "authorization", "content-length", "content-encoding"):
            raise Refusal(400, f"the header {name} came twice")
        found[name] = f"{found[name]}; {raw_value.decode('latin-1')}" if name in found else raw_value.decode("latin-1")
    return found


def split_host(host: str) -> tuple[str | None, str]:
    """Name and port of a Host header; the name is None when it is not one."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._\-]+)(?::(\d{1,5}))?", host)
    return (match[1].strip("[]").lower(), match[2] or "") if match else (None, "")


def is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    return name == "localhost" or (is_address(name) and ip_address(name).is_loopback)


def check_origin(scope: Scope, headers: Mapping[str, str]) -> None:
    """Our own pages send our own Origin. Following a link to us from another site is fine, anything else from there is
    not."""
    origin = headers.get("origin")
    if origin is not None:
        try:
            netloc = urlsplit(origin).netloc.lower()
        except ValueError:
            netloc = ""
        if not netloc or _without_default_port(netloc) != _without_default_port(headers["host"].lower()):
            raise Refusal(403, f"requests from pages of {origin[:80]!r} are refused")
    site = headers.get("sec-fetch-site", "none")
    if site not in ("same-origin", "none"):
        follows_link = (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        if not follows_link:
            raise Refusal(403, "requests from pages of other sites are refused")


def _without_default_port(netloc: str) -> str:
    return re.sub(r":(80|443)$", "", netloc)


def check_gradio_doors(scope: Scope) -> None:
    """Gradio fetches any address that is asked of it in the path; nobody needs that here."""
    path = scope["path"]
    if GRADIO_PROXY.search(path) or GRADIO_REMOTE_FILE.search(path):
        raise Refusal(404, "Not Found")


class Body:
    """Counts a body while the app reads it; too large or too slow ends it."""

    def __init__(self, receive: Receive, headers: Mapping[str, str]):
        self._receive = receive
        self._size = 0
        self._whole = False
        self.refusal: Refusal | None = None
        if "content-encoding" in headers and headers["content-encoding"].strip().lower() != "identity":
            raise Refusal(415, "compressed request bodies are not accepted; send it without Content-Encoding")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15:
            raise Refusal(413 if length.isdecimal() else 400, f"Content-Length cannot be {length[:20]!r}")
        if int(length) > MOST_BODY:
            raise body_too_large(MOST_BODY)

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        if self.refusal:
            return {"type": "http.disconnect"}
        try:
            message = await asyncio.wait_for(self._receive(), BODY_PAUSE_S)
        except asyncio.TimeoutError:
            self.refusal = Refusal(408, f"the request's body stopped for {BODY_PAUSE_S:.0f} s")
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._size > MOST_BODY:
                self.refusal, self._whole = body_too_large(MOST_BODY), False
                return {"type": "http.disconnect"}
        return message


def body_too_large(limit: int) -> Refusal:
    return Refusal(413, f"the request's body is larger than {limit // 2**20} MiB", (("connection", "close"),))


# --- answers ---------------------------------------------------------------------------------------------------------


class Guarded:
    """Sends on, with the security headers; remembers whether an answer has begun."""

    def __init__(self, scope: Scope, send: Send):
        self.scope, self.send, self.started = scope, send, False
        self.id = secrets.token_hex(4)
        self._nonce = secrets.token_urlsafe(16)
        scope["state"] = {**scope.get("state", {}), "csp_nonce": self._nonce}

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": guarded_headers(message.get("headers", ()), self._nonce)}
        await self.send(message)

    def failure(self, error: Exception) -> None:
        if getattr(error, "easel_logged", False):
            return
        log.error("error %s in %s %r", self.id, self.scope.get("method", "WS"), self.scope["path"], exc_info=error)


def guarded_headers(headers: Iterable[tuple[bytes, bytes]], nonce: str) -> Headers:
    """A route may set a stricter content security policy of its own; the rest is ours."""
    ours = {name.encode(): value.encode() for name, value in SECURITY_HEADERS.items()}
    kept = [
        (name, value)
        for name, value in ((bytes(name).lower(), bytes(value)) for name, value in headers)
        if name not in ours and not name.decode("latin-1").startswith(STRIPPED)
    ]
    if not any(name == b"content-security-policy" for name, _ in kept):
        kept.append((b"content-security-policy", POLICY.format(nonce=nonce).encode()))
    return [*kept, *ours.items()]


async def refuse(scope: Scope, send: Send, refusal: Refusal, id: str | None = None) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.sentence[:100]})
        return
    body = {"error": refusal.sentence, "detail": refusal.sentence} | ({"id": id} if id else {})
    headers: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers]
    await send_all(Guarded(scope, send), refusal.status, headers, json.dumps(body).encode())


async def send_all(send: Send, status: int, headers: Headers, body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
