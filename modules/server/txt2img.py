"""POST /sdapi/v1/txt2img: A1111's fields in; out comes a GenerationRequest like any other. Its own part is hires
fix."""

from collections.abc import Mapping
from typing import Any

from modules.generation.reading import Reading
from modules.generation.request import Hires
from modules.server.call import Call, Draft, Styles, draft, finish, named, sampler_and_schedule
from modules.server.errors import field_error
from modules.server.fields import TXT2IMG
from modules.settings.schema import Settings

# Our fields of the second pass by A1111's names.
HIRES_NAMES = {
    "upscaler": "hr_upscaler",
    "denoising_strength": "denoising_strength",
    "scale": "hr_scale",
    "resize_width": "hr_resize_x",
    "resize_height": "hr_resize_y",
    "steps": "hr_second_pass_steps",
    "checkpoint": "hr_checkpoint_name",
    "sampler": "hr_sampler_name",
    "schedule": "hr_scheduler",
    "prompt": "hr_prompt",
    "negative_prompt": "hr_negative_prompt",
}
USUAL_STRENGTH = 0.7
SAME = ("Use same checkpoint", "Use same sampler", "Use same scheduler")


def understand(body: Mapping[str, Any], settings: Settings, styles: Styles = lambda: ()) -> Call:
    """Raises ApiError."""
    found = draft(body, TXT2IMG, "txt2img", settings, _from_infotext, styles)
    if not found.parameters["enable_hr"]:
        return finish(found)
    hires, size = _hires(found)
    return finish(found, hires=hires, **size)


def _from_infotext(reading: Reading) -> dict[str, Any]:
    second = reading.fields.get("hires")
    if not second:
        return {}
    return {"enable_hr": True} | {HIRES_NAMES[name]: value for name, value in second.items() if name in HIRES_NAMES}


def _hires(found: Draft) -> tuple[Hires, dict[str, int]]:
    """The second pass, and the size of the first where it has fields of its own."""
    values = found.parameters
    strength = values["denoising_strength"]
    if strength is None:
        strength = USUAL_STRENGTH
        found.warnings.append(f"denoising_strength was not sent; {USUAL_STRENGTH} is used for hires fix")
    size, target = _sizes(values)
    sampler, schedule = (_own(values[name]) for name in ("hr_sampler_name", "hr_scheduler"))
    if sampler:
        sampler, of_name = sampler_and_schedule(sampler, schedule or "Automatic")
        schedule = schedule or ("" if of_name == "Automatic" else of_name)
    with named(HIRES_NAMES):
        hires = Hires(
            upscaler=values["hr_upscaler"] or "Latent",
            denoising_strength=strength,
            scale=values["hr_scale"],
            **target,
            steps=values["hr_second_pass_steps"],
            checkpoint=_own(values["hr_checkpoint_name"]),
            sampler=sampler,
            schedule=schedule,
            prompt=values["hr_prompt"],
            negative_prompt=values["hr_negative_prompt"],
        )
    return hires, size


def _own(name: str | None) -> str:
    return "" if name is None or name in SAME else name


def _sizes(values: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Until hires fix was rebuilt, width and height were the final size, and the first pass had fields of its own."""
    first = {"width": values["firstphase_width"], "height": values["firstphase_height"]}
    if not any(first.values()):
        return {}, {"resize_width": values["hr_resize_x"], "resize_height": values["hr_resize_y"]}
    for name in ("width", "height"):
        if not 64 <= first[name] <= 2048 or first[name] % 8:
            message = "must be a multiple of 8 from 64 to 2048, as must the other side of the first pass"
            raise field_error(f"firstphase_{name}", first[name], message)
    return first, {"resize_width": values["width"], "resize_height": values["height"]}
