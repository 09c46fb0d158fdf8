"""The models of every kind over HTTP: lists, facts, notes and previews. Models are named by id; no answer holds a path
of this machine, and everything that files say of themselves is text."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from modules.app import App
from modules.gallery.save import encode
from modules.imaging.decode import MAX_BYTES, ImageError, decode
from modules.library.catalogue import (
    SORTS,
    ModelRecord,
    Sort,
    UnknownModel,
    Wanted,
    metadata_of,
    picture_of,
    plain,
    shown_metadata,
    tags_of,
)
from modules.library.facts import KINDS, Kind
from modules.library.header import ModelFileError
from modules.library.previews import SIDES
from modules.library.sidecars import PICTURES, beside, merged, notes_of
from modules.runtime.files import write_whole
from modules.server.body import content_type, read_file, read_json
from modules.server.errors import ApiError, field_error
from modules.settings.schema import Settings

MOST_LISTED = 500
LARGEST_PREVIEW = 2048  # pixels of the longer side that are kept
PREVIEW_HEADERS = {"content-security-policy": "default-src 'none'; sandbox"}


class NotesBody(BaseModel):
    """What people may write of a model; fields that are left out stay as they are."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    description: str | None = Field(None, max_length=20_000)
    notes: str | None = Field(None, max_length=20_000)
    activation_text: str | None = Field(None, max_length=5_000)
    negative_text: str | None = Field(None, max_length=5_000)
    preferred_weight: float | None = Field(None, ge=-10, le=10)
    sd_version: str | None = Field(None, max_length=20)


def add_routes(router: APIRouter, app: App) -> None:
    _add_lists(router, app)
    _add_one(router, app)
    _add_changes(router, app)


def _add_lists(router: APIRouter, app: App) -> None:
    @router.get("/models")
    def models(
        kind: str = "",
        family: str = "",
        search: str = "",
        folder: str = "",
        sort: str = "name",
        order: str = "asc",
        offset: int = 0,
        limit: int = 100,
    ) -> dict[str, Any]:
        """`kind`: one or more, with commas between; all without."""
        if order not in ("asc", "desc"):
            raise field_error("order", order, "must be asc or desc")
        wanted = Wanted(
            kinds=kinds_of(kind),
            family=family[:100],
            search=search[:200],
            folder=folder[:1000],
            sort=_sort_of(sort),
            descending=order == "desc",
            offset=_within("offset", offset, 0, 10**9),
            limit=_within("limit", limit, 1, MOST_LISTED),
        )
        page = app.models.page(wanted)
        describe = Describer(app)
        return {
            "total": page.total,
            "offset": wanted.offset,
            "models": [describe(one) for one in page.models],
            "families": page.families,
            "kinds": page.kinds,
        }

    @router.get("/models/folders")
    def folders(kind: str = "") -> dict[str, Any]:
        found = app.models.folders(*kinds_of(kind))
        return {"folders": [{"folder": folder, "count": count} for folder, count in found.items()]}

    @router.get("/models/duplicates")
    def duplicates(kind: str = "") -> dict[str, Any]:
        """Files of one content, and the bytes that all but one of each take. `certain`: their sha256 are known and
        equal; `POST …/hash` finds out. Nothing is ever deleted."""
        groups = app.models.duplicates(*kinds_of(kind))
        describe = Describer(app)
        return {
            "wasted": sum(group[0].size * (len(group) - 1) for group in groups),
            "groups": [
                {"certain": all(one.sha256 for one in group), "models": [describe(one) for one in group]}
                for group in groups[:MOST_LISTED]
            ],
        }

    @router.post("/models/refresh")
    def refresh(kind: str = "") -> dict[str, Any]:
        kinds = kinds_of(kind)
        app.models.refresh(*kinds)
        return {"total": len(app.models.records(*kinds))}


def _add_one(router: APIRouter, app: App) -> None:
    found = partial(find, app)

    @router.get("/models/{id}")
    def one(id: str) -> dict[str, Any]:
        """All that is known. What trainers and authors wrote is text, however it looks."""
        record = found(id)
        problem, metadata = record.problem, {}
        try:
            metadata = metadata_of(record)
        except ModelFileError as error:
            problem = problem or error.reason
        notes = notes_of(record.file)
        return Describer(app)(record) | {
            "problem": problem,
            "sha256": record.sha256,
            "title": notes.title,
            "description": notes.description,
            "notes": notes.notes,
            "activation_text": notes.activation_text,
            "negative_text": notes.negative_text,
            "preferred_weight": notes.preferred_weight,
            "sd_version": notes.sd_version,
            "base_model": record.facts.base_model or notes.base_model,
            "trigger_words": list(notes.words),
            "tags": [{"tag": tag, "count": count} for tag, count in tags_of(metadata)],
            "page": notes.page,
            "metadata": shown_metadata(metadata),
        }

    @router.get("/models/{id}/preview")
    def preview(id: str, request: Request, side: int = 384) -> Response:
        record = found(id)
        source = picture_of(record)
        if source is None:
            raise ApiError(404, "this model has no preview")
        if side not in SIDES:
            raise field_error("side", side, f"must be one of {', '.join(map(str, SIDES))}")
        try:
            data, mark = app.previews.small(source, side)
        except (ImageError, ModelFileError) as error:
            raise ApiError(404, f"the preview cannot be shown: {str(error)[:300]}") from error
        headers = {"etag": f'"{mark}"', "cache-control": "private, no-cache", **PREVIEW_HEADERS}
        if "v" in request.query_params:  # the address changes with the picture
            headers["cache-control"] = "private, max-age=31536000, immutable"
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type="image/webp", headers=headers)

    @router.post("/models/{id}/hash")
    def sha256(id: str) -> dict[str, Any]:
        """Reads the whole file, once: a second or two per GB."""
        record = found(id)
        try:
            return {"id": record.id, "sha256": app.models.hashed(record).sha256}
        except ModelFileError as error:
            raise ApiError(409, str(error)[:300]) from error


