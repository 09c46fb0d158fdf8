"""Civitai: an infotext that ends with JSON about resources, or its own parameters as JSON beside ComfyUI's graph."""

import json
import re
from collections.abc import Mapping
from typing import Any

from modules.generation.foreign.draft import Draft, Foreign, load_object, shown, whole

_FIELDS = ("Civitai resources", "Civitai metadata")


def read(items: Mapping[str, str]) -> Foreign | None:
    for key in ("parameters", "exif comment"):
        text = items.get(key, "")
        if any(f"{name}: " in text for name in _FIELDS):
            return _from_infotext(text)
        found = load_object(text)
        if "extraMetadata" in found:
            return _from_extra(found["extraMetadata"])
    found = load_object(items.get("prompt"))
    return _from_extra(found["extraMetadata"]) if "extraMetadata" in found else None


def _from_infotext(text: str) -> Foreign:
    """The same text without what only Civitai can read."""
    head, _, last = text.rpartition("\n")
    notes: list[str] = []
    for name in _FIELDS:
        start = last.find(f"{name}: ")
        if start < 0:
            continue
        value, end = _json_at(last, start + len(name) + 2)
        notes += _resources(value) if name == _FIELDS[0] else []
        if name == _FIELDS[1] and value:
            notes.append(f"{name}: {shown(value)}")
        last = last[:start].rstrip(", ") + last[end:]
    return Foreign("Civitai", f"{head}\n{last}" if head else last, tuple(notes))


def _json_at(text: str, start: int) -> tuple[Any, int]:
    """The value and where it ends; the rest of the line, if it is none."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, len(text)
    return value, end


def _resources(value: Any) -> list[str]:
    found = []
    for one in value[:50] if isinstance(value, list) else []:
        if isinstance(one, dict):
            name = one.get("modelName") or one.get("modelVersionId") or one.get("air") or "?"
            version, weight = one.get("modelVersionName"), one.get("weight", one.get("strength"))
            words = [str(one.get("type", "resource")), shown(name)] + ([shown(version)] if version else [])
            found.append(" ".join(words) + (f", weight {shown(weight)}" if weight is not None else ""))
    return found


def _from_extra(extra: Any) -> Foreign | None:
    found = load_object(extra) if isinstance(extra, str) else dict(extra) if isinstance(extra, dict) else {}
    if not found:
        return None
    draft = Draft("Civitai")
    prompt, negative = found.pop("prompt", ""), found.pop("negativePrompt", "")
    draft.prompt, draft.negative = (text if isinstance(text, str) else "" for text in (prompt, negative))
    draft.take(found, "steps", "Steps", whole)
    sampler = found.pop("sampler", None)
    draft.sampler(re.sub(r"^Undefined$", "", sampler) if isinstance(sampler, str) else None)
    draft.take(found, "cfgScale", "CFG scale")
    draft.take(found, "seed", "Seed", whole)
    draft.size(found.pop("width", None), found.pop("height", None))
    draft.take(found, "denoise", "Denoising strength")
    if (clip_skip := found.pop("clipSkip", None)) not in (None, 0):
        draft.set("Clip skip", clip_skip, whole)
    for note in _resources(found.pop("resources", None)):
        draft.note(note)
    draft.note_rest(found, ("workflowId", "baseModel", "quantity", "nsfw", "draft", "fluxMode"))
    return draft.finish()
