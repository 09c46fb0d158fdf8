"""Our own HTTP API, /api/v1, and the FastAPI app that holds every route but the page's."""

import re
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from modules.app import App
from modules.generation.request import GenerationRequest
from modules.imaging.decode import MAX_BYTES, ImageError, decode
from modules.jobs.inputs import UnknownPicture
from modules.jobs.job import Job
from modules.jobs.queue import NoCheckpoint, choose_checkpoint
from modules.library.recommended import recommended
from modules.runtime.version import VERSION
from modules.server import downloads, errors, internal, merges, models, networks, sdapi
from modules.server.body import read_file, read_json
from modules.server.errors import ApiError, field_error
from modules.server.names import check_request
from modules.server.stream import events_of_client, events_of_job, image_data

CLIENT = re.compile(r"[A-Za-z0-9_-]{1,64}")
KEY = re.compile(r"[\x21-\x7e]{1,128}")
MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".avif": "image/avif"}
IMAGE_HEADERS = {
    "cache-control": "private, max-age=31536000, immutable",
    "content-security-policy": "default-src 'none'; sandbox",
}


def create_api(app: App) -> FastAPI:
    """/health, /api/v1 and /sdapi/v1. Put a Gate around it: these routes check no Host and no token."""
    # FastAPI's documentation pages load scripts from a CDN.
    api = FastAPI(title="Easel", version=VERSION, docs_url=None, redoc_url=None)
    errors.install(api)
    api.add_api_route("/health", _health)
    api.add_api_route("/health", _health, methods=["HEAD"], include_in_schema=False)
    api.include_router(routes(app), prefix="/api/v1")
    api.include_router(sdapi.routes(app), prefix="/sdapi/v1")
    api.include_router(internal.routes(app), prefix="/internal")
    api.include_router(networks.card_routes(app), prefix="/sd_extra_networks")
    return api


async def _health() -> dict[str, str]:
    return {"status": "ok"}


def routes(app: App) -> APIRouter:
    router = APIRouter()
    _add_jobs(router, app)
    _add_inputs(router, app)
    _add_facts(router, app)
    merges.add_routes(router, app)
    models.add_routes(router, app)
    downloads.add_routes(router, app)
    return router


def _add_jobs(router: APIRouter, app: App) -> None:
    def job_of(id: str) -> Job:
        try:
            return app.queue.get(id)
        except KeyError:
            raise ApiError(404, "there is no such job; it may be too old") from None

    @router.post("/jobs")
    async def submit(request: Request) -> JSONResponse:
        wanted = GenerationRequest.model_validate(await read_json(request))
        client = client_of(request, default="api")
        key = idempotency_key(request)
        await run_in_threadpool(check_request, app, wanted)
        job = await run_in_threadpool(app.queue.submit, wanted, app.settings.current, "api", client, key)
        position = await run_in_threadpool(app.queue.position, job)
        return JSONResponse({"id": job.id, "state": job.state, "position": position}, 202)

    @router.get("/jobs")
    def recent(request: Request, limit: int = 50) -> list[dict[str, Any]]:
        client = client_of(request, default="api")
        return [describe(app, job) for job in app.queue.of_client(client, min(max(limit, 1), 200))]

    @router.get("/jobs/{id}")
    def one(id: str) -> dict[str, Any]:
        return describe(app, job_of(id))

    @router.post("/jobs/{id}/{action}")
    def act(id: str, action: str) -> dict[str, Any]:
        actions = {"interrupt": app.queue.interrupt, "skip": app.queue.skip, "cancel": app.queue.cancel}
        if action not in actions:
            raise ApiError(404, "a job can be asked to interrupt, skip or cancel")
        job = actions[action](job_of(id).id)
        return {"id": job.id, "state": job.state, "position": app.queue.position(job)}

    @router.get("/jobs/{id}/images/{index}")
    def picture(id: str, index: int) -> Response:
        job = job_of(id)
        image = next((image for image in job.images if image.index == index), None)
        if image is None:
            raise ApiError(404, "the job has no such picture (yet)")
        media = MEDIA.get(image.path.suffix.lower()) if image.path else "image/png"
        data = app.keeper.read(job, image)
        if data is None or media is None:
            raise ApiError(410, "the picture's file is not there any more")
        return Response(data, media_type=media, headers=IMAGE_HEADERS)

    @router.get("/jobs/{id}/events")
    def job_events(id: str) -> StreamingResponse:
        return events_of_job(app, job_of(id))

    @router.get("/events")
    def client_events(request: Request) -> StreamingResponse:
        return events_of_client(app, client_of(request))


