"""The gate over a real uvicorn: what foreign pages, names, tokens and bodies meet."""

import asyncio
import base64
import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.server import gate as gates
from modules.server.gate import SECURITY_HEADERS, Gate, is_loopback, split_host
from tests.server.served import Served

TOKEN = "a-token-of-more-than-sixteen-characters"


async def echo(scope, receive, send):
    """Stands behind the gate: reads the body, tells its size, and sends what Gradio would."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})
        return
    if scope["path"] == "/raises":
        raise RuntimeError("a secret of the inside")
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    headers = [
        (b"access-control-allow-origin", b"https://evil.example"),
        (b"server", b"gradio"),
        (b"x-frame-options", b"ALLOW"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    body = json.dumps({"path": scope["path"], "query": scope["query_string"].decode(), "size": size}).encode()
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    """One server without credentials, for the tests that leave nothing behind."""
    served = Served(Gate(echo))
    yield served
    served.close()


def raw(port: int, text: str) -> bytes:
    """The answer to exactly these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=90) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode("latin-1"))
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "[::1]", "LOCALHOST", "localhost:{port}"])
def test_names_of_this_machine_are_let_in(plain, host):
    served = plain
    assert served.http.get("/", headers={"host": host.format(port=served.port)}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7860", "localhost.", "127.1", "0x7f.1", "localhost.evil.example", "127.0.0.1@evil",
     "192.168.1.5", "10.0.0.1", "", "localhost:99999999", "[::1", "local host", "127.0.0.1.nip.io"],
)  # fmt: skip
def test_other_names_are_refused_before_any_route(plain, host):
    served = plain
    answer = served.http.get("/", headers={"host": host})
    assert answer.status_code in (400, 403)
    assert "path" not in answer.text


def test_a_host_that_the_server_was_started_for_is_let_in_and_rebinding_is_not(serve):
    served = serve(asgi=echo, hosts=frozenset({"My.Server"}))
    assert served.http.get("/", headers={"host": "my.server:80"}).status_code == 200
    rebound = {"host": "evil.example", "origin": "http://evil.example"}
    assert served.http.get("/", headers=rebound).status_code == 403


def test_no_host_and_two_hosts_are_refused(plain):
    served = plain
    assert b" 403 " in raw(served.port, "GET / HTTP/1.0\n\n").splitlines()[0]
    assert (
        b" 400 "
        in raw(served.port, "GET / HTTP/1.1\nHost: localhost\nHost: evil.example\nConnection: close\n\n").splitlines()[
            0
        ]
    )


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1", "file://", "http://[", "garbage"],
)
def test_foreign_origins_are_refused_with_every_method_and_get_no_permission(plain, method, origin):
    served = plain
    answer = served.http.request(method, "/gradio_api/upload", headers={"origin": origin})
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_our_own_pages_are_let_in_and_nothing_of_cors_comes_back(plain):
    served = plain
    own = {"origin": f"http://127.0.0.1:{served.port}", "sec-fetch-site": "same-origin"}
    answer = served.http.post("/x", headers=own)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_what_other_sites_embed_is_refused_even_as_get(plain, site):
    served = plain
    image = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    frame = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert served.http.get("/", headers=image).status_code == 403
    assert served.http.get("/", headers=frame).status_code == 403
    assert served.http.post("/", headers=link).status_code == 403
    assert served.http.get("/", headers=link).status_code == 200


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ([(b"host", b"localhost"), (b"origin", b"http://localhost")], "websocket.accept"),
        ([(b"host", b"evil.example")], "websocket.close"),
        ([(b"host", b"localhost"), (b"origin", b"https://evil.example")], "websocket.close"),
        ([(b"host", b"localhost"), (b"origin", b"null")], "websocket.close"),
    ],
)
def test_websockets_meet_the_same_gate(headers, answer):
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/ws", "query_string": b"", "headers": headers}
    asyncio.run(Gate(echo)(scope, receive, send))
    assert sent[0]["type"] == answer


