"""A1111's HTTP API, /sdapi/v1, its first part: the same addresses, fields and answers, so that its clients work
here."""

import base64
import io
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from PIL import Image

from modules.app import App
from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS, SamplerInfo
from modules.generation import infotext
from modules.imaging.decode import ImageError, bytes_from_base64
from modules.imaging.metadata import read_metadata
from modules.jobs.job import Job
from modules.jobs.queue import choose_checkpoint
from modules.jobs.worker import Snapshot
from modules.runtime.version import VERSION
from modules.server import txt2img
from modules.server.body import read_json
from modules.server.errors import ApiError, field_error, shown
from modules.settings.schema import SETTINGS, Settings, refuse_protected

CLIENT = "sdapi"
MOST_PICTURE_JSON = 64 * 2**20  # bytes
SECRETS = ("gradio_auth", "gradio_auth_path", "api_auth", "ngrok", "ngrok_options", "tls_keyfile", "tls_certfile")


def routes(app: App) -> APIRouter:
    router = APIRouter()
    _add_generation(router, app)
    _add_lists(router, app)
    _add_settings(router, app)

    @router.post("/png-info")
    async def png_info(request: Request) -> dict[str, Any]:
        body = await read_json(request, MOST_PICTURE_JSON)
        return await run_in_threadpool(read_picture, body.get("image"))

    return router


# --- generation ------------------------------------------------------------------------------------------------------


def _add_generation(router: APIRouter, app: App) -> None:
    @router.post("/txt2img")
    async def generate(request: Request) -> JSONResponse:
        call = txt2img.understand(await read_json(request), app.settings.current)
        job = await run_in_threadpool(app.queue.submit, call.request, app.settings.current, "api", CLIENT, call.key)
        await ended(app, job.id)
        return await run_in_threadpool(answer_of, app, call, app.queue.get(job.id))

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


async def ended(app: App, id: str) -> None:
    """Waits for the job's end. A client that goes away meanwhile loses nothing: the job goes on."""
    with app.events.subscribe(job=id) as subscription:
        while not (await run_in_threadpool(app.queue.get, id)).ended:
            try:
                if await subscription.get(timeout_s=5.0) is None:
                    raise ApiError(503, "the server ends now; the job is kept and goes on at the next start")
            except TimeoutError:
                continue  # looks again, in case an event was missed


def answer_of(app: App, call: txt2img.Txt2Img, job: Job) -> JSONResponse:
    if job.state == "failed":
        raise ApiError(500, f"the job failed: {job.error}")
    settings = Settings().with_overrides(job.settings)
    warnings = [*call.warnings, *(image.warning for image in job.images if image.warning)]
    pictures = [app.keeper.read(job, image) for image in job.images]
    if None in pictures:
        raise ApiError(410, "pictures of this job are not there any more; send it again with another force_task_id")
    grid = None
    if call.grid and (len(pictures) > 1 or not settings.grid_only_if_multiple):
        grid = app.keeper.grid(job, [picture for picture in pictures if picture], settings, warnings)
    images = [base64.b64encode(data).decode("ascii") for data in (grid, *pictures) if data and call.send_images]
    body: dict[str, Any] = {
        "images": images,
        "parameters": call.parameters,
        "info": txt2img.info_of(
            call, job, settings, f"easel-v{VERSION}", job.images[0].infotext if grid is not None else None
        ),
    }
    if warnings:
        body["warnings"] = warnings
    return JSONResponse(body)


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


# --- what there is ---------------------------------------------------------------------------------------------------


