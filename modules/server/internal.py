"""A1111's /internal routes, which its page and some of its clients ask: is it there, what waits, how far is a task. A
task is a job of the HTTP API; its id is the one that its client gave it (force_task_id), or is made of the job's."""

import base64
import zlib
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from modules.app import App
from modules.jobs.job import Job
from modules.server import system_info
from modules.server.body import read_json
from modules.server.call import task_key
from modules.server.errors import field_error
from modules.server.fields import FLAG, TEXT, WHOLE, Field, read_fields
from modules.server.generate import CLIENT, as_png
from modules.settings.schema import SETTINGS

_PROGRESS = {
    "id_task": Field(None, TEXT),
    "id_live_preview": Field(-1, WHOLE),
    "live_preview": Field(True, FLAG),
}
_NOTHING: dict[str, Any] = {
    "active": False,
    "queued": False,
    "completed": False,
    "progress": None,
    "eta": None,
    "live_preview": None,
    "id_live_preview": -1,
    "textinfo": None,
}


def routes(app: App) -> APIRouter:
    router = APIRouter()

    @router.get("/ping")
    def ping() -> dict[str, Any]:
        return {}

    @router.get("/pending-tasks")
    def pending_tasks() -> dict[str, Any]:
        tasks = [task_id(id, key) for id, key in app.queue.tasks(CLIENT)]
        return {"size": len(tasks), "tasks": tasks}

    @router.post("/progress")
    async def progress(request: Request) -> dict[str, Any]:
        asked = read_fields(await read_json(request), _PROGRESS)
        if not asked["id_task"]:
            raise field_error("id_task", asked["id_task"], "must be the id of a task")
        return await run_in_threadpool(progress_of, app, asked)

    @router.get("/quicksettings-hint")
    def quicksettings_hint() -> list[dict[str, str]]:
        return [{"name": info.key, "label": info.help.rstrip(".")} for info in SETTINGS.values()]

    system_info.add_routes(router, app)
    return router


def task_id(job: str, key: str | None) -> str:
    return key.removeprefix("task:") if key else f"task({job})"


def _job_of(app: App, id: str) -> Job | None:
    """Of this API's clients only: a job of somebody's page is not found."""
    if id.startswith("task(") and id.endswith(")"):
        try:
            job = app.queue.get(id[5:-1])
        except KeyError:
            return None
        return job if job.client == CLIENT else None
    return app.queue.with_key(task_key(id))


def progress_of(app: App, asked: dict[str, Any]) -> dict[str, Any]:
    job = _job_of(app, asked["id_task"])
    if job is None:
        return _NOTHING | {"textinfo": "Waiting..."}
    if job.ended:
        return _NOTHING | {"completed": True, "textinfo": job.error}
    position = app.queue.position(job)
    if position:
        return _NOTHING | {"queued": True, "textinfo": f"In queue: {position}/{app.queue.waiting()}"}
    now = app.worker.snapshot
    found = _NOTHING | {"active": True, "progress": 0.0, "textinfo": ""}
    if now is None or now.job.id != job.id:
        return found
    found |= {"progress": round(now.fraction, 4), "eta": now.eta_s}
    if now.phase == "loading":
        found["textinfo"] = app.model_status.text
    if asked["live_preview"]:
        app.worker.somebody_polls()
        found |= _preview(now.preview, asked["id_live_preview"])
    return found


def _preview(preview: bytes | None, shown: int) -> dict[str, Any]:
    """Only one that the client does not show already."""
    if preview is None:
        return {}
    number = zlib.crc32(preview)
    if number == shown:
        return {"id_live_preview": number}
    image = base64.b64encode(as_png(preview)).decode("ascii")
    return {"id_live_preview": number, "live_preview": f"data:image/png;base64,{image}"}
