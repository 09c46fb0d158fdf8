"""/api/v1/merges: merging checkpoints, as the tab Checkpoint Merger does."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from modules.app import App
from modules.jobs.merges import AlreadyThere, Merge, MergeRefused, MergeRequest, NotThere, TooMany
from modules.server.body import read_json
from modules.server.errors import ApiError, entry

STATUS: dict[type[MergeRefused], int] = {MergeRefused: 422, NotThere: 404, AlreadyThere: 409, TooMany: 429}


def add_routes(router: APIRouter, app: App) -> None:
    def merge_of(id: str) -> Merge:
        try:
            return app.merges.get(id)
        except KeyError:
            raise ApiError(404, "there is no such merge; they are forgotten when the program ends") from None

    @router.post("/merges")
    async def begin(request: Request) -> JSONResponse:
        wanted = MergeRequest.model_validate(await read_json(request))
        try:
            merge = await run_in_threadpool(app.merges.submit, wanted)
        except MergeRefused as error:
            detail = [entry(error.field, getattr(wanted, error.field), str(error))]
            raise ApiError(STATUS[type(error)], str(error), detail) from error
        return JSONResponse(described(merge), 202)

    @router.get("/merges/{id}")
    def one(id: str) -> dict[str, Any]:
        return described(merge_of(id))

    @router.post("/merges/{id}/cancel")
    def cancel(id: str) -> dict[str, Any]:
        return described(app.merges.cancel(merge_of(id).id))


def described(merge: Merge) -> dict[str, Any]:
    return {"id": merge.id, **merge.described()}
