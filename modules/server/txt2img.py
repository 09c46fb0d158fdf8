"""POST /sdapi/v1/txt2img: A1111's fields in, A1111's answer out; in between it is a GenerationRequest like any
other."""

import json
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS
from modules.generation import infotext
from modules.generation.reading import to_request_fields
from modules.generation.request import GenerationRequest
from modules.jobs.job import Job
from modules.server.errors import ApiError, entry, field_error, shown, validation_error
from modules.settings.schema import SETTINGS, Settings, refuse_protected

# Every field with its default, in the order in which the answer echoes them.
FIELDS: dict[str, Any] = {
    "prompt": "",
    "negative_prompt": "",
    "styles": None,
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "sampler_name": None,
    "scheduler": None,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 50,
    "cfg_scale": 7.0,
    "width": 512,
    "height": 512,
    "restore_faces": None,
    "tiling": None,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "eta": None,
    "denoising_strength": None,
    "s_min_uncond": None,
    "s_churn": None,
    "s_tmax": None,
    "s_tmin": None,
    "s_noise": None,
    "override_settings": None,
    "override_settings_restore_afterwards": True,
    "refiner_checkpoint": None,
    "refiner_switch_at": None,
    "disable_extra_networks": False,
    "firstpass_image": None,
    "comments": None,
    "enable_hr": False,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "hr_scale": 2.0,
    "hr_upscaler": None,
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_checkpoint_name": None,
    "hr_sampler_name": None,
    "hr_scheduler": None,
    "hr_prompt": "",
    "hr_negative_prompt": "",
    "force_task_id": None,
    "sampler_index": "Euler",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
    "infotext": None,
}

# Fields whose feature is not built yet, with the values that ask for nothing.
NOT_YET: dict[str, tuple[Any, ...]] = {
    "styles": ([],),
    "subseed_strength": (0,),
    "seed_resize_from_h": (-1, 0),
    "seed_resize_from_w": (-1, 0),
    "restore_faces": (False,),
    "tiling": (False,),
    "s_min_uncond": (0,),
    "refiner_checkpoint": ("", "None"),
    "firstpass_image": ("",),
    "comments": ({},),
    "enable_hr": (False,),
    "script_name": ("", "None"),
    "alwayson_scripts": ({},),
    "init_images": ([],),
    "mask": ("",),
}

# Our fields by A1111's names, where they differ.
NAMES = {"sampler": "sampler_name", "schedule": "scheduler", "batch_count": "n_iter", "checkpoint": "override_settings"}
TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
SAMPLING = {"s_churn": ("s_churn",), "s_tmin": ("s_tmin",), "s_tmax": ("s_tmax",), "s_noise": ("s_noise",)}
ETA = ("eta_ancestral", "eta_ddim")


@dataclass
class Txt2Img:
    """One call, understood."""

    request: GenerationRequest
    parameters: dict[str, Any]  # every field of A1111's, as the answer echoes them
    key: str | None  # of force_task_id
    send_images: bool
    grid: bool  # wanted, if there is more than one picture
    warnings: list[str] = field(default_factory=list)


def understand(body: Mapping[str, Any], settings: Settings) -> Txt2Img:
    """Raises ApiError. What A1111 would ignore silently becomes a warning; what it would do and we cannot is
    refused."""
    parameters = {**FIELDS, **{name: value for name, value in body.items() if name in FIELDS}}
    warnings = [f"unknown field {shown(name)}" for name in body if name not in FIELDS and name not in NOT_YET]
    for name in ("send_images", "save_images", "do_not_save_samples", "do_not_save_grid"):
        if not isinstance(parameters[name], bool):
            raise field_error(name, parameters[name], "must be true or false")
    _fill_from_infotext(body, parameters, settings, warnings)
    _refuse_what_is_not_built({**body, **parameters})
    sampler, schedule = _sampler_and_schedule(parameters)
    overrides, checkpoint = _overrides(parameters, warnings)
    save = parameters["save_images"] and not parameters["do_not_save_samples"]
    try:
        request = GenerationRequest(
            prompt=parameters["prompt"],
            negative_prompt=parameters["negative_prompt"],
            checkpoint=checkpoint,
            sampler=sampler,
            schedule=schedule,
            steps=parameters["steps"],
            cfg_scale=_as_float(parameters["cfg_scale"]),
            width=parameters["width"],
            height=parameters["height"],
            seed=parameters["seed"],
            batch_size=parameters["batch_size"],
            batch_count=parameters["n_iter"],
            overrides=overrides,
            save=save,
        )
    except ValidationError as error:
        raise validation_error(error, NAMES) from error
    parameters["cfg_scale"] = request.cfg_scale
    grid = parameters["save_images"] and not parameters["do_not_save_grid"]
    return Txt2Img(request, parameters, _task_key(parameters), parameters["send_images"], grid, warnings)


def _task_key(parameters: Mapping[str, Any]) -> str | None:
    id = parameters["force_task_id"]
    if id is None:
        return None
    if not isinstance(id, str) or not TASK_ID.fullmatch(id):
        raise field_error("force_task_id", id, "must be 1 to 64 of the characters A-Z a-z 0-9 _ -")
    return f"task:{id}"