def _add_changes(router: APIRouter, app: App) -> None:
    @router.put("/models/{id}/notes")
    async def write_notes(id: str, request: Request) -> dict[str, Any]:
        """Into A1111's NAME.json beside the model; what else stands there stays."""
        body = NotesBody.model_validate(await read_json(request))
        changes = {name: plain(value) if isinstance(value, str) else value for name, value in body if value is not None}
        record = await run_in_threadpool(find, app, id)
        await run_in_threadpool(_write, record, ".json", lambda: merged(record.file, changes))
        _tell(app, record)
        return {"id": record.id, "written": sorted(changes)}

    @router.put("/models/{id}/preview")
    async def write_preview(id: str, request: Request) -> dict[str, Any]:
        """A picture as the body or as a form's file, or `{"job": …, "index": 0}` for one that was made here."""
        infotext = ""
        if content_type(request) == "application/json":
            data, infotext = await run_in_threadpool(_made, app, await read_json(request))
        else:
            data = await read_file(request, MAX_BYTES)
        record = await run_in_threadpool(find, app, id)
        if record.file.suffix.lower().lstrip(".") in PICTURES:
            raise ApiError(409, "this embedding is a picture itself, and shows itself")
        try:
            png = await run_in_threadpool(_png, data, infotext, app.settings.current)
        except ImageError as error:
            raise ApiError(422, str(error)) from error
        await run_in_threadpool(_write, record, ".png", lambda: png)
        _tell(app, record)
        return await run_in_threadpool(Describer(app), record)


class Describer:
    """Records as JSON for one answer: each folder is looked into once."""

    def __init__(self, app: App):
        self._app = app
        self._names: dict[str, frozenset[str]] = {}

    def __call__(self, record: ModelRecord) -> dict[str, Any]:
        facts = record.facts
        return {
            "id": record.id,
            "kind": record.kind,
            "name": record.name,
            "value": record.value,
            "alias": record.alias,
            "folder": record.folder,
            "size": record.size,
            "modified": record.mtime_ns // 10**9,
            "format": facts.format,
            "family": facts.family or "unknown",
            "dtype": facts.dtype,
            "prediction": facts.prediction,
            "base_model": facts.base_model,
            "resolution": facts.resolution,
            "hash": record.sha256[:10] if record.sha256 else None,
            "preview": self._preview(record),
            "problem": record.problem,
        }

    def _preview(self, record: ModelRecord) -> str | None:
        folder = os.path.dirname(record.path)
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))
            except OSError:  # it is gone since the list was made
                self._names[folder] = frozenset()
        source = picture_of(record, self._names[folder])
        try:
            mark = self._app.previews.mark(source, source.stat(), SIDES[1]) if source else None
        except OSError:
            return None
        return f"/api/v1/models/{record.id}/preview?v={mark[:12]}" if mark else None


def kinds_of(text: str) -> tuple[Kind, ...]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    for part in wanted:
        if part not in KINDS:
            raise field_error("kind", part, f"must be one of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in wanted)


def find(app: App, id: str) -> ModelRecord:
    try:
        return app.models.find(id)
    except UnknownModel as error:
        raise ApiError(404, str(error)) from error


def _sort_of(text: str) -> Sort:
    for sort in SORTS:
        if text == sort:
            return sort
    raise field_error("sort", text, f"must be one of {', '.join(SORTS)}")


def _within(field: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise field_error(field, value, f"must be from {least} to {most}")
    return value


def _write(record: ModelRecord, ending: str, content: Callable[[], bytes]) -> None:
    try:
        write_whole(beside(record.file, ending), content())
    except ValueError as error:
        raise ApiError(409, str(error)) from error
    except OSError as error:
        raise ApiError(409, f"nothing can be written beside this model: {error.strerror or error}") from error


def _tell(app: App, record: ModelRecord) -> None:
    app.tell_models([record.kind])


def _made(app: App, body: dict[str, Any]) -> tuple[bytes, str]:
    job_id, index = body.get("job"), body.get("index", 0)
    if set(body) - {"job", "index"} or not isinstance(job_id, str) or type(index) is not int:
        raise ApiError(422, 'the body must be a picture, or {"job": "…", "index": 0}')
    try:
        job = app.queue.get(job_id)
    except KeyError:
        raise ApiError(404, "there is no such job; it may be too old") from None
    image = next((image for image in job.images if image.index == index), None)
    data = app.keeper.read(job, image) if image else None
    if image is None or data is None:
        raise ApiError(404, "the job has no such picture")
    return data, image.infotext


def _png(data: bytes, infotext: str, settings: Settings) -> bytes:
    """Decoded and written anew: nothing but pixels and our infotext comes along."""
    image = decode(data)
    image.thumbnail((LARGEST_PREVIEW, LARGEST_PREVIEW), Image.Resampling.LANCZOS)
    return encode(image, infotext, "png", settings)
