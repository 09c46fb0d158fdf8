"""From an infotext to a request: which of its fields mean what here, and which mean nothing. Knows no files: whether a
checkpoint, a LoRA or an upscaler exists is found out later."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS
from modules.generation.fields import SOFT_INPAINTING
from modules.generation.infotext import DEFAULTS, Value
from modules.generation.request import MASKED_CONTENTS
from modules.prompt.styles import Style, find_styles
from modules.settings.schema import INFOTEXT_SETTINGS, SETTINGS, SettingError, Settings

StylesMode = Literal["Ignore", "Apply", "Discard", "Apply if any"]


@dataclass(frozen=True)
class Reading:
    """What a GenerationRequest can be made of. `fields` are its keyword arguments, of which only the overrides are
    validated; `init` are those of its part Init, but for the pictures, which an infotext does not hold (with "mask",
    if any); `unmapped` are the infotext's fields without effect here: "name: value", and a reason if there is one."""

    fields: dict[str, Any] = field(default_factory=dict)
    init: dict[str, Any] = field(default_factory=dict)
    unmapped: tuple[str, ...] = ()


def to_request_fields(
    parsed: Mapping[str, Value],
    skip: Sequence[str] = (),
    styles: Sequence[Style] = (),
    styles_mode: StylesMode = "Ignore",
    lora_name: Callable[[str], str | None] | None = None,
) -> Reading:
    """`skip` names fields that are not to be read (the setting infotext_skip_pasting). `styles` are looked for in the
    prompts and taken out of them, unless the mode is Ignore; only the modes that begin with Apply name them.
    `lora_name` gives the name that the LoRA with a hash has here: prompts then say it in place of the picture's."""
    read = _Reader({name: value for name, value in parsed.items() if name not in skip})
    fields = read.all(_FIELDS)
    fields |= read.sampler("Sampler", "Schedule type", "sampler", "schedule")
    if checkpoint := read.model():
        fields["checkpoint"] = checkpoint
    fields |= read.all(_VARIATION)
    if hires := _hires(read):
        fields["hires"] = hires
    init = {} if hires else _init(read)
    if refiner := read.all(_REFINER):
        fields["refiner"] = refiner
    _add_old_networks(read, fields)
    if lora_name and "prompt" in fields:
        fields["prompt"] = renamed_networks(fields["prompt"], str(parsed.get("Lora hashes", "")), lora_name)
    if styles_mode != "Ignore":
        _take_styles_out(fields, styles, styles_mode)
    overrides = read.overrides()
    if "Steps" in parsed:  # else it is a prompt alone, and what was filled in says nothing about it
        fields["overrides"] = overrides
    return Reading(fields, init, read.rest())


def short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _whole(value: Value) -> int:
    if not re.fullmatch(r"-?\d{1,20}", str(value), re.ASCII):
        raise ValueError("must be a whole number")
    return int(value)


def _number(value: Value) -> int | float:
    """A whole number stays one: what is read is written again in the same way."""
    if not re.fullmatch(r"-?\d{1,20}(\.\d{0,20})?", str(value), re.ASCII):
        raise ValueError("must be a number")
    return float(value) if "." in str(value) else int(value)


def _truth(value: Value) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError("must be True or False")
    return str(value).lower() == "true"


def _unless(same: str) -> Callable[[Value], str]:
    return lambda value: "" if value == same else str(value)


def _content(value: Value) -> str:
    if value not in MASKED_CONTENTS:
        raise ValueError(f"must be one of {', '.join(MASKED_CONTENTS)}")
    return str(value)


