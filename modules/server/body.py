"""Reading a JSON body that may be hostile: type, size, encoding, depth and numbers are checked before anything looks
inside."""

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from modules.server.errors import ApiError, field_error

MOST_JSON = 4 * 2**20  # bytes
MOST_DEPTH = 32  # brackets within brackets
DISCARDED_WITHIN_S = 2.0  # of a body that is a little too large


async def read_json(request: Request, limit: int = MOST_JSON) -> dict[str, Any]:
    """The body's object. A missing body is an empty object, as A1111's clients send none where none is needed."""
    data = await read_bytes(request, limit)
    if not data:
        return {}
    kind = content_type(request)
    if kind != "application/json":
        raise ApiError(415, f"the body must be application/json, not {kind[:60] or 'without a Content-Type'!r}")
    return await run_in_threadpool(parse, data)


async def read_file(request: Request, limit: int) -> bytes:
    """One file: the body itself, or the one file of a form (multipart/form-data)."""
    data = await read_bytes(request, limit)
    if content_type(request) != "multipart/form-data":
        return data

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield data

    try:
        form = await MultiPartParser(request.headers, pieces(), max_files=1, max_fields=8).parse()
    except MultiPartException as error:
        raise ApiError(400, f"the form cannot be read: {str(error)[:200]}") from error
    try:
        files = [part for part in form.values() if isinstance(part, UploadFile)]
        if not files:
            raise ApiError(422, "the form holds no file; send the picture as one, or alone as the body")
        return await files[0].read()
    finally:
        await form.close()


def content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def parse(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not valid {error.encoding.upper()} text at byte {error.start}") from error
    _check_depth(text)
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from error
    except ValueError as error:  # Python refuses to read integers of more than 4300 digits
        raise ApiError(400, "the body holds a number with too many digits") from error
    if not isinstance(body, dict):
        raise ApiError(422, 'the body must be a JSON object such as {"prompt": "a cat"}')
    _check_values(body, "")
    return body


async def read_bytes(request: Request, limit: int) -> bytes:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed request bodies are not accepted; send it without Content-Encoding")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and len(length) < 16 and int(length) > limit:
        if int(length) <= 2 * limit:
            await _discard(request)
        raise _too_large(limit)
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        pieces.append(piece)
    return b"".join(pieces)


async def _discard(request: Request) -> None:
    """A client that is still sending when the connection closes may never see the answer."""

    async def read() -> None:
        async for _ in request.stream():
            pass

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), DISCARDED_WITHIN_S)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit // 2**20} MiB", connection="close")


_BRACKET_OR_TEXT = re.compile(r'[\[{]|[\]}]|"(?:[^"\\]+|\\.)*"?', re.DOTALL)


def _check_depth(text: str) -> None:
    """Before parsing: Python's parser recurses."""
    depth = 0
    for found in _BRACKET_OR_TEXT.finditer(text):
        first = text[found.start()]
        if first in "[{":
            depth += 1
            if depth > MOST_DEPTH:
                raise ApiError(400, f"the body is nested more than {MOST_DEPTH} levels deep")
        elif first in "]}":
            depth -= 1


def _check_values(value: Any, field: str) -> None:
    """Python reads NaN, Infinity and halves of surrogate pairs, which are no JSON and no text."""
    match value:
        case dict():
            for key, inner in value.items():
                _check_values(key, field or "the name of a field")
                _check_values(inner, f"{field}.{key}"[:80] if field else key[:80])
        case list():
            for index, inner in enumerate(value):
                _check_values(inner, f"{field}[{index}]")
        case float() if not math.isfinite(value):
            raise field_error(field, value, "must be a finite number")
        case str() if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise field_error(field, None, "has half of a surrogate pair, which is not text") from error