def _fill_from_infotext(
    body: Mapping[str, Any], parameters: dict[str, Any], settings: Settings, warnings: list[str]
) -> None:
    """`infotext` gives every field that was not sent itself."""
    text = parameters["infotext"]
    if text is None:
        return
    if not isinstance(text, str):
        raise field_error("infotext", text, "must be text")
    reading = to_request_fields(infotext.parse(text), tuple(settings.infotext_skip_pasting))
    ours = {**{name: NAMES.get(name, name) for name in reading.fields}, "overrides": "", "checkpoint": ""}
    for name, value in reading.fields.items():
        if ours[name] and ours[name] not in body:
            parameters[ours[name]] = value
    named = reading.fields.get("overrides", {})
    overrides = {key: value for key, value in named.items() if value != getattr(settings, key)}
    checkpoint = reading.fields.get("checkpoint")
    if checkpoint and not settings.disable_weights_auto_swap:
        overrides["sd_model_checkpoint"] = checkpoint
    if isinstance(parameters["override_settings"], dict | None):
        parameters["override_settings"] = {**overrides, **(parameters["override_settings"] or {})}
    warnings += [f"infotext: {one} has no effect" for one in reading.unmapped[:20]]


def _as_float(value: Any) -> Any:
    """A1111's API takes 7 for 7.0, and its infotexts say so; what is no number is left to the validation."""
    return float(value) if type(value) is int and abs(value) < 2**53 else value


def _refuse_what_is_not_built(values: Mapping[str, Any]) -> None:
    wrong = [
        entry(name, values[name], "is not available yet; leave it out")
        for name, nothing in NOT_YET.items()
        if values.get(name) is not None and not any(_same(values[name], one) for one in nothing)
    ]
    if wrong:
        raise ApiError(422, f"{', '.join(one['field'] for one in wrong)}: not available yet; leave it out", wrong)


def _same(value: Any, nothing: Any) -> bool:
    """0 is 0.0, but not false."""
    return bool(value == nothing) and isinstance(value, bool) == isinstance(nothing, bool)


def _sampler_and_schedule(parameters: Mapping[str, Any]) -> tuple[Any, Any]:
    """`sampler_index` is the old name; "DPM++ 2M Karras" was one name until the schedule got a menu of its own."""
    sampler = parameters["sampler_name"] or parameters["sampler_index"] or "Euler"
    schedule = parameters["scheduler"] or "Automatic"
    if not isinstance(sampler, str) or not isinstance(schedule, str):
        return sampler, schedule
    known = {name.casefold() for info in SAMPLER_INFOS for name in (info.name, *info.aliases)}
    for info in SCHEDULE_INFOS:
        for ending in (f" {info.label}".casefold(), f"_{info.name[:2]}"):  # "DPM++ 2M Karras", "k_dpmpp_2m_ka"
            start = sampler[: -len(ending)]
            if sampler.casefold().endswith(ending) and sampler.casefold() not in known and start.casefold() in known:
                return start, info.label if schedule.casefold() == "automatic" else schedule
    return sampler, schedule


def _overrides(parameters: Mapping[str, Any], warnings: list[str]) -> tuple[dict[str, Any], str]:
    """The settings of this request only, and its checkpoint."""
    given = parameters["override_settings"]
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise field_error("override_settings", given, "must be an object of settings")
    refuse_protected(given)
    overrides = {}
    for key, value in given.items():
        info = SETTINGS.get(key)
        if info is None:
            warnings.append(f"unknown setting {shown(key)}")
        elif not info.effective and value != info.default:
            warnings.append(f"the setting {key} has no effect yet")
        else:
            overrides[key] = value
    for name, keys in {**SAMPLING, "eta": ETA}.items():
        if parameters[name] is not None:
            if not isinstance(parameters[name], int | float) or isinstance(parameters[name], bool):
                raise field_error(name, parameters[name], "must be a number")
            overrides |= {key: float(parameters[name]) for key in keys}
    checkpoint = overrides.pop("sd_model_checkpoint", None) or ""
    if not isinstance(checkpoint, str):
        raise field_error("override_settings.sd_model_checkpoint", checkpoint, "must be text")
    return overrides, checkpoint


def info_of(call: Txt2Img, job: Job, settings: Settings, version: str, grid: str | None) -> str:
    """The `info` of the answer: a JSON text, which is how A1111 sends it. `grid`: the infotext of a grid in front."""
    request = job.request
    count = len(job.images)
    subseed = call.parameters["subseed"]
    if not isinstance(subseed, int) or subseed == -1:
        subseed = random.randrange(2**32 - count)  # it has no effect while its strength is 0
    extra = {"Schedule type": resolved} if (resolved := _resolved_schedule(request)) != "Automatic" else {}
    info = {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * count,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
        "seed": request.seed,
        "all_seeds": [image.seed for image in job.images],
        "subseed": subseed,
        "all_subseeds": [subseed + image.index for image in job.images],
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": request.sampler,
        "cfg_scale": request.cfg_scale,
        "steps": request.steps,
        "batch_size": request.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.model.model_name,
        "sd_model_hash": _model_hash(job),
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": None,
        "extra_generation_params": extra,
        "index_of_first_image": 1 if grid is not None else 0,
        "infotexts": ([grid] if grid is not None else []) + [image.infotext for image in job.images],
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.started)),
        "clip_skip": settings.CLIP_stop_at_last_layers,
        "is_using_inpainting_conditioning": False,
        "version": version,
    }
    return json.dumps(info)


def _resolved_schedule(request: GenerationRequest) -> str:
    sampler = next(info for info in SAMPLER_INFOS if info.name == request.sampler)
    return (sampler.schedule or "Automatic") if request.schedule == "Automatic" else request.schedule


def _model_hash(job: Job) -> str | None:
    """Where the file was hashed only when it was loaded, the infotext knows it."""
    if job.model.sha256:
        return job.model.sha256[:10]
    found = infotext.parse(job.images[0].infotext).get("Model hash") if job.images else None
    return str(found) if found else None
