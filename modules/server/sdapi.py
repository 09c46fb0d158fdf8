"""A1111's HTTP API, /sdapi/v1: the same addresses, fields and answers, so that its clients work here. Each part is a
file of its own; reading a picture's parameters is here."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from modules.app import App
from modules.generation import infotext
from modules.imaging.decode import ImageError, bytes_from_base64
from modules.imaging.metadata import read_metadata
from modules.server import generate, listing, machine, options
from modules.server.body import read_json
from modules.server.errors import field_error

MOST_PICTURE_JSON = 64 * 2**20  # bytes


def routes(app: App) -> APIRouter:
    router = APIRouter()
    for part in (generate, listing, options, machine):
        part.add_routes(router, app)

    @router.post("/png-info")
    async def png_info(request: Request) -> dict[str, Any]:
        body = await read_json(request, MOST_PICTURE_JSON)
        return await run_in_threadpool(read_picture, body.get("image"))

    return router


def read_picture(text: Any) -> dict[str, Any]:
    """The infotext of a picture, its other texts, and the parameters that it was made with."""
    if not isinstance(text, str) or not text:
        raise field_error("image", text, "must be a picture as base64, or a data URL")
    try:
        found = read_metadata(bytes_from_base64(text))
    except ImageError as error:
        raise field_error("image", None, str(error)) from error
    answer = {"info": found.infotext, "items": found.items, "parameters": infotext.parse(found.infotext)}
    return answer | ({"warnings": list(found.warnings)} if found.warnings else {})