_Convert = Callable[[Value], Any]
_Table = Mapping[str, tuple[str, _Convert]]  # the infotext's name: ours, and how it is read
_FIELDS: _Table = {
    "Prompt": ("prompt", str),
    "Negative prompt": ("negative_prompt", str),
    "Steps": ("steps", _whole),
    "CFG scale": ("cfg_scale", _number),
    "Seed": ("seed", _whole),
    "Size-1": ("width", _whole),
    "Size-2": ("height", _whole),
    "Batch size": ("batch_size", _whole),
}
_VARIATION: _Table = {
    "Variation seed": ("variation_seed", _whole),
    "Variation seed strength": ("variation_strength", _number),
    "Seed resize from-1": ("seed_resize_width", _whole),
    "Seed resize from-2": ("seed_resize_height", _whole),
}
_REFINER: _Table = {"Refiner": ("checkpoint", str), "Refiner switch at": ("switch_at", _number)}
_HIRES: _Table = {
    "Hires upscaler": ("upscaler", str),
    "Hires upscale": ("scale", _number),
    "Hires resize-1": ("resize_width", _whole),
    "Hires resize-2": ("resize_height", _whole),
    "Hires steps": ("steps", _whole),
    "Hires CFG Scale": ("cfg_scale", _number),
    "Hires CFG scale": ("cfg_scale", _number),
    "Hires checkpoint": ("checkpoint", _unless("Use same checkpoint")),
    "Hires prompt": ("prompt", str),
    "Hires negative prompt": ("negative_prompt", str),
}
_INIT: _Table = {"Image CFG scale": ("image_cfg_scale", _number)}
_MASK: _Table = {
    "Mask mode": ("invert", lambda value: value == "Inpaint not masked"),
    "Masked content": ("content", _content),
    "Inpaint area": ("only_masked", lambda value: value == "Only masked"),
    "Masked area padding": ("padding", _whole),
}
_TOLD_ELSEWHERE: tuple[str, ...] = ("Version", "User", "Batch pos", "Lora hashes", "TI hashes", "VAE hash")
_TOLD_ELSEWHERE += ("First pass size-1", "First pass size-2", "Hypernet", "Hypernet strength")
_TOLD_ELSEWHERE += ("Memory fallback", "VAE tiles")  # how the machine that made it got by
_CONVERT: Mapping[str, _Convert] = {"bool": _truth, "int": _whole, "float": lambda value: float(_number(value))}


class _Reader:
    """Takes field after field out of an infotext; what cannot be read is noted."""

    def __init__(self, wanted: dict[str, Value]):
        self.wanted, self._unmapped = wanted, list[str]()

    def has(self, name: str) -> bool:
        return name in self.wanted

    def all(self, table: _Table) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, (key, convert) in table.items():
            if name in self.wanted:
                value = self.wanted.pop(name)
                try:
                    found[key] = convert(value)
                except ValueError as error:
                    self.refuse(name, value, str(error))
        return found

    def sampler(self, sampler_name: str, schedule_name: str, sampler_key: str, schedule_key: str) -> dict[str, str]:
        """ "DPM++ 2M Karras" was one name until 1.9. "Use same …" is left out."""
        sampler, schedule = str(self.wanted.pop(sampler_name, "")), str(self.wanted.pop(schedule_name, ""))
        sampler = "" if sampler == "Use same sampler" else sampler
        schedule = "" if schedule == "Use same scheduler" or not (sampler or sampler_name != "Sampler") else schedule
        sampler, inside = split_sampler(sampler)
        schedule = inside if inside and schedule in ("", "Automatic") else schedule
        result: dict[str, str] = {}
        for name, text, known, key in (
            (sampler_name, sampler, _SAMPLERS, sampler_key),
            (schedule_name, schedule, _SCHEDULES, schedule_key),
        ):
            if text.casefold() in known:
                result[key] = known[text.casefold()]
            elif text:
                self.refuse(name, text, "not known here")
        return result

    def model(self) -> str:
        name, checkpoint_hash = str(self.wanted.pop("Model", "")), str(self.wanted.pop("Model hash", ""))
        return f"{name} [{checkpoint_hash}]" if name and checkpoint_hash else name or checkpoint_hash

    def overrides(self) -> dict[str, Any]:
        """The settings that the infotext names, each validated alone."""
        overrides: dict[str, Any] = {}
        plain = Settings()
        for name in [name for name in self.wanted if _setting_of(name)]:
            value, info = self.wanted.pop(name), SETTINGS[_setting_of(name)]
            try:
                settings = plain.with_overrides({info.key: _CONVERT.get(info.type, str)(value)})
            except (SettingError, ValueError) as error:
                self.refuse(name, value, error.reason if isinstance(error, SettingError) else str(error))
                continue
            if info.effective:
                overrides[info.key] = getattr(settings, info.key)
            elif getattr(settings, info.key) != info.default:
                self.refuse(name, value, "not supported yet")
        return overrides

    def refuse(self, name: str, value: object, reason: str) -> None:
        self._unmapped.append(f"{name}: {short(value)} ({reason})")

    def rest(self) -> tuple[str, ...]:
        left = [
            f"{name}: {short(value)}"
            for name, value in self.wanted.items()
            if name not in _TOLD_ELSEWHERE and DEFAULTS.get(name) != value
        ]
        return (*self._unmapped, *left)


_SAMPLERS = {name.casefold(): info.name for info in SAMPLER_INFOS for name in (info.name, *info.aliases)}
_SCHEDULES = {n.casefold(): info.label for info in SCHEDULE_INFOS for n in (info.label, info.name, *info.aliases)}


