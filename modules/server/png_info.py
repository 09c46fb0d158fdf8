"""What a picture says about how it was made: A1111's infotext, or another program's words turned into one."""

import json
from typing import Any

from modules.generation import infotext
from modules.generation.foreign.programs import read_foreign
from modules.imaging.decode import ImageError, bytes_from_base64
from modules.imaging.metadata import read_metadata
from modules.imaging.stealth import read_stealth
from modules.server.errors import field_error


def read_picture(text: Any) -> dict[str, Any]:
    """The infotext, the picture's other texts, and the parameters that it was made with; of another program's picture
    also its name, and what of it has no place in an infotext."""
    if not isinstance(text, str) or not text:
        raise field_error("image", text, "must be a picture as base64, or a data URL")
    try:
        data = bytes_from_base64(text)
        found = read_metadata(data)
    except ImageError as error:
        raise field_error("image", None, str(error)) from error
    info, items = found.infotext, dict(found.items)
    foreign = read_foreign({"parameters": info, **items})
    if not info and foreign is None and (hidden := read_stealth(data)):
        info, more = _hidden(hidden)
        items |= more
        foreign = read_foreign({"parameters": info, **items})
    answer: dict[str, Any] = {}
    if foreign is not None:
        answer = {"program": foreign.program, "unmapped": list(foreign.unmapped)}
        if foreign.infotext != info:
            items |= {"parameters": info} if info and info not in items.values() else {}
            info = foreign.infotext
    if found.warnings:
        answer["warnings"] = list(found.warnings)
    return {"info": info, "items": items, "parameters": infotext.parse(info), **answer}


def _hidden(text: str) -> tuple[str, dict[str, str]]:
    """Infotext and other items of what was in the pixels: the one itself, or texts by name as JSON."""
    try:
        found = json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return text, {}
    texts = {str(name): value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}
    return texts.pop("parameters", ""), texts
