"""What stands around Gradio: our own document at "/" (styles and texts inside it, a skeleton until the form is there), our
scripts under /easel/, cache headers, and an allow-list of the few Gradio routes that the page needs; the rest is 404."""

import hashlib
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response

from modules.web import preload
from modules.web.checkpoints import size_of, words_of
from modules.web.text import LANGUAGES, texts

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from modules.app import App

FOLDER = Path(__file__).parent
YEAR = "public, max-age=31536000, immutable"  # for addresses that carry a hash of what they serve
ALLOWED = re.compile(
    r"/assets/[\w.-]+|/static/(fonts|img)/[\w./-]+|/theme\.css|/config|/favicon\.ico|"
    r"/gradio_api/(run/predict|queue/join|queue/data|heartbeat/\w+|startup-events|cancel|reset|info)/?"
)


class Shell:
    """ASGI app in front of the mounted Gradio app."""

    def __init__(self, gradio: "ASGIApp", app: "App") -> None:
        self.gradio = gradio
        self.app = app
        self.version = scripts_version()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return await PlainTextResponse("not found", 404)(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if path == "/" and scope["method"] in ("GET", "HEAD"):
            response = await self.document(scope, receive)
        elif path.startswith("/easel/"):
            response = self.script(path)
        elif ALLOWED.fullmatch(path):
            return await self.gradio(scope, receive, cached(send) if path.startswith("/assets/") else send)
        else:
            response = PlainTextResponse("not found", 404)
        await response(scope, receive, send)

    async def document(self, scope: "Scope", receive: "Receive") -> Response:
        """Gradio's own document gives its configuration and the names of its entry files; the rest is ours."""
        status, body = await answer_of(self.gradio, {**scope, "method": "GET"}, receive)
        if status != 200:
            return HTMLResponse(body, status)
        nonce = scope.get("state", {}).get("csp_nonce", "")
        page = compose(gradio_parts(body), self.page_data(), self.version, nonce)
        return HTMLResponse(page, headers={"Cache-Control": "no-store"})

    def page_data(self) -> dict[str, Any]:
        return {
            "texts": {language: texts(language) for language in LANGUAGES},
            "checkpoints": {
                one.name: {"size": size_of(one), "words": words_of(one)} for one in self.app.library.usable()
            },
        }

    def script(self, path: str) -> Response:
        """/easel/<version>/<file>.js: one of the files of js/, by its name alone."""
        found = re.fullmatch(r"/easel/\w+/(\w+\.js)", path)
        if not found or found[1] not in script_names():
            return PlainTextResponse("not found", 404)
        return FileResponse(FOLDER / "js" / found[1], media_type="text/javascript", headers={"Cache-Control": YEAR})


def cached(send: "Send") -> "Send":
    """Gradio's assets have a hash in their names, yet come without a cache header."""

    async def send_cached(message: "Message") -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            headers = [pair for pair in message["headers"] if pair[0].lower() != b"cache-control"]
            message = {**message, "headers": [*headers, (b"cache-control", YEAR.encode())]}
        await send(message)

    return send_cached


async def answer_of(app: "ASGIApp", scope: "Scope", receive: "Receive") -> tuple[int, str]:
    status = 500
    body = bytearray()

    async def keep(message: "Message") -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))

    headers = [pair for pair in scope["headers"] if pair[0] not in (b"accept-encoding", b"if-none-match")]
    await app({**scope, "headers": headers}, receive, keep)
    return status, body.decode()


@dataclass(frozen=True)
class GradioParts:
    config: str  # a script that sets window.gradio_config
    entry: str  # address of the module that starts everything
    styles: str  # address of its style sheet


def gradio_parts(document: str) -> GradioParts:
    config = re.search(r"<script[^>]*>\s*(window\.gradio_config = .*?)</script>", document, re.S)
    entry = re.search(r'<script type="module"[^>]* src="\./(assets/[^"]+)"', document)
    styles = re.search(r'<link rel="stylesheet"[^>]* href="\./(assets/[^"]+)"', document)
    if not (config and entry and styles):
        raise RuntimeError("Gradio's document has changed: its configuration or entry files were not found in it")
    return GradioParts(config[1], entry[1], styles[1])


def compose(gradio: GradioParts, data: dict[str, Any], version: str, nonce: str) -> str:
    """Fills html/index.html. Its places are named like ‹this›, so that no brace of script or style is mistaken for one."""
    filled = {
        "nonce": f'nonce="{html.escape(nonce)}"' if nonce else "",
        "styles": stylesheet(),
        "config": gradio.config,
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),  # it stands inside a script element
        "entry": gradio.entry,
        "entry_styles": gradio.styles,
        "version": version,
        "preload": "\n".join(preload_links(version)),
        "templates": templates(),
    }
    return re.sub(r"‹(\w+)›", lambda place: filled[place[1]], (FOLDER / "html" / "index.html").read_text("utf-8"))


def preload_links(version: str) -> Iterator[str]:
    for name in script_names():
        yield f'<link rel="modulepreload" href="easel/{version}/{name}">'
    for name in preload.assets():
        if name.endswith(".css"):
            yield f'<link rel="preload" as="style" crossorigin href="assets/{name}">'
        else:
            yield f'<link rel="modulepreload" crossorigin href="assets/{name}">'


@cache
def script_names() -> tuple[str, ...]:
    return tuple(sorted(file.name for file in (FOLDER / "js").glob("*.js")))


def scripts_version() -> str:
    """Changes with any script, so that browsers may keep them for ever."""
    digest = hashlib.sha256()
    for name in script_names():
        digest.update((FOLDER / "js" / name).read_bytes())
    return digest.hexdigest()[:12]


@cache
def stylesheet() -> str:
    return "\n".join(file.read_text("utf-8") for file in sorted((FOLDER / "css").glob("*.css")))


@cache
def templates() -> str:
    files = (file for file in sorted((FOLDER / "html").glob("*.html")) if file.stem != "index")
    return "\n".join(f'<template id="template-{file.stem}">{file.read_text("utf-8")}</template>' for file in files)
