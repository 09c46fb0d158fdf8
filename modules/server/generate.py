"""The routes of /sdapi/v1 that make pictures: txt2img and img2img wait for their job's end; interrupt, skip and
progress speak of the one that runs."""

import asyncio
import base64
import io
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from PIL import Image

from modules.app import App
from modules.jobs.worker import Snapshot
from modules.server import img2img, txt2img
from modules.server.answer import answer_of
from modules.server.body import read_json
from modules.server.call import Call
from modules.server.errors import ApiError
from modules.server.fields import IMG2IMG, TXT2IMG, described
from modules.server.names import check_names
from modules.server.options import change_settings

CLIENT = "sdapi"
MOST_PICTURE_JSON = 64 * 2**20  # bytes
DECODED_AT_ONCE = 2  # requests; a large picture takes 250 MB while it is decoded


def add_routes(router: APIRouter, app: App) -> None:
    decoding = asyncio.Semaphore(DECODED_AT_ONCE)

    @router.post("/txt2img", openapi_extra=described(TXT2IMG))
    async def from_text(request: Request) -> JSONResponse:
        body = await read_json(request)
        return await _make(app, await run_in_threadpool(txt2img.understand, body, app.settings.current, app.styles))

    @router.post("/img2img", openapi_extra=described(IMG2IMG))
    async def from_images(request: Request) -> JSONResponse:
        body = await read_json(request, MOST_PICTURE_JSON)
        async with decoding:
            call = await run_in_threadpool(img2img.understand, body, app.settings.current, app.inputs.put, app.styles)
        return await _make(app, call)

    @router.post("/interrupt")
    def interrupt() -> dict[str, Any]:
        """Ends the job that runs now, and only that."""
        if run := app.queue.running:
            app.queue.interrupt(run.job.id)
        return {}

    @router.post("/skip")
    def skip() -> None:
        if run := app.queue.running:
            app.queue.skip(run.job.id)

    @router.get("/progress")
    def progress(skip_current_image: bool = False) -> dict[str, Any]:
        if not skip_current_image:
            app.worker.somebody_polls()
        return progress_of(app, app.worker.snapshot, not skip_current_image)


async def _make(app: App, call: Call) -> JSONResponse:
    id = await run_in_threadpool(_submit, app, call)
    await ended(app, id)
    return await run_in_threadpool(lambda: answer_of(app, call, app.queue.get(id)))


def _submit(app: App, call: Call) -> str:
    check_names(app, call)
    job = app.queue.submit(call.request, app.settings.current, "api", CLIENT, call.key)
    if call.lasting:
        call.warnings.extend(change_settings(app, call.lasting))
    return job.id


async def ended(app: App, id: str) -> None:
    """Waits for the job's end. A client that goes away meanwhile loses nothing: the job goes on."""
    with app.events.subscribe(job=id) as subscription:
        while not (await run_in_threadpool(app.queue.get, id)).ended:
            try:
                if await subscription.get(timeout_s=5.0) is None:
                    raise ApiError(503, "the server ends now; the job is kept and goes on at the next start")
            except TimeoutError:
                continue  # looks again, in case an event was missed


def progress_of(app: App, now: Snapshot | None, with_image: bool) -> dict[str, Any]:
    """A1111's shape. Idle is all zeros."""
    state: dict[str, Any] = {
        "skipped": bool(now and now.skipped),
        "interrupted": bool(now and now.interrupted),
        "stopping_generation": False,
        "job": f"Batch {now.batch + 1} out of {now.batches}" if now else "",
        "job_count": now.batches if now else 0,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(now.job.started if now else 0)),
        "job_no": now.batch if now else 0,
        "sampling_step": now.step if now else 0,
        "sampling_steps": now.steps if now else 0,
    }
    image = as_png(now.preview) if now and now.preview and with_image else None
    return {
        "progress": round(now.fraction, 4) if now else 0.0,
        "eta_relative": round(now.eta_s or 0.0, 2) if now else 0.0,
        "state": state,
        "current_image": base64.b64encode(image).decode("ascii") if image else None,
        "textinfo": app.model_status.text if now and now.phase == "loading" else None,
    }


def as_png(jpeg: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg), formats=["JPEG"]).save(buffer, "PNG")
    return buffer.getvalue()