def split_sampler(name: str) -> tuple[str, str]:
    """Sampler and schedule of an old name such as "DPM++ 2M Karras"; a name without schedule stays as it is."""
    if name.casefold() not in _SAMPLERS:
        for old in sorted(_SCHEDULES, key=len, reverse=True):
            if name.casefold().endswith(f" {old}"):
                return name[: -len(old) - 1], _SCHEDULES[old]
    return name, ""


_WRITTEN_OTHERWISE = {
    "Beta schedule alpha": "beta_dist_alpha",
    "Beta schedule beta": "beta_dist_beta",
    "FP8 weight": "fp8_storage",
    "Cache FP16 weight for LoRA": "cache_fp16_weight",
}


def _setting_of(name: str) -> str:
    """Its key. A1111 writes some settings under other names than it reads them."""
    return _WRITTEN_OTHERWISE.get(name) or INFOTEXT_SETTINGS.get(name, "")


def _hires(read: _Reader) -> dict[str, Any]:
    """Empty where there was no second pass."""
    resized = str(read.wanted.get("Hires resize-1", 0)) != "0" or str(read.wanted.get("Hires resize-2", 0)) != "0"
    present = read.has("Hires upscale") or read.has("Hires upscaler") or resized
    found = read.all(_HIRES)
    found |= read.sampler("Hires sampler", "Hires schedule type", "sampler", "schedule")
    if not present:
        return {}
    if not read.has("Denoising strength"):
        return found
    return found | read.all({"Denoising strength": ("denoising_strength", _number)})


def _init(read: _Reader) -> dict[str, Any]:
    """Empty where the picture was made from noise alone. Whether there was a mask, an infotext does not always tell:
    the mask's fields are always given, for whoever has one."""
    if not read.has("Denoising strength"):
        read.all(_MASK)
        return {}
    found = read.all({"Denoising strength": ("denoising_strength", _number), **_INIT})
    mask = read.all(_MASK)
    if blur := read.all({"Mask blur": ("blur", _whole)}):
        mask |= {"blur_x": blur["blur"], "blur_y": blur["blur"]}
    soft_values = read.all({name: (key, _number) for name, key in SOFT_INPAINTING.items()})
    if read.wanted.pop("Soft inpainting enabled", "False") == "True":
        mask["soft"] = soft_values
    return found | {"mask": mask}


_ADDNET_NAME = re.compile(r"(.*)\([0-9a-f]{4,64}\)")


def _add_old_networks(read: _Reader, fields: dict[str, Any]) -> None:
    """The extension "Additional Networks" kept LoRAs in fields of their own: they become tags of the prompt."""
    tags = []
    for name in [name for name in read.wanted if name.startswith("AddNet Model ")]:
        number = name.removeprefix("AddNet Model ")
        model, kind = str(read.wanted.pop(name)), read.wanted.pop(f"AddNet Module {number}", "")
        weight = read.wanted.pop(f"AddNet Weight A {number}", "1.0")
        read.wanted.pop(f"AddNet Weight B {number}", None)
        if kind == "LoRA":
            found = _ADDNET_NAME.fullmatch(model)
            tags.append(f"<lora:{found[1] if found else model}:{weight}>")
        else:
            read.refuse(name, model, "only LoRAs are known of this extension")
    if tags:
        read.wanted.pop("AddNet Enabled", None)
        fields["prompt"] = "\n".join(part for part in (fields.get("prompt", ""), "".join(tags)) if part)


def _take_styles_out(fields: dict[str, Any], styles: Sequence[Style], mode: StylesMode) -> None:
    prompt, negative_prompt, found = find_styles(fields.get("prompt", ""), fields.get("negative_prompt", ""), styles)
    if not found and mode != "Apply":
        return
    fields |= {"prompt": prompt, "negative_prompt": negative_prompt}
    if mode != "Discard":
        fields["styles"] = tuple(found)


_TAG = re.compile(r"<lora:([^:>]+)")


def renamed_networks(prompt: str, lora_hashes: str, name_of: Callable[[str], str | None]) -> str:
    """The prompt with the names that its LoRAs have here. `lora_hashes` is the infotext's field; `name_of` gives the
    name of the file with a hash, or None."""
    names: dict[str, str] = {}
    for pair in lora_hashes.split(","):
        name, _, digest = pair.rpartition(":")
        if name.strip() and (ours := name_of(digest.strip())):
            names[name.strip()] = ours
    return _TAG.sub(lambda tag: f"<lora:{names.get(tag[1], tag[1])}", prompt)
