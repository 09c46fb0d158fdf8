"""A1111's settings over HTTP: GET and POST /sdapi/v1/options."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from modules.app import App
from modules.jobs.queue import NoCheckpoint, choose_checkpoint
from modules.server.body import read_json
from modules.server.errors import ApiError, field_error, shown
from modules.server.names import check_vae
from modules.settings.schema import SETTINGS, is_protected, refuse_protected


def add_routes(router: APIRouter, app: App) -> None:
    @router.get("/options")
    def options() -> dict[str, Any]:
        """Without keys of the user's, which can be set here and never read: a client that sends back all that it got
        changes none of them. The checkpoint is the one in use, as A1111 tells it, also where nobody has chosen any."""
        return app.settings.current.told() | _in_use(app)

    @router.post("/options")
    async def set_options(request: Request) -> JSONResponse:
        body = await read_json(request)
        warnings = await run_in_threadpool(change_settings, app, body)
        return JSONResponse({"warnings": warnings} if warnings else None)


def change_settings(app: App, body: dict[str, Any]) -> list[str]:
    """All or nothing; keys that we do not have become warnings. Clients of A1111 read all settings, change one and send
    all of them back: what cannot be set over HTTP may come as it is."""
    now = app.settings.current.told()
    body = {key: value for key, value in body.items() if not (is_protected(key) and value == now.get(key, ...))}
    refuse_protected(body)
    unknown = [key for key in body if key not in SETTINGS]
    known = {key: value for key, value in body.items() if key in SETTINGS}
    if wanted := known.get("sd_model_checkpoint"):
        if not isinstance(wanted, str):
            raise field_error("sd_model_checkpoint", wanted, "must be text")
        known["sd_model_checkpoint"] = choose_checkpoint(app.library, wanted).title
    check_vae(app, known.get("sd_vae"), "sd_vae")
    if unknown and not known:
        raise ApiError(422, f"there is no setting {shown(unknown[0])}")
    app.settings.update(known)
    if wanted:
        app.worker.reload()
    return [f"unknown setting {shown(key)}" for key in unknown]


def _in_use(app: App) -> dict[str, str]:
    try:
        checkpoint = app.current_checkpoint()
    except NoCheckpoint:
        return {}
    return {"sd_model_checkpoint": checkpoint.title, "sd_checkpoint_hash": checkpoint.sha256 or ""}
