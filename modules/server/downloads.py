"""/api/v1/downloads: models from Civitai, Hugging Face or any https link, when somebody asks. Off for other machines
unless the user allows it, for whoever asks makes this machine fetch."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from modules.app import App
from modules.library.downloads.errors import DownloadError
from modules.library.downloads.running import UnknownDownload
from modules.library.downloads.sources import Choice, Found
from modules.runtime.flags import host_of
from modules.runtime.listening import is_exposed
from modules.server.body import read_json
from modules.server.errors import ApiError, field_error

Answer = TypeVar("Answer")
MOST_NAME = 300  # characters


def add_routes(router: APIRouter, app: App) -> None:
    def allowed() -> None:
        if why := why_not(app):
            raise ApiError(403, why)

    @router.get("/downloads")
    def listed() -> dict[str, Any]:
        """All that this process knows of, the newest first; whether more may be asked for, and which keys are set."""
        why = why_not(app)
        return {
            "enabled": not why,
            "reason": why or None,
            "keys": app.tokens.held(),
            "kinds": {kind: folder.name for kind, folder in app.downloads.folders().items()},
            "downloads": [] if why else [one.as_dict() for one in app.downloads.list()],
        }

    @router.post("/downloads/resolve")
    async def resolve(request: Request) -> dict[str, Any]:
        """What it is, and what of it there is to choose from; nothing of a model is fetched yet."""
        allowed()
        asked = texts(await read_json(request), {"what": 4096, "file": 500})
        found = await run_in_threadpool(said, lambda: app.downloads.resolve(needed(asked, "what"), asked.get("file")))
        return described(app, found)

    @router.get("/downloads/preview")
    def preview(what: str) -> Response:
        """The picture of what was resolved just now."""
        allowed()
        found = app.downloads.known(what)
        picture = app.downloads.preview(found) if found else None
        if picture is None:
            raise ApiError(404, "there is no picture of it")
        headers = {"cache-control": "private, max-age=600", "content-security-policy": "default-src 'none'; sandbox"}
        return Response(picture, media_type="image/png", headers=headers)

    @router.post("/downloads")
    async def start(request: Request) -> JSONResponse:
        allowed()
        asked = texts(await read_json(request), {"what": 4096, "file": 500, "kind": 40, "name": MOST_NAME})

        def begin() -> dict[str, Any]:
            what, more = needed(asked, "what"), (asked.get("file"), asked.get("kind"), asked.get("name"))
            return app.downloads.start(what, *more).as_dict()

        return JSONResponse(await run_in_threadpool(said, begin), 202)

    @router.get("/downloads/{id}")
    def one(id: str) -> dict[str, Any]:
        allowed()
        return said(lambda: app.downloads.get(id).as_dict())

    @router.post("/downloads/{id}/{action}")
    async def act(id: str, action: str, request: Request) -> dict[str, Any]:
        allowed()
        body = await read_json(request)
        keep = body.get("keep", False)
        if set(body) - {"keep"} or not isinstance(keep, bool):
            raise field_error("keep", keep, "must be true or false, and is all that can be said")
        actions: dict[str, Callable[[], Any]] = {
            "pause": lambda: app.downloads.pause(id),
            "resume": lambda: app.downloads.resume(id),
            "cancel": lambda: app.downloads.cancel(id, keep),
        }
        if action not in actions:
            raise ApiError(404, "a download can be asked to pause, resume or cancel")
        return await run_in_threadpool(said, lambda: actions[action]().as_dict())


def why_not(app: App) -> str:
    """Why nobody may ask for a download; "" where they may."""
    if is_exposed(host_of(app.flags)) and not app.flags.enable_downloads:
        return (
            "downloads are off while other machines can reach this server; start it with --enable-downloads to let "
            "everybody who may come in ask for them"
        )
    return ""


def said(ask: Callable[[], Answer]) -> Answer:
    """The refusals of downloads in HTTP's words."""
    try:
        return ask()
    except UnknownDownload:
        raise ApiError(404, "there is no such download; it may be too old") from None
    except DownloadError as error:
        status = 502 if error.again else 422
        detail = [
            {"message": error.sentence, "msg": error.sentence, "loc": ["body", "what"], "asks_for": error.asks_for}
        ]
        raise ApiError(status, error.sentence, detail) from None


def described(app: App, found: Found) -> dict[str, Any]:
    return {
        "what": found.what,
        "source": found.source,
        "title": found.title,
        "version": found.version,
        "versions": [{"what": what, "name": name} for what, name in found.versions],
        "kind": found.kind,
        "family": found.family,
        "base_model": found.base_model,
        "words": list(found.words),
        "page": found.page,
        "has_preview": bool(found.preview),
        "licence": list(found.licence),
        "notes": list(found.notes),
        "description": found.description,
        "choices": [_choice(app, found, choice) for choice in found.choices],
        "chosen": found.chosen,
    }


def _choice(app: App, found: Found, choice: Choice) -> dict[str, Any]:
    kind = app.downloads.kind_of(found, choice)
    folder = app.downloads.folders().get(kind)
    return {
        "id": choice.id,
        "name": choice.name,
        "label": choice.label,
        "size": choice.size,
        "sha256": choice.files[0].sha256 if len(choice.files) == 1 else None,
        "files": len(choice.files),
        "kind": kind,
        "folder": folder.name if folder else None,
        "pickled": choice.is_pickled,
        "refused": choice.refused or None,
    }


def texts(body: dict[str, Any], limits: dict[str, int]) -> dict[str, str]:
    """The fields that are given; what is empty is not given."""
    for name, value in body.items():
        if name not in limits:
            raise field_error(name[:80], None, f"there is no such field; there are {', '.join(limits)}")
        if value is not None and (not isinstance(value, str) or len(value) > limits[name]):
            raise field_error(name, None, f"must be text of at most {limits[name]} characters")
    return {name: value for name, value in body.items() if value}


def needed(asked: dict[str, str], name: str) -> str:
    if name not in asked:
        raise field_error(name, None, "must say what to fetch: a link, an AIR, civitai:123@456 or hf:owner/name")
    return asked[name]
