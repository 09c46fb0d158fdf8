"""A1111's fields of txt2img and img2img: name, default and kind, in the order in which answers echo them. Knows nothing
of what they mean."""

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
    fits: Callable[[Any], bool]
    take: Callable[[Any], Any] = lambda value: value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (_is_whole(value) and abs(value) < 2**53)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


TEXT = Kind("text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", _is_flag, bool)
WHOLE = Kind("a whole number", _is_whole)
SWITCH = Kind("0 or 1", _is_flag, int)  # a flag that A1111 sends as a number
# 7 is 7.0 to A1111's API, and its infotexts say so.
NUMBER = Kind("a number", _is_number, float)
TEXTS = Kind("a list of text", _are_texts)
LIST = Kind("a list", lambda value: isinstance(value, list))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))

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
    """Every field with its value. Values of the wrong kind are refused, all at once; nothing is converted but whole
    numbers where any number will do. Fields that are not in the table are left to the caller."""
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


def _got(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return repr(shown(value))
    return "a list" if isinstance(value, list) else "an object"
