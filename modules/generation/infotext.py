"""Infotext: the parameters of a picture as text, written and read exactly as A1111 does. Plain data in, plain data out;
knows no files, and decides nothing about how a picture is made."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS
from modules.prompt.attention import BREAK, parse_attention
from modules.settings.schema import INFOTEXT_SETTINGS, SETTINGS, SettingError, Settings

NEGATIVE = "Negative prompt:"
MAX_INFOTEXT = 2_000_000  # characters that parse reads

Value = str | int | float | bool


def write(prompt: str, negative_prompt: str, fields: Mapping[str, object]) -> str:
    """Fields keep their order; None leaves one out. Numbers are printed as they are: 7.0 for a float, 7 for an int."""
    pairs = (
        name if name == value else f"{name}: {quote(value)}" for name, value in fields.items() if value is not None
    )
    negative = f"\n{NEGATIVE} {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{', '.join(pairs)}".strip()


def quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def generation_fields(
    *,
    steps: int,
    sampler: str,
    schedule: str,  # as it was resolved: Karras for DPM++ 2M with Automatic
    cfg_scale: float,
    seed: int,
    width: int,
    height: int,
    checkpoint_name: str,
    checkpoint_hash: str | None,  # 10 characters
    prompt: str,
    negative_prompt: str,
    settings: Settings,
    version: str,
    uses_ensd: bool = False,
    before_extra: Mapping[str, object] | None = None,
    extra: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The fields of one picture in A1111's order. `before_extra` fills the fixed places that are not arguments here, by
    their names (Variation seed, Denoising strength, …); `extra` is what sampler and networks add before the version."""
    given = dict(before_extra or {})
    emphasised = any(mark in text for text in (prompt, negative_prompt) for mark in "([")
    fields: dict[str, object] = {
        "Steps": steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": cfg_scale,
        "Image CFG scale": given.pop("Image CFG scale", None),
        "Seed": seed,
        "Face restoration": given.pop("Face restoration", None),
        "Size": f"{width}x{height}",
        "Model hash": checkpoint_hash if settings.add_model_hash_to_info else None,
        "Model": checkpoint_name if settings.add_model_name_to_info else None,
    }
    for name in (
        "VAE hash",
        "VAE",
        "Variation seed",
        "Variation seed strength",
        "Seed resize from",
        "Denoising strength",
    ):
        fields[name] = given.pop(name, None)
    fields["Conditional mask weight"] = given.pop("Conditional mask weight", None)
    fields["Clip skip"] = settings.CLIP_stop_at_last_layers if settings.CLIP_stop_at_last_layers > 1 else None
    fields["Token merging ratio"] = given.pop("Token merging ratio", None)
    fields["Token merging ratio hr"] = given.pop("Token merging ratio hr", None)
    fields["ENSD"] = settings.eta_noise_seed_delta or None if uses_ensd else None
    fields["Init image hash"] = given.pop("Init image hash", None)
    fields["RNG"] = settings.randn_source if settings.randn_source != "GPU" else None
    fields["Tiling"] = given.pop("Tiling", None)
    if given:
        raise ValueError(f"no fixed place in an infotext for {', '.join(given)}; pass it as extra")
    if emphasised and settings.emphasis != "Original":
        fields["Emphasis"] = settings.emphasis
    fields.update(extra or {})
    fields["Version"] = version if settings.add_version_to_infotext else None
    return {name: value for name, value in fields.items() if value is not None}


def parse(text: str) -> dict[str, Value]:
    """A1111's keys. What a text leaves out is filled in as A1111 does, so that the result says how the picture was
    made. Any text parses, in linear time."""
    *lines, last = text[:MAX_INFOTEXT].strip().split("\n")
    pairs = list(_pairs(last))
    if len(pairs) < 3:  # no parameters: the last line belongs to the prompt
        lines, pairs = [*lines, last], []
    prompt, negative = _prompts(lines)
    found: dict[str, Value] = {}
    for name, value in pairs:
        size = _SIZE.fullmatch(value)
        found |= {f"{name}-1": size[1], f"{name}-2": size[2]} if size else {name: value}
    found |= {"Prompt": prompt, "Negative prompt": negative}
    _restore_first_pass(found)
    for name, default in DEFAULTS.items():
        found.setdefault(name, default)
    if "Emphasis" not in found and any(
        p[1] != 1.0 and p[0] != BREAK[0] for t in (prompt, negative) for p in parse_attention(t)
    ):
        found["Emphasis"] = "Original"
    if found["FP8 weight"] != "Disable":
        found.setdefault("Cache FP16 weight for LoRA", False)
    found |= _options_of_old_versions(found)
    return found


