"""A1111's fields of txt2img and img2img: name, default and kind, in the order in which answers echo them. Knows nothing
of what they mean."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modules.server.errors import ApiError, entry, shown

MOST_DETAILS = 12


@dataclass(frozen=True)
class Field:
    """null is taken where it is the default."""

    default: Any
    kind: "Kind"


@dataclass(frozen=True)
class Kind:
    name: str  # for people: "must be …"
    type: str  # for machines: JSON schema's
    fits: Callable[[Any], bool]
    take: Callable[[Any], Any] = lambda value: value


# Numbers and flags may come as text, whole numbers with a point: 20, "20" and 20.0 are one, as for A1111. 20.5 is no
# whole number, and true is no number at all.
_WHOLE = re.compile(r"[+-]?\d{1,20}")
_NUMBER = re.compile(r"[+-]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})(e[+-]?\d{1,3})?", re.IGNORECASE)
_EXACT = 2**53  # floats hold every whole number below


def _is_whole(value: Any) -> bool:
    if isinstance(value, str):
        return _WHOLE.fullmatch(value) is not None
    if isinstance(value, float):
        return value.is_integer() and abs(value) < _EXACT
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value) is not None and math.isfinite(float(value))
    return isinstance(value, float) or (_is_whole(value) and abs(value) < _EXACT)


def _is_flag(value: Any) -> bool:
    return value in ("true", "false") if isinstance(value, str) else isinstance(value, int) and value in (0, 1)


def _flag(value: Any) -> bool:
    return bool(value) and value != "false"


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


TEXT = Kind("text", "string", lambda value: isinstance(value, str))
FLAG = Kind("true or false", "boolean", _is_flag, _flag)
WHOLE = Kind("a whole number", "integer", _is_whole, int)
SWITCH = Kind("0 or 1", "integer", _is_flag, lambda value: int(_flag(value)))  # a flag that A1111 sends as a number
# 7 is 7.0 to A1111's API, and its infotexts say so.
NUMBER = Kind("a number", "number", _is_number, float)
TEXTS = Kind("a list of text", "array", _are_texts)
LIST = Kind("a list", "array", lambda value: isinstance(value, list))
OBJECT = Kind("an object", "object", lambda value: isinstance(value, dict))

_BOTH: dict[str, Field] = {
    "prompt": Field("", TEXT),
    "negative_prompt": Field("", TEXT),
    "styles": Field(None, TEXTS),
    "seed": Field(-1, WHOLE),
    "subseed": Field(-1, WHOLE),
    "subseed_strength": Field(0, NUMBER),
    "seed_resize_from_h": Field(-1, WHOLE),
    "seed_resize_from_w": Field(-1, WHOLE),
    "sampler_name": Field(None, TEXT),
    "scheduler": Field(None, TEXT),
    "batch_size": Field(1, WHOLE),
    "n_iter": Field(1, WHOLE),
    "steps": Field(50, WHOLE),
    "cfg_scale": Field(7.0, NUMBER),
    "width": Field(512, WHOLE),
    "height": Field(512, WHOLE),
    "restore_faces": Field(None, FLAG),
    "tiling": Field(None, FLAG),
    "do_not_save_samples": Field(False, FLAG),
    "do_not_save_grid": Field(False, FLAG),
    "eta": Field(None, NUMBER),
    "denoising_strength": Field(None, NUMBER),
    "s_min_uncond": Field(None, NUMBER),
    "s_churn": Field(None, NUMBER),
    "s_tmax": Field(None, NUMBER),
    "s_tmin": Field(None, NUMBER),
    "s_noise": Field(None, NUMBER),
    "override_settings": Field(None, OBJECT),
    "override_settings_restore_afterwards": Field(True, FLAG),
    "refiner_checkpoint": Field(None, TEXT),
    "refiner_switch_at": Field(None, NUMBER),
    "disable_extra_networks": Field(False, FLAG),
    "firstpass_image": Field(None, TEXT),
    "comments": Field(None, OBJECT),
}
_HIRES: dict[str, Field] = {
    "enable_hr": Field(False, FLAG),
    "firstphase_width": Field(0, WHOLE),
    "firstphase_height": Field(0, WHOLE),
    "hr_scale": Field(2.0, NUMBER),
    "hr_upscaler": Field(None, TEXT),
    "hr_second_pass_steps": Field(0, WHOLE),
    "hr_resize_x": Field(0, WHOLE),
    "hr_resize_y": Field(0, WHOLE),
    "hr_checkpoint_name": Field(None, TEXT),
    "hr_sampler_name": Field(None, TEXT),
    "hr_scheduler": Field(None, TEXT),
    "hr_prompt": Field("", TEXT),
    "hr_negative_prompt": Field("", TEXT),
}
_INIT: dict[str, Field] = {
    "init_images": Field(None, LIST),
    "resize_mode": Field(0, WHOLE),
    "image_cfg_scale": Field(None, NUMBER),
    "mask": Field(None, TEXT),
    "mask_blur_x": Field(4, WHOLE),
    "mask_blur_y": Field(4, WHOLE),
    "mask_blur": Field(None, WHOLE),
    "mask_round": Field(True, FLAG),
    "inpainting_fill": Field(0, WHOLE),
    "inpaint_full_res": Field(True, FLAG),
    "inpaint_full_res_padding": Field(0, WHOLE),
    "inpainting_mask_invert": Field(0, SWITCH),
    "initial_noise_multiplier": Field(None, NUMBER),
    "latent_mask": Field(None, TEXT),
}
_TASK: dict[str, Field] = {"force_task_id": Field(None, TEXT), "sampler_index": Field("Euler", TEXT)}
_CALL: dict[str, Field] = {
    "script_name": Field(None, TEXT),
    "script_args": Field([], LIST),
    "send_images": Field(True, FLAG),
    "save_images": Field(False, FLAG),
    "alwayson_scripts": Field({}, OBJECT),
    "infotext": Field(None, TEXT),
}

TXT2IMG: Mapping[str, Field] = _BOTH | _HIRES | _TASK | _CALL
IMG2IMG: Mapping[str, Field] = {
    **_BOTH,
    "denoising_strength": Field(0.75, NUMBER),
    **_INIT,
    **_TASK,
    "include_init_images": Field(False, FLAG),
    **_CALL,
}


def read_fields(body: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Every field with its value, of its own kind. Values that fit none are refused, all at once. Fields that are not
    in the table are left to the caller."""
    values: dict[str, Any] = {}
    wrong = []
    for name, field in fields.items():
        value = body.get(name, field.default)
        if value is None and field.default is None:
            values[name] = None
        elif value is field.default or field.kind.fits(value):
            values[name] = value if value is field.default else field.kind.take(value)
        else:
            wrong.append(entry(name, value, f"must be {field.kind.name}, got {_got(value)}"))
    if wrong:
        raise ApiError(422, f"{wrong[0]['field']}: {wrong[0]['message']}", wrong[:MOST_DETAILS])
    return values


def described(fields: Mapping[str, Field]) -> dict[str, Any]:
    """As OpenAPI describes a body, for clients that are made from it."""
    properties: dict[str, dict[str, Any]] = {}
    for name, field in fields.items():
        may_be_null = field.default is None
        one = (
            {"type": [field.kind.type, "null"]} if may_be_null else {"type": field.kind.type, "default": field.default}
        )
        properties[name] = one | ({"items": {"type": "string"}} if field.kind is TEXTS else {})
    return {"requestBody": {"content": {"application/json": {"schema": {"type": "object", "properties": properties}}}}}


def _got(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return repr(shown(value))
    return "a list" if isinstance(value, list) else "an object"