@pytest.mark.parametrize("path", ["/", "/raises", "/gradio_api/file=https://example.com/x"])
@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_every_answer_carries_the_security_headers(plain, path, host):
    served = plain
    answer = served.http.get(path, headers={"host": host})
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers.get_list(name) == [value]
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert "server" not in answer.headers or answer.headers["server"] == "uvicorn"


def test_every_answer_has_a_nonce_of_its_own_that_the_page_can_read(serve):
    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["state"]["csp_nonce"].encode()})

    served = serve(asgi=page)
    first, second = served.http.get("/"), served.http.get("/")
    assert first.text != second.text and len(first.text) >= 16
    assert f"'nonce-{first.text}'" in first.headers["content-security-policy"]


def test_an_error_inside_is_an_id_and_no_more(plain, caplog):
    served = plain
    answer = served.http.get("/raises")
    assert answer.status_code == 500
    id = answer.json()["id"]
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert any(id in record.getMessage() and record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=https://example.com/x", "/file=http://169.254.169.254/", "/gradio_api/proxy=http://x/",
     "/proxy=x", "/gradio_api/file=file:///etc/passwd", "/gradio_api/file=//host/share",
     "/gradio_api/file%3Dhttps%3A//example.com"],
)  # fmt: skip
def test_gradios_open_doors_are_shut(plain, path):
    assert plain.http.get(path).status_code == 404


# --- bodies ----------------------------------------------------------------------------------------------------------


def test_a_body_that_says_it_is_huge_is_refused_unread(plain):
    served = plain
    head = "POST / HTTP/1.1\nHost: localhost\nConnection: close\nContent-Length: {}\n\n"
    assert b" 413 " in raw(served.port, head.format(10**12)).splitlines()[0]
    assert b" 400 " in raw(served.port, head.format("-1")).splitlines()[0]


def test_a_body_without_end_is_cut(serve, monkeypatch):
    monkeypatch.setattr(gates, "MOST_BODY", 100_000)
    served = serve(asgi=echo)
    sent = 0

    def endless():
        nonlocal sent
        while True:
            sent += 10_000
            yield b"x" * 10_000

    try:
        assert served.http.post("/", content=endless()).status_code == 413
    except (httpx.WriteError, httpx.ReadError):
        pass  # the connection was closed under the flood
    assert sent < 50_000_000
    assert served.http.post("/", content=b"x" * 100_000).json()["size"] == 100_000


def test_a_body_that_stops_is_not_waited_for(serve, monkeypatch):
    monkeypatch.setattr(gates, "BODY_PAUSE_S", 0.05)
    served = serve(asgi=echo)
    head = "POST / HTTP/1.1\nHost: localhost\nConnection: close\nContent-Length: 100\n\nx"
    assert b" 408 " in raw(served.port, head).splitlines()[0]


def test_compressed_bodies_are_refused(plain):
    served = plain
    assert served.http.post("/", headers={"content-encoding": "gzip"}, content=b"x").status_code == 415


# --- credentials -----------------------------------------------------------------------------------------------------


def test_without_the_token_nothing_but_health_answers(serve):
    served = serve(asgi=echo, token=TOKEN)
    for path in (
        "/",
        "/api/v1/jobs",
        "/api/v1/models",
        "/internal/sysinfo",
        "/gradio_api/upload",
        "/assets/x.js",
        "/no",
    ):
        answer = served.http.post(path)
        assert answer.status_code == 401 and "path" not in answer.text
    assert served.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer null", "Bearer undefined", f"bearer {TOKEN}", f"Bearer {TOKEN} ",
     f"Bearer  {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Basic %%%",
     "Basic " + base64.b64encode(f"x:{TOKEN}".encode()).decode(),
     "Bearer " + "x" * 10_000],
)  # fmt: skip
def test_wrong_credentials_are_refused(serve, authorization):
    served = serve(asgi=echo, token=TOKEN)
    request = "GET / HTTP/1.1\nHost: localhost\nConnection: close\nAuthorization: " + authorization.rstrip() + "\n\n"
    if authorization == f"Bearer {TOKEN} ":
        return  # HTTP itself takes away the space at the end of a header
    assert b" 401 " in raw(served.port, request).splitlines()[0]


