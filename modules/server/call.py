"""One call of txt2img or img2img: what both have in common on the way from A1111's fields to a GenerationRequest. The
two doors, txt2img.py and img2img.py, add what is their own."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS
from modules.generation import infotext
from modules.generation.reading import Reading, to_request_fields
from modules.generation.request import GenerationRequest, Refiner
from modules.prompt.styles import Style
from modules.server import builtin
from modules.server.builtin import Mode
from modules.server.errors import ApiError, entry, field_error, shown, validation_error
from modules.server.fields import Field, read_fields
from modules.settings.schema import SETTINGS, SettingError, Settings, refuse_protected, refuse_secret

# Fields whose feature is not here, with what they have to be.
NOT_HERE: dict[str, tuple[Any, ...]] = {
    "firstpass_image": (None, ""),
    "latent_mask": (None, ""),
}
# Our fields by A1111's names, where they differ.
NAMES = {
    "sampler": "sampler_name",
    "schedule": "scheduler",
    "batch_count": "n_iter",
    "checkpoint": "override_settings.sd_model_checkpoint",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength",
    "seed_resize_width": "seed_resize_from_w",
    "seed_resize_height": "seed_resize_from_h",
    "use_networks": "disable_extra_networks",
    "overrides": "override_settings",
}
REFINER_NAMES = {"checkpoint": "refiner_checkpoint", "switch_at": "refiner_switch_at"}
# Fields that are settings for this request only.
AS_SETTINGS: dict[str, tuple[str, ...]] = {
    "tiling": ("tiling",),
    "eta": ("eta_ancestral", "eta_ddim"),
    "s_min_uncond": ("s_min_uncond",),
    "s_churn": ("s_churn",),
    "s_tmin": ("s_tmin",),
    "s_tmax": ("s_tmax",),
    "s_noise": ("s_noise",),
    "initial_noise_multiplier": ("initial_noise_multiplier",),
}
FromInfotext = Callable[[Reading], Mapping[str, Any]]  # the fields that a door has of its own
Styles = Callable[[], Sequence[Style]]  # the user's
SIDES = (  # of pictures
    *("width", "height", "seed_resize_from_w", "seed_resize_from_h"),
    *("firstphase_width", "firstphase_height", "hr_resize_x", "hr_resize_y"),
)
CELL, SMALLEST_SIDE = 8, 64  # pixels
TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Call:
    """One call, understood."""

    request: GenerationRequest
    parameters: dict[str, Any]  # every field of A1111's, as the answer echoes them
    key: str | None  # of force_task_id
    warnings: list[str] = field(default_factory=list)

    @property
    def send_images(self) -> bool:
        return bool(self.parameters["send_images"])

    @property
    def grid(self) -> bool:
        """Wanted, if there is more than one picture."""
        return bool(self.parameters["save_images"] and not self.parameters["do_not_save_grid"])

    @property
    def lasting(self) -> dict[str, Any]:
        """The overrides that stay when the call is over: A1111's way to switch checkpoints with a picture."""
        overrides = self.parameters["override_settings"]
        return {} if self.parameters["override_settings_restore_afterwards"] else dict(overrides or {})


@dataclass(frozen=True)
class Draft:
    """The fields of a call, checked as far as both doors go."""

    parameters: dict[str, Any]
    common: dict[str, Any]  # arguments of GenerationRequest
    scripts: dict[str, list[Any]]  # arguments of the scripts that are always on
    script: tuple[str, list[Any]] | None  # the one that was chosen, and its arguments
    key: str | None
    warnings: list[str]


