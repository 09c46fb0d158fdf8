"""Infotext: the parameters of a picture as text, written and read exactly as A1111 does. Plain data in, plain data out;
knows no files, and decides nothing about how a picture is made."""

import json
import math
import re
from collections.abc import Iterator, Mapping

from modules.generation.request import MAX_PROMPT
from modules.prompt.attention import BREAK, parse_attention
from modules.prompt.networks import extract_networks
from modules.prompt.schedule import Timeline
from modules.prompt.schedule import schedule as schedule_of
from modules.settings.schema import Settings

NEGATIVE = "Negative prompt:"
MAX_INFOTEXT = 500_000  # characters that parse reads: four prompts of the greatest length, and some

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
    noted = dict(extra or {})
    fields |= {name: noted.pop(name, None) for name in FP8}
    for name in ("VAE hash", "VAE", *VARIATION, "Denoising strength", "Conditional mask weight"):
        fields[name] = given.pop(name, None)
    fields["Clip skip"] = settings.CLIP_stop_at_last_layers if settings.CLIP_stop_at_last_layers > 1 else None
    fields["Token merging ratio"] = given.pop("Token merging ratio", None)
    fields["Token merging ratio hr"] = given.pop("Token merging ratio hr", None)
    fields["ENSD"] = settings.eta_noise_seed_delta or None if uses_ensd else None
    fields["Init image hash"] = given.pop("Init image hash", None)
    fields["RNG"] = settings.randn_source if settings.randn_source != "GPU" else None
    fields["Tiling"] = given.pop("Tiling", None)
    user = given.pop("User", None)
    if given:
        raise ValueError(f"no fixed place in an infotext for {', '.join(given)}; pass it as extra")
    if settings.emphasis != "Original" and any(_emphasised(text, steps) for text in (prompt, negative_prompt)):
        noted.setdefault("Emphasis", settings.emphasis)
    fields |= in_order(noted)
    fields |= {"Version": version if settings.add_version_to_infotext else None, "User": user}
    return {name: value for name, value in fields.items() if value is not None}


FP8 = ("FP8 weight", "Cache FP16 weight for LoRA")
VARIATION = ("Variation seed", "Variation seed strength", "Seed resize from")
# A1111 writes fields in the order in which they come about while a picture is made: these are the stations. What is of
# no station comes from extensions, which mostly speak before all but scripts.
ORDER: tuple[tuple[str, ...], ...] = (
    ("Script", "X Type", "X Values", "Fixed X Values", "Y Type", "Y Values", "Fixed Y Values", "Z Type", "Z Values")
    + ("Fixed Z Values", "Final denoising strength", "Denoising curve", "SD upscale overlap", "SD upscale upscaler"),
    (),  # extensions
    ("Hires checkpoint", "Hires sampler", "Hires CFG Scale", "Hires prompt", "Hires negative prompt")
    + ("Hires schedule type", "Hires upscale", "Hires resize", "Hires steps", "Hires upscaler")
    + ("Mask mode", "Mask blur", "Inpaint area", "Masked area padding", "Masked content", "VAE Encoder"),
    ("Lora hashes", "Hypernet hashes"),
    ("Old prompt editing timelines",),
    ("TI hashes", "Emphasis"),
    ("Downcast alphas_cumprod", "Noise Schedule"),
    ("Noise multiplier",),
    ("Discard penultimate sigma", "Schedule min sigma", "Schedule max sigma", "Schedule rho")
    + ("Beta schedule alpha", "Beta schedule beta"),
    ("SGM noise multiplier", "Extra noise"),
    ("Eta", "Eta DDIM", "Sigma churn", "Sigma tmin", "Sigma tmax", "Sigma noise", "DDPM variance"),
    ("Hires refiner", "Refiner", "Refiner switch at", "Skip Early CFG", "NGMS", "NGMS all steps"),
    ("Pad conds", "Pad conds v0", "Step caching", "Attention"),
    ("VAE Decoder",),
)
_EXTENSIONS = ORDER.index(())
_STATIONS = {name: station for station, names in enumerate(ORDER) for name in names}


def in_order(fields: Mapping[str, object]) -> dict[str, object]:
    """By the stations of A1111; of one station, in the order in which they come."""
    return dict(sorted(fields.items(), key=lambda item: _STATIONS.get(item[0], _EXTENSIONS)))


def _emphasised(prompt: str, steps: int) -> bool:
    """Whether any text that is encoded has brackets; those of prompt editing are gone by then."""
    texts = schedule_of(extract_networks(prompt)[0], Timeline(steps))
    return any(mark in until.text for until in texts for mark in "([")


def parse(text: str, old_options: bool = True) -> dict[str, Value]:
    """A1111's keys. What a text leaves out is filled in as A1111 does, so that the result says how the picture was
    made; `old_options` are those that an old version had no choice of (the setting auto_backcompat). Any text parses,
    in linear time."""
    lines, pairs = _split(text)
    prompt, negative = _prompts(lines)
    found: dict[str, Value] = {}
    for name, value in pairs:
        size = _SIZE.fullmatch(value)
        found |= {f"{name}-1": size[1], f"{name}-2": size[2]} if size else {name: value}
    if hypernetwork := found.get("Hypernet"):  # had a field of its own before it went into the prompt
        prompt += f"<hypernet:{hypernetwork}:{found.get('Hypernet strength', '1.0')}>"
    found |= {"Prompt": prompt, "Negative prompt": negative}
    _restore_first_pass(found)
    for name, default in DEFAULTS.items():
        found.setdefault(name, default)
    if "Emphasis" not in found and any(
        p[1] != 1.0 and p[0] != BREAK[0] for t in (prompt, negative) for p in parse_attention(t[:MAX_PROMPT])
    ):
        found["Emphasis"] = "Original"
    if found["FP8 weight"] != "Disable":
        found.setdefault("Cache FP16 weight for LoRA", False)
    return found | (_options_of_old_versions(found) if old_options else {})


def stated(text: str) -> dict[str, str]:
    """The parameters that a text states itself, as they stand there: nothing is filled in, and sizes stay whole."""
    return dict(_split(text)[1])


def _split(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The lines of the prompts, and the parameters of the last line."""
    *lines, last = text[:MAX_INFOTEXT].strip().split("\n")
    pairs = list(_pairs(last))
    # With fewer there are no parameters: the last line belongs to the prompt.
    return (lines, pairs) if len(pairs) >= 3 else ([*lines, last], [])


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
    first = (str(found.get("First pass size-1", "")), str(found.get("First pass size-2", "")))
    if "" in first or "Hires upscale" in found or "Hires resize-1" in found or "Size-1" not in found:
        return
    width, height = int(found["Size-1"]), int(found["Size-2"])
    first_width, first_height = first_pass_size(width, height) if "0" in first else map(int, first)
    found |= {"Size-1": first_width, "Size-2": first_height, "Hires resize-1": width, "Hires resize-2": height}


def first_pass_size(width: int, height: int) -> tuple[int, int]:
    """What the first hires fix took for its first pass where nothing was said: about 512×512, in steps of 64."""
    scale = math.sqrt(512 * 512 / max(1, width * height))
    return math.ceil(scale * width / 64) * 64, math.ceil(scale * height / 64) * 64


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