def test_two_authorization_headers_are_refused(serve):
    served = serve(asgi=echo, token=TOKEN)
    headers = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer other")]
    assert served.http.get("/", headers=headers).status_code == 400


def test_the_right_token_opens_as_header_and_as_the_cookie_of_the_printed_address(serve):
    served = serve(asgi=echo, token=TOKEN)
    assert served.http.get("/x", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    answer = served.http.get("/", params={"token": TOKEN, "__theme": "dark"})
    assert answer.status_code == 200 and TOKEN not in answer.text and "/?__theme=dark" in answer.text
    cookie = answer.headers["set-cookie"]
    assert TOKEN not in cookie
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/"))
    assert served.http.get("/x").json()["path"] == "/x"  # the client keeps the cookie
    with httpx.Client(base_url=served.http.base_url, trust_env=False) as other:
        assert other.get("/x").status_code == 401
        assert other.get("/x", headers={"cookie": f"easel_{served.port}={TOKEN}"}).status_code == 401


def test_the_tokens_page_leads_to_ourselves_only(serve):
    served = serve(asgi=echo, token=TOKEN)
    request = f"GET //evil.example/%22%3E%3Cscript%3E?token={TOKEN} HTTP/1.1\nHost: localhost\nConnection: close\n\n"
    page = raw(served.port, request).decode()
    assert "Easel" in page and "<script" not in page
    assert "//evil" not in page and 'content="0;url=/' in page


def test_the_token_reaches_neither_the_app_nor_the_log(serve):
    served = serve(asgi=echo, token=TOKEN)
    wrong = served.http.get("/", params={"token": "wrong-token-wrong"})
    assert wrong.status_code == 401 and "wrong-token" not in wrong.text


def test_passwords_work_as_basic_and_ask_for_themselves(serve):
    served = serve(asgi=echo, basic={"ann": "secret", "bob": "other"})
    assert served.http.get("/").headers["www-authenticate"].startswith("Basic")
    assert served.http.get("/", auth=("ann", "secret")).status_code == 200
    assert served.http.get("/", auth=("bob", "other")).status_code == 200
    assert served.http.get("/", auth=("ann", "other")).status_code == 401


def test_guessing_is_slowed_down_but_who_is_in_stays_in(serve):
    served = serve(asgi=echo, token=TOKEN, basic={"ann": "secret"})
    served.http.get("/", params={"token": TOKEN})
    with httpx.Client(base_url=served.http.base_url, trust_env=False) as guesser:
        codes = [guesser.get("/", auth=("ann", str(number))).status_code for number in range(12)]
        assert codes == [401] * 10 + [429] * 2
        assert guesser.get("/", auth=("ann", "secret")).status_code == 429
    assert served.http.get("/").status_code == 200


def test_an_address_needs_credentials_to_be_let_in_beyond_this_machine(serve):
    served = serve(asgi=echo, token=TOKEN)
    asks = {"authorization": f"Bearer {TOKEN}"}
    assert served.http.get("/", headers={"host": "192.168.1.5:7860", **asks}).status_code == 200
    assert served.http.get("/", headers={"host": "evil.example", **asks}).status_code == 403


def test_a_short_token_is_refused_at_once():
    with pytest.raises(ValueError, match="16 characters"):
        Gate(echo, token="short")


@given(st.text(max_size=60))
def test_no_text_is_taken_for_this_machine_by_mistake(host):
    name, _ = split_host(host)
    if name is not None and is_loopback(name):
        assert name in ("localhost", "::1") or name.startswith(("127.", "::ffff:127.", "0:", "0000", "::"))