def _add_lists(router: APIRouter, app: App) -> None:
    @router.get("/sd-models")
    def models() -> list[dict[str, Any]]:
        return [
            {
                "title": one.title,
                "model_name": one.flat_name,
                "hash": one.shorthash,
                "sha256": one.sha256,
                "filename": str(one.path),
                "config": str(one.config) if one.config else None,
            }
            for one in app.library.usable()
        ]

    @router.post("/refresh-checkpoints")
    def refresh() -> None:
        app.library.refresh()

    @router.get("/samplers")
    def samplers() -> list[dict[str, Any]]:
        return [
            {"name": one.name, "aliases": list(one.aliases), "options": sampler_options(one)} for one in SAMPLER_INFOS
        ]

    @router.get("/schedulers")
    def schedulers() -> list[dict[str, Any]]:
        return [
            {
                "name": one.name,
                "label": one.label,
                "aliases": list(one.aliases) or None,
                "default_rho": one.default_rho,
                "need_inner_model": one.need_inner_model,
            }
            for one in SCHEDULE_INFOS
        ]

    @router.get("/cmd-flags")
    def cmd_flags() -> dict[str, Any]:
        return visible_flags(app.flags, app.paths.data_dir)

    @router.get("/memory")
    def memory() -> dict[str, Any]:
        return {"ram": main_memory(), "cuda": device_memory()}


def sampler_options(info: SamplerInfo) -> dict[str, str]:
    """A1111 sends these as text."""
    options = {"scheduler": info.schedule.lower()} if info.schedule else {}
    for name in ("uses_ensd", "discard_next_to_last_sigma", "second_order", "brownian_noise"):
        if getattr(info, name):
            options[name] = "True"
    return options


def visible_flags(flags: Namespace, data_dir: Path) -> dict[str, Any]:
    """The flags of the start, without passwords and without where this user's folders are."""
    visible = {}
    for name, value in sorted(vars(flags).items()):
        if name in SECRETS:
            value = None
        elif isinstance(value, str) and Path(value).is_absolute():
            path = Path(value)
            value = f"<data-dir>/{path.relative_to(data_dir)}" if path.is_relative_to(data_dir) else path.name
        elif isinstance(value, str) and ("/" in value or "\\" in value):
            value = Path(value).name
        elif not isinstance(value, str | int | float | bool | list | dict | None):
            value = str(value)
        visible[name] = value
    return visible


def main_memory() -> dict[str, Any]:
    """Bytes, as A1111 counts: `used` is this process."""
    try:
        meminfo = Path("/proc/meminfo").read_text("ascii")
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return {"error": "unavailable on this system"}
    total = next(int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemTotal:"))
    used = pages * 4096
    return {"free": total - used, "used": used, "total": total}


def device_memory() -> dict[str, Any]:
    torch = sys.modules.get("torch")  # the worker has it once it has begun; this thread must not import it
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_available():
        return {"error": "unavailable"}
    free, total = cuda.mem_get_info()
    stats = cuda.memory_stats()

    def pair(name: str) -> dict[str, int]:
        return {"current": stats[f"{name}.all.current"], "peak": stats[f"{name}.all.peak"]}

    return {
        "system": {"free": free, "used": total - free, "total": total},
        "active": pair("active_bytes"),
        "allocated": pair("allocated_bytes"),
        "reserved": pair("reserved_bytes"),
        "inactive": pair("inactive_split_bytes"),
        "events": {"retries": stats["num_alloc_retries"], "oom": stats["num_ooms"]},
    }


# --- settings --------------------------------------------------------------------------------------------------------


def _add_settings(router: APIRouter, app: App) -> None:
    @router.get("/options")
    def options() -> dict[str, Any]:
        return app.settings.current.model_dump(mode="json")

    @router.post("/options")
    async def set_options(request: Request) -> JSONResponse:
        body = await read_json(request)
        warnings = await run_in_threadpool(change_settings, app, body)
        return JSONResponse({"warnings": warnings} if warnings else None)


def change_settings(app: App, body: dict[str, Any]) -> list[str]:
    """All or nothing; keys that we do not have become warnings."""
    refuse_protected(body)
    unknown = [key for key in body if key not in SETTINGS]
    known = {key: value for key, value in body.items() if key in SETTINGS}
    if wanted := known.get("sd_model_checkpoint"):
        if not isinstance(wanted, str):
            raise field_error("sd_model_checkpoint", wanted, "must be text")
        known["sd_model_checkpoint"] = choose_checkpoint(app.library, wanted).title
    if unknown and not known:
        raise ApiError(422, f"there is no setting {shown(unknown[0])}")
    app.settings.update(known)
    if wanted:
        app.queue.wake()
    return [f"unknown setting {shown(key)}" for key in unknown]


# --- PNG info --------------------------------------------------------------------------------------------------------


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