DEFAULTS: Mapping[str, Value] = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Refiner switch by sampling steps": False,
}

_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})", re.ASCII)
_NAME = re.compile(r"[\w \-/]+")
_SPACE = re.compile(r"\s*")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*(")?')


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """`name: value` pairs, and nothing for the rest. Every character is looked at a fixed number of times."""
    position = 0
    while match := _NAME.search(line, position):
        position = match.end()
        name = match[0].lstrip(" -/")
        if len(name) < 2 or line[position : position + 1] != ":":
            continue
        position = _SPACE.match(line, position + 1).end()  # type: ignore[union-attr]  # matches nothing too
        value, position = _value(line, position)
        yield name, value


def _value(line: str, start: int) -> tuple[str, int]:
    """The value and where it ends: JSON text in quotes if a comma or the end follows, else up to the comma."""
    quoted = _QUOTED.match(line, start)
    if quoted and quoted[1] and line[quoted.end() : quoted.end() + 1] in ("", ","):
        try:
            value = json.loads(quoted[0])
        except ValueError:
            value = quoted[0]
        return str(value), quoted.end() + 1
    comma = line.find(",", start)
    end = len(line) if comma < 0 else comma
    return line[start:end], end + 1


def _prompts(lines: list[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        text = line.strip()
        if text.startswith(NEGATIVE):
            target = negative
            text = text[len(NEGATIVE) :].strip()
        target.append(text)
    return "\n".join(prompt), "\n".join(negative)


def _restore_first_pass(found: dict[str, Value]) -> None:
    """Until hires fix was rebuilt, Size was the final size, and the first pass had a field of its own."""
    first = (found.get("First pass size-1"), found.get("First pass size-2"))
    if None in first or "Hires upscale" in found or "Hires resize-1" in found or "Size-1" not in found:
        return
    found |= {"Hires resize-1": found["Size-1"], "Hires resize-2": found["Size-2"]}
    if first != ("0", "0"):
        found |= {"Size-1": str(first[0]), "Size-2": str(first[1])}


def _options_of_old_versions(found: Mapping[str, Value]) -> dict[str, Value]:
    version = re.match(r"(?:f[\w.+-]*?)?v(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:-(\d{1,6}))?", str(found.get("Version", "")))
    if version is None:
        return {}
    number = tuple(int(part or 0) for part in version.groups())
    options: dict[str, Value] = {}
    if number < (1, 6, 0, 0):
        if "[" in str(found["Prompt"]):
            options["Old prompt editing timelines"] = True
        if found.get("Sampler") in ("DDIM", "PLMS"):
            options["Pad conds v0"] = True
    if number < (1, 7, 0, 225):
        options["Downcast alphas_cumprod"] = True
    if number < (1, 8, 0, 0) and found.get("Refiner"):
        options["Refiner switch by sampling steps"] = True
    return options


@dataclass(frozen=True)
class Reading:
    """What a GenerationRequest can be made of. `fields` are its keyword arguments, of which only the overrides are
    validated; `unmapped` are the infotext's fields without effect here: "name: value", and a reason if there is one."""

    fields: dict[str, Any] = field(default_factory=dict)
    unmapped: tuple[str, ...] = ()


def to_request_fields(parsed: Mapping[str, Value], skip: tuple[str, ...] = ()) -> Reading:
    """`skip` names fields that are not to be read (the setting infotext_skip_pasting)."""
    wanted = {name: value for name, value in parsed.items() if name not in skip}
    fields: dict[str, Any] = {}
    unmapped: list[str] = []
    for name, (key, convert) in _FIELDS.items():
        if name in wanted:
            value = wanted.pop(name)
            try:
                fields[key] = convert(value)
            except ValueError as error:
                unmapped.append(f"{name}: {_short(value)} ({error})")
    fields |= _sampler_and_schedule(wanted, unmapped)
    name, checkpoint_hash = str(wanted.pop("Model", "")), str(wanted.pop("Model hash", ""))
    if name or checkpoint_hash:
        fields["checkpoint"] = f"{name} [{checkpoint_hash}]" if name and checkpoint_hash else name or checkpoint_hash
    overrides = _overrides(wanted, unmapped)
    if "Steps" in parsed:  # else it is a prompt alone, and what was filled in says nothing about it
        fields["overrides"] = overrides
    for name, value in wanted.items():
        if name not in _TOLD_ELSEWHERE and DEFAULTS.get(name) != value:
            unmapped.append(f"{name}: {_short(value)}")
    return Reading(fields, tuple(unmapped))


def _whole(value: Value) -> int:
    if not re.fullmatch(r"-?\d{1,20}", str(value), re.ASCII):
        raise ValueError("must be a whole number")
    return int(value)


def _number(value: Value) -> float:
    if not re.fullmatch(r"-?\d{1,20}(\.\d{0,20})?", str(value), re.ASCII):
        raise ValueError("must be a number")
    return float(value)


_FIELDS: Mapping[str, tuple[str, Callable[[Value], Any]]] = {
    "Prompt": ("prompt", str),
    "Negative prompt": ("negative_prompt", str),
    "Steps": ("steps", _whole),
    "CFG scale": ("cfg_scale", _number),
    "Seed": ("seed", _whole),
    "Size-1": ("width", _whole),
    "Size-2": ("height", _whole),
    "Batch size": ("batch_size", _whole),
}
_TOLD_ELSEWHERE = ("Version", "User", "Batch pos", "Lora hashes", "TI hashes")


def _sampler_and_schedule(wanted: dict[str, Value], unmapped: list[str]) -> dict[str, str]:
    """ "DPM++ 2M Karras" was one name until 1.9."""
    result: dict[str, str] = {}
    if "Sampler" not in wanted:
        return result
    sampler = str(wanted.pop("Sampler"))
    schedule = str(wanted.pop("Schedule type", "Automatic"))
    samplers = {name.casefold(): info.name for info in SAMPLER_INFOS for name in (info.name, *info.aliases)}
    schedules = {n.casefold(): info.label for info in SCHEDULE_INFOS for n in (info.label, info.name, *info.aliases)}
    for old in sorted(schedules.values(), key=len, reverse=True):
        if sampler.casefold() not in samplers and sampler.casefold().endswith(f" {old.casefold()}"):
            sampler, schedule = sampler[: -len(old) - 1], old if schedule == "Automatic" else schedule
    for name, text, known, key in (
        ("Sampler", sampler, samplers, "sampler"),
        ("Schedule type", schedule, schedules, "schedule"),
    ):
        if text.casefold() in known:
            result[key] = known[text.casefold()]
        else:
            unmapped.append(f"{name}: {_short(text)} (not known here)")
    return result


def _overrides(wanted: dict[str, Value], unmapped: list[str]) -> dict[str, Any]:
    """The settings that the infotext names, each validated alone."""
    overrides: dict[str, Any] = {}
    plain = Settings()
    for name in [name for name in wanted if name in INFOTEXT_SETTINGS]:
        value, info = wanted.pop(name), SETTINGS[INFOTEXT_SETTINGS[name]]
        try:
            converted = _CONVERT.get(info.type, str)(value)
            settings = plain.with_overrides({info.key: converted})
        except (SettingError, ValueError) as error:
            reason = error.reason if isinstance(error, SettingError) else error
            unmapped.append(f"{name}: {_short(value)} ({reason})")
            continue
        if info.effective:
            overrides[info.key] = getattr(settings, info.key)
        elif getattr(settings, info.key) != info.default:
            unmapped.append(f"{name}: {_short(value)} (not supported yet)")
    return overrides


def _truth(value: Value) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError("must be True or False")
    return str(value).lower() == "true"


_CONVERT: Mapping[str, Any] = {"bool": _truth, "int": _whole, "float": _number}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"
