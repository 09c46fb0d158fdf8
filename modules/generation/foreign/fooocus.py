"""Fooocus and its relatives: JSON by A1111's key "parameters", or an infotext with fields of its own."""

import ast
import re
from collections.abc import Mapping
from typing import Any

from modules.generation.foreign.draft import Draft, Foreign, load_object, shown, stem, whole
from modules.generation.infotext import parse
from modules.generation.reading import to_request_fields

_KEYS = ("metadata_scheme", "full_prompt", "base_model", "lora_combined_1", "base_model_name")
_SILENT: tuple[str, ...] = (
    "metadata_scheme",
    "version",
    "created_by",
    "full_prompt",
    "full_negative_prompt",
    "performance",
)
_SILENT += ("image_number", "base_model_hash", "refiner_model_hash", "software")


def read(items: Mapping[str, str]) -> Foreign | None:
    for key in ("parameters", "exif comment"):
        text = items.get(key, "")
        found = {str(name): value for name, value in load_object(text).items()}
        if any(name in found for name in _KEYS):
            return _from_json(found)
        if "Version: Fooocus" in text[-2000:]:
            unmapped = to_request_fields(parse(text)).unmapped
            return Foreign("Fooocus", text, unmapped)
    return None


def _from_json(found: dict[str, Any]) -> Foreign:
    program = "RuinedFooocus" if "base_model_name" in found else "Fooocus"
    draft = Draft(program, found.get("version"))
    found = {_OTHER_NAMES.get(name, name): value for name, value in found.items()}
    for full, plain, attribute in (
        ("full_prompt", "prompt", "prompt"),
        ("full_negative_prompt", "negative_prompt", "negative"),
    ):  # the full one has the styles in it
        text, pieces = found.pop(plain, ""), found.get(full)
        if isinstance(pieces, list) and pieces and all(isinstance(piece, str) for piece in pieces):
            text = ", ".join(pieces)
            for name in ("styles", "prompt_expansion") if plain == "prompt" else ():
                found.pop(name, None)
        setattr(draft, attribute, text if isinstance(text, str) else "")
    draft.take(found, "steps", "Steps", whole)
    draft.sampler(found.pop("sampler", None), found.pop("scheduler", None))
    draft.take(found, "guidance_scale", "CFG scale")
    draft.take(found, "seed", "Seed", whole)
    size = re.fullmatch(r"\(?\s*(\d{1,6})\s*[,x×]\s*(\d{1,6})\s*\)?", str(found.get("resolution", ""))[:40])
    if size:
        draft.size(size[1], size[2])
        del found["resolution"]
    else:
        draft.size(found.pop("width", None), found.pop("height", None))
    draft.take(found, "base_model", "Model", stem)
    digest = found.get("base_model_hash")
    if isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{8,64}", digest, re.I):
        draft.fields["Model hash"] = digest[:10].lower()
    if str(found.get("vae", "")).startswith("Default"):
        del found["vae"]
    draft.take(found, "vae", "VAE", stem)
    if found.get("refiner_model") not in (None, "None", ""):
        draft.take(found, "refiner_model", "Refiner", stem)
        draft.take(found, "refiner_switch", "Refiner switch at")
    else:
        found.pop("refiner_model", None), found.pop("refiner_switch", None)
    draft.take(found, "clip_skip", "Clip skip", whole)
    _add_loras(found, draft)
    draft.fields["RNG"] = "CPU"
    draft.note_rest(found, _SILENT)
    return draft.finish()


_OTHER_NAMES = {
    **{"Prompt": "prompt", "Negative": "negative_prompt", "cfg": "guidance_scale", "sampler_name": "sampler"},
    "base_model_name": "base_model",
}


def _add_loras(found: dict[str, Any], draft: Draft) -> None:
    listed = found.pop("loras", None)
    if isinstance(listed, str):
        try:
            listed = ast.literal_eval(listed[:10_000])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            draft.note(f"loras: {shown(listed)}")
            listed = None
    combined = {name: found.pop(name) for name in list(found) if re.fullmatch(r"lora_combined_\d{1,2}", name)}
    if isinstance(listed, list) and listed:
        for one in listed:
            if isinstance(one, list | tuple) and len(one) >= 2:
                draft.lora(one[0], one[1])
        return
    for value in combined.values():
        parts = str(value).rsplit(" : ", 1)
        draft.lora(parts[0].removeprefix("True : "), parts[1] if len(parts) > 1 else 1)