def draft(
    body: Mapping[str, Any],
    fields: Mapping[str, Field],
    mode: Mode,
    settings: Settings,
    from_infotext: FromInfotext,
    styles: Styles,
) -> Draft:
    """Raises ApiError. What A1111 would ignore silently becomes a warning; what it would do and we cannot is
    refused."""
    warnings = [f"unknown field {shown(name)}" for name in body if name not in fields]
    body = _with_infotext(body, settings, warnings, from_infotext, styles)
    parameters = _whole_cells(read_fields(body, fields), warnings)
    _refuse_what_is_not_here(parameters)
    if parameters["restore_faces"]:  # A1111 without a face restorer returns the picture as it is, too
        warnings.append("restore_faces has no effect: there is no face restorer here")
    script = builtin.chosen(parameters["script_name"], parameters["script_args"], mode)
    scripts = builtin.always_on(parameters["alwayson_scripts"], mode, warnings)
    overrides, checkpoint = _overrides(parameters, settings, warnings)
    sampler, schedule = sampler_and_schedule(
        parameters["sampler_name"] or parameters["sampler_index"] or "Euler", parameters["scheduler"] or "Automatic"
    )
    common = {
        "prompt": parameters["prompt"],
        "negative_prompt": parameters["negative_prompt"],
        "styles": tuple(parameters["styles"] or ()),
        "checkpoint": checkpoint,
        "sampler": sampler,
        "schedule": schedule,
        "steps": parameters["steps"],
        "cfg_scale": parameters["cfg_scale"],
        "width": parameters["width"],
        "height": parameters["height"],
        "seed": parameters["seed"],
        "variation_seed": parameters["subseed"],
        "variation_strength": parameters["subseed_strength"],
        **_seed_resize(parameters),
        "batch_size": parameters["batch_size"],
        "batch_count": parameters["n_iter"],
        "refiner": _refiner(parameters),
        "use_networks": not parameters["disable_extra_networks"],
        "overrides": overrides,
        "save": parameters["save_images"] and not parameters["do_not_save_samples"],
    }
    id = parameters["force_task_id"]
    key = None if id is None else task_key(id, "force_task_id")
    return Draft(parameters, common, scripts, script, key, warnings)


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """What a part of the request refuses is said with A1111's names of its fields."""
    try:
        yield
    except ValidationError as error:
        raise validation_error(error, dict(names)) from error


def finish(found: Draft, **parts: Any) -> Call:
    with named(NAMES):
        request = GenerationRequest(**{**found.common, **parts})
    return Call(request, found.parameters, found.key, found.warnings)


def task_key(id: str, field: str = "id_task") -> str:
    """The key of a job that a client named."""
    if not TASK_ID.fullmatch(id):
        raise field_error(field, id, "must be 1 to 64 of the characters A-Z a-z 0-9 _ -")
    return f"task:{id}"


# --- an infotext in place of fields ----------------------------------------------------------------------------------


def _with_infotext(
    body: Mapping[str, Any], settings: Settings, warnings: list[str], more: FromInfotext, styles: Styles
) -> Mapping[str, Any]:
    """`infotext` gives every field that was not sent itself."""
    text = body.get("infotext")
    if text is None:
        return body
    if not isinstance(text, str):
        raise field_error("infotext", text, "must be text")
    parsed = infotext.parse(text, settings.auto_backcompat)
    reading = to_request_fields(parsed, settings.infotext_skip_pasting, styles(), settings.infotext_styles)
    warnings += [f"infotext: {one} has no effect" for one in reading.unmapped[:20]]
    parts = ("overrides", "checkpoint", "hires", "refiner")
    plain = {NAMES.get(name, name): value for name, value in reading.fields.items() if name not in parts}
    refiner = {REFINER_NAMES[name]: value for name, value in reading.fields.get("refiner", {}).items()}
    overrides = {
        key: value for key, value in reading.fields.get("overrides", {}).items() if value != getattr(settings, key)
    }
    checkpoint = reading.fields.get("checkpoint")
    if checkpoint and not settings.disable_weights_auto_swap:
        overrides["sd_model_checkpoint"] = checkpoint
    if "styles" in plain:
        plain["styles"] = list(plain["styles"])
    filled = {**plain, **refiner, **more(reading), **body}
    if isinstance(body.get("override_settings"), dict | None):
        filled["override_settings"] = {**overrides, **(body.get("override_settings") or {})}
    return filled