def _add_inputs(router: APIRouter, app: App) -> None:
    @router.post("/inputs")
    async def keep_input(request: Request) -> dict[str, Any]:
        """A picture that later requests start from: PNG, JPEG, WebP or AVIF, as the body or as a form's file."""
        data = await read_file(request, MAX_BYTES)
        image = await run_in_threadpool(decode_input, data)
        id = await run_in_threadpool(app.inputs.put, image)
        return {"id": id, "width": image.width, "height": image.height}

    @router.get("/inputs/{id}")
    def input_picture(id: str) -> Response:
        try:
            return Response(app.inputs.read(id), media_type="image/png", headers=IMAGE_HEADERS)
        except UnknownPicture as error:
            raise ApiError(404, str(error)) from error


def _add_facts(router: APIRouter, app: App) -> None:
    @router.get("/status")
    def status() -> dict[str, Any]:
        model = app.model_status
        return {
            "version": VERSION,
            "model": {"state": model.state, "text": model.text, "progress": model.progress},
            "waiting": app.queue.waiting(),
            "running": app.queue.running is not None,
            "problems": app.problems,
        }

    @router.get("/checkpoints")
    def checkpoints() -> list[dict[str, Any]]:
        return [
            {
                "title": one.title,
                "name": one.model_name,
                "hash": one.shorthash,
                "size": one.size,
                "problem": one.problem,
            }
            for one in app.library.list()
        ]

    @router.get("/checkpoints/recommended")
    def recommendation(checkpoint: str) -> dict[str, Any]:
        """What a checkpoint was made for. Advice: no request is changed by it."""
        try:
            return asdict(recommended(choose_checkpoint(app.library, checkpoint)))
        except NoCheckpoint as error:
            raise field_error("checkpoint", checkpoint, str(error), 404) from error

    @router.post("/tokens")
    async def tokens(request: Request) -> dict[str, int]:
        body = await read_json(request)
        text = body.get("text")
        if not isinstance(text, str) or set(body) != {"text"}:
            raise ApiError(422, 'the body must be {"text": "…"}')
        number, room = await run_in_threadpool(app.count_tokens, text)
        return {"tokens": number, "room": room}


def decode_input(data: bytes) -> Image.Image:
    try:
        return decode(data)
    except ImageError as error:
        raise ApiError(422, str(error)) from error


def describe(app: App, job: Job) -> dict[str, Any]:
    """A job with its pictures, as JSON."""
    return {
        "id": job.id,
        "state": job.state,
        "position": app.queue.position(job),
        "source": job.source,
        "request": job.request.model_dump(mode="json"),
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "error": job.error,
        "images": [image_data(app, job, image) for image in job.images],
    }


def client_of(request: Request, default: str | None = None) -> str:
    """Which browser tab or program asks: a random name that it gave itself. EventSource cannot set headers."""
    client = request.headers.get("x-easel-client") or request.query_params.get("client") or default
    if client is None or not CLIENT.fullmatch(client):
        raise ApiError(422, "client must be 1 to 64 of the characters A-Z a-z 0-9 _ - (query or header X-Easel-Client)")
    return client


def idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not KEY.fullmatch(key):
        raise ApiError(422, "Idempotency-Key must be 1 to 128 visible ASCII characters")
    return None if key is None else f"key:{key}"
