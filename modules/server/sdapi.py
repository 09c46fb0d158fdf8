"""A1111's HTTP API, /sdapi/v1: the same addresses, fields and answers, so that its clients work here. Each part is a
file of its own."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from modules.app import App
from modules.server import generate, listing, machine, options
from modules.server.body import read_json
from modules.server.png_info import read_picture

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