# --- parts -----------------------------------------------------------------------------------------------------------


def _whole_cells(values: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """A cell of a latent is 8 pixels wide: A1111 leaves off what is more, without a word."""
    for name in SIDES:
        if values.get(name, 0) >= SMALLEST_SIDE and values[name] % CELL:
            warnings.append(f"{name} {values[name]} is no multiple of {CELL}: {values[name] // CELL * CELL} is used")
            values[name] -= values[name] % CELL
    return values


def _refuse_what_is_not_here(values: Mapping[str, Any]) -> None:
    wrong = [
        entry(name, values[name], "is not available here; leave it out")
        for name, nothing in NOT_HERE.items()
        if values.get(name) not in nothing
    ]
    if wrong:
        raise ApiError(422, f"{', '.join(one['field'] for one in wrong)}: not available here; leave it out", wrong)


def sampler_and_schedule(sampler: str, schedule: str) -> tuple[str, str]:
    """ "DPM++ 2M Karras" was one name until the schedule got a menu of its own."""
    known = {name.casefold() for info in SAMPLER_INFOS for name in (info.name, *info.aliases)}
    for info in SCHEDULE_INFOS:
        for ending in (f" {info.label}".casefold(), f"_{info.name[:2]}"):  # "DPM++ 2M Karras", "k_dpmpp_2m_ka"
            start = sampler[: -len(ending)]
            if sampler.casefold().endswith(ending) and sampler.casefold() not in known and start.casefold() in known:
                return start, info.label if schedule.casefold() == "automatic" else schedule
    return sampler, schedule


def _seed_resize(parameters: Mapping[str, Any]) -> dict[str, int]:
    """Only both together do anything."""
    width, height = parameters["seed_resize_from_w"], parameters["seed_resize_from_h"]
    if width <= 0 or height <= 0:
        return {}
    for name, value in (("seed_resize_from_w", width), ("seed_resize_from_h", height)):
        if value % CELL:  # it is smaller than any picture
            raise field_error(name, value, f"must be a multiple of {CELL}")
    return {"seed_resize_width": width, "seed_resize_height": height}


def _refiner(parameters: Mapping[str, Any]) -> Refiner | None:
    checkpoint, switch_at = parameters["refiner_checkpoint"], parameters["refiner_switch_at"]
    if checkpoint in (None, "", "None"):
        return None
    with named(REFINER_NAMES):
        return Refiner(checkpoint=checkpoint, **({} if switch_at is None else {"switch_at": switch_at}))


def _overrides(parameters: Mapping[str, Any], settings: Settings, warnings: list[str]) -> tuple[dict[str, Any], str]:
    """The settings of this request only, and its checkpoint."""
    given = dict(parameters["override_settings"] or {})
    refuse_protected(given)
    refuse_secret(given)
    fields = {key: name for name, keys in AS_SETTINGS.items() for key in keys if parameters.get(name) is not None}
    of_fields = {key: parameters[name] for key, name in fields.items()}
    try:
        settings.with_overrides(of_fields)
    except SettingError as error:
        raise field_error(fields[error.key], error.value, error.reason) from error
    given |= of_fields
    overrides = {}
    for key, value in given.items():
        info = SETTINGS.get(key)
        if info is None:
            warnings.append(f"unknown setting {shown(key)}")
        elif not info.effective and value != info.default:
            warnings.append(
                f"{fields[key]} has no effect yet" if key in fields else f"the setting {key} has no effect yet"
            )
        else:
            overrides[key] = value
    checkpoint = overrides.pop("sd_model_checkpoint", None) or ""
    if not isinstance(checkpoint, str):
        raise field_error("override_settings.sd_model_checkpoint", checkpoint, "must be text")
    return overrides, checkpoint
