"""What stands around Gradio: our own document at "/" (styles and texts inside it, a skeleton until the form is there),
our scripts and Gradio's out of memory and for ever, and an allow-list of the few Gradio routes that the page needs;
the rest is 404."""

import hashlib
import html
import json
import mimetypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from modules.settings.schema import SETTINGS
from modules.web import preload
from modules.web.checkpoints import facts_of
from modules.web.choices import selected
from modules.web.text import LANGUAGES, texts

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from modules.app import App

FOLDER = Path(__file__).parent
YEAR = "public, max-age=31536000, immutable"  # for addresses that carry a hash of what they serve
# Scripts that tabs ask for when they are opened.
LATER = (
    "browser.js",
    "canvas.js",
    "downloads.js",
    "foreign.js",
    "img2img.js",
    "inputs.js",
    "merger.js",
    "model_details.js",
    "model_use.js",
    "png_info.js",
    "sending.js",
    "strokes.js",
    "system_info.js",
)
SCRIPT_SETTINGS = ("canvas_", "send_", "extra_networks_")  # settings that the page's script reads
MOST_HOSTS = 16  # names of this server whose document is kept
ALLOWED = re.compile(
    r"/theme\.css|/config|/gradio_api/(run/predict|queue/join|queue/data|heartbeat/\w+|startup-events|app_id|cancel|reset)/?"
)


class Shell:
    """ASGI app in front of the mounted Gradio app."""

    def __init__(self, gradio: "ASGIApp", app: "App", forms: dict[str, Any]) -> None:
        """`forms`: by tab, where each box is and what it begins with."""
        self.gradio = gradio
        self.app = app
        self.forms = forms
        self._parts: dict[bytes, GradioParts] = {}  # by Host: Gradio writes its own address into its configuration

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return await PlainTextResponse("not found", 404)(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if path == "/" and scope["method"] in ("GET", "HEAD"):
            response = await self.document(scope, receive)
        elif path.startswith(("/easel/", "/assets/")):
            response = static(path)
        elif ALLOWED.fullmatch(path):
            return await self.gradio(scope, receive, send)
        elif path.startswith(("/sdapi/", "/internal/", "/sd_extra_networks/", "/api/")):  # their clients read JSON
            response = JSONResponse({"detail": "Not Found"}, 404)
        else:
            response = PlainTextResponse("not found", 404)
        await response(scope, receive, send)

    async def document(self, scope: "Scope", receive: "Receive") -> Response:
        """Gradio's own document gives its configuration and the names of its entry files; the rest is ours."""
        host = dict(scope["headers"]).get(b"host", b"") + scope["scheme"].encode()
        if host not in self._parts:
            if len(self._parts) >= MOST_HOSTS:
                self._parts.clear()
            self._parts[host] = gradio_parts(await answer_of(self.gradio, scope, receive))
        nonce = scope.get("state", {}).get("csp_nonce", "")
        page = compose(self._parts[host], self.page_data(), nonce)
        return HTMLResponse(page, headers={"Cache-Control": "no-store"})

    def page_data(self) -> dict[str, Any]:
        current = selected(self.app)
        settings = self.app.settings.current
        return {
            "selected": current.title if current else "",
            "texts": {language: texts(language) for language in LANGUAGES},
            "checkpoints": {one.name: facts_of(one) for one in self.app.library.usable()},
            "forms": self.forms,
            "settings": {key: getattr(settings, key) for key in SETTINGS if key.startswith(SCRIPT_SETTINGS)},
        }


def static(path: str) -> Response:
    """/easel/<version>/<name>.js: a file of js/; /assets/<name>: one of Gradio's. By name alone, so nothing else."""
    found = re.fullmatch(r"/easel/\w+/(\w+\.js)|/assets/([\w.-]+)", path)
    file = found and (FOLDER / "js" / found[1] if found[1] else preload.ASSETS / found[2])
    content = _read(file) if file else None
    if file is None or content is None:
        return PlainTextResponse("not found", 404)
    return Response(content, media_type=mimetypes.types_map.get(file.suffix), headers={"Cache-Control": YEAR})


@cache
def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.name in _names(file.parent) else None


@cache
def _names(folder: Path) -> frozenset[str]:
    return frozenset(one.name for one in folder.iterdir() if one.is_file())


async def answer_of(app: "ASGIApp", scope: "Scope", receive: "Receive") -> str:
    """What the app answers to this as a GET. Raises RuntimeError for anything but a 200."""
    status = 500
    body = bytearray()

    async def keep(message: "Message") -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))

    headers = [pair for pair in scope["headers"] if pair[0] not in (b"accept-encoding", b"if-none-match")]
    await app({**scope, "method": "GET", "headers": headers}, receive, keep)
    if status != 200:
        raise RuntimeError(f"Gradio answered {status} for its document")
    return body.decode()


@dataclass(frozen=True)
class GradioParts:
    config: str  # scripts that set window.gradio_config and window.gradio_api_info
    theme: str  # hash of its theme
    entry: str  # address of the module that starts everything
    styles: str  # address of its style sheet


def gradio_parts(document: str) -> GradioParts:
    settings = re.findall(r"<script[^>]*>\s*(window\.gradio_(?:config|api_info) = .*?)</script>", document, re.S)
    theme = re.search(r'"theme_hash":\s*"(\w+)"', document)
    entry = re.search(r'<script type="module"[^>]* src="\./(assets/[^"]+)"', document)
    styles = re.search(r'<link rel="stylesheet"[^>]* href="\./(assets/[^"]+)"', document)
    if not (len(settings) == 2 and theme and entry and styles):
        raise RuntimeError("Gradio's document has changed: its configuration or entry files were not found in it")
    return GradioParts("\n".join(settings), theme[1], entry[1], styles[1])


def compose(gradio: GradioParts, data: dict[str, Any], nonce: str) -> str:
    """Fills html/index.html. Its places are named like ‹this›, so that no brace of a script is mistaken for one."""
    filled = {
        "nonce": f'nonce="{html.escape(nonce)}"' if nonce else "",
        "styles": stylesheet(),
        "config": gradio.config,
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),  # it stands inside a script element
        "theme": gradio.theme,
        "entry": gradio.entry,
        "entry_styles": gradio.styles,
        "version": scripts_version(),
        "preload": preload_links(),
        "templates": templates(),
    }
    return re.sub(r"‹(\w+)›", lambda place: filled[place[1]], frame())


@cache
def frame() -> str:
    return (FOLDER / "html" / "index.html").read_text("utf-8")


@cache
def preload_links() -> str:
    return "\n".join(_preload_links())


def _preload_links() -> Iterator[str]:
    for name in preload.assets():
        if name.endswith(".css"):
            yield f'<link rel="preload" as="style" crossorigin href="assets/{name}">'
        else:
            yield f'<link rel="modulepreload" crossorigin href="assets/{name}">'
    for name in script_names():
        if name in LATER:
            continue
        yield f'<link rel="modulepreload" href="easel/{scripts_version()}/{name}">'


@cache
def script_names() -> tuple[str, ...]:
    return tuple(sorted(file.name for file in (FOLDER / "js").glob("*.js")))


@cache
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
