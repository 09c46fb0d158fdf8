"""What a client gets when it is refused: a status, one sentence, and where it helps field, value and limit. Small,
whatever was sent; never a path or a traceback."""

import logging
import secrets
import sqlite3
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from modules.jobs.queue import NoCheckpoint, QueueFull
from modules.jobs.store import KeyReused
from modules.settings.schema import SettingError

log = logging.getLogger(__name__)

MOST_DETAILS = 12
SHOWN = 80  # characters of a wrong value
LIMITS = ("ge", "gt", "le", "lt", "multiple_of", "max_length", "min_length", "expected")


WANTED = {  # pydantic's kinds of error
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_too_long": "must be at most {max_length} characters",
    "too_long": "must be at most {max_length} entries",
}


class ApiError(Exception):
    """Ends the request. `detail`: what A1111's clients look at; a sentence, or one entry a field."""

    def __init__(self, status: int, sentence: str, detail: list[dict[str, Any]] | None = None, **headers: str):
        super().__init__(sentence)
        self.status, self.sentence, self.detail = status, sentence, detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def field_error(field: str, value: Any, message: str, status: int = 422) -> ApiError:
    return ApiError(status, f"{field}: {message}", [entry(field, value, message)])


def entry(field: str, value: Any, message: str, limit: Any = None) -> dict[str, Any]:
    found = {"field": field, "value": shown(value), "message": message, "loc": ["body", field], "msg": message}
    return found | ({"limit": limit} if limit is not None else {})


def shown(value: Any) -> Any:
    """The value as it may be told back: short, and valid JSON."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 10**18:
        return value
    text = value if isinstance(value, str) else _described(value)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _described(value: Any) -> str:
    if isinstance(value, int):
        return f"an integer of {value.bit_length()} bits"
    return repr(value) if isinstance(value, float) else type(value).__name__


def validation_error(error: ValidationError, names: dict[str, str] | None = None) -> ApiError:
    """422 for a request that cannot be. `names` gives the client's names of our fields."""
    details: dict[str, dict[str, Any]] = {}
    for one in error.errors(include_url=False):
        field = str(one["loc"][0]) if one["loc"] else "request"
        field = (names or {}).get(field, field)[:SHOWN]
        limit = next((value for key, value in one.get("ctx", {}).items() if key in LIMITS), None)
        message = _sentence(one)
        value = None if field == "request" else one["input"]
        # A field that may be of two types fails once for each; the last is the wider one.
        details[field] = entry(field, value, message[:300], limit)
    first = next(iter(details.values()))
    where = "" if first["field"] == "request" else f"{first['field']}: "
    return ApiError(422, f"{where}{first['message']}", list(details.values())[:MOST_DETAILS])


def _sentence(error: ErrorDetails) -> str:
    """What the field must be, and what came; our own validators say it themselves."""
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    wanted = WANTED.get(error["type"])
    if wanted is None:
        return error["msg"].removeprefix("Value error, ")
    value = shown(error["input"])
    if error["type"] in ("string_too_long", "too_long"):
        return f"{wanted.format(**error['ctx'])}, got {len(error['input'])}"
    return f"{wanted.format(**error['ctx'])}, got {value}"


def as_api_error(error: Exception) -> ApiError | None:
    """The refusals of the layers below, in HTTP's words; None: not a client's fault."""
    match error:
        case ValidationError():
            return validation_error(error)
        case QueueFull():
            return ApiError(429, str(error), retry_after="30")
        case KeyReused():
            return ApiError(409, str(error))
        case SettingError():
            status = 403 if error.protected else 422
            return ApiError(status, str(error), [entry(error.key[:SHOWN], error.value, error.reason)])
        case NoCheckpoint():
            return field_error("checkpoint", None, str(error), 404)
        case sqlite3.Error():
            log.error("the job database failed", exc_info=error)
            return ApiError(503, "the job database cannot be written now (a full disk?); nothing was queued")
    return None


def answer(error: ApiError) -> JSONResponse:
    body = {"error": error.sentence[:600], "detail": error.detail if error.detail is not None else error.sentence[:600]}
    return JSONResponse(body, error.status, headers={"cache-control": "no-store", **error.headers})


def install(api: FastAPI, known: Iterable[type[Exception]] = ()) -> None:
    """Every way in which a route may fail, in one place."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        found = error if isinstance(error, ApiError) else as_api_error(error)
        assert found is not None  # only registered for what as_api_error knows
        return answer(found)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        sentence = {404: "there is nothing at this address", 405: "this address does not know that method"}
        body = {"error": sentence.get(error.status_code, str(error.detail)), "detail": error.detail}
        return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))

    async def ours(request: Request, error: Exception) -> JSONResponse:
        id = secrets.token_hex(4)
        log.error("error %s in %s %s", id, request.method, request.url.path, exc_info=error)
        error.easel_logged = True  # type: ignore[attr-defined]
        sentence = f"internal error {id}; the log has the details"
        return JSONResponse({"error": sentence, "detail": sentence, "id": id}, 500)

    for kind in (ApiError, ValidationError, QueueFull, KeyReused, SettingError, NoCheckpoint, sqlite3.Error, *known):
        api.add_exception_handler(kind, refused)
    api.add_exception_handler(HTTPException, http)
    api.add_exception_handler(Exception, ours)
