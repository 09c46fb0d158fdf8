"""InvokeAI: invokeai_metadata (3.x on), sd-metadata (2.x) and Dream (the first). Its prompts strengthen by `word++` and
`(words)1.2`, and the oldest keep the negative prompt in brackets."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from modules.generation.foreign.draft import Draft, Foreign, load_object, number, shown, stem, whole

_SILENT: tuple[str, ...] = (
    "app_version",
    "generation_mode",
    "rand_device",
    "positive_style_prompt",
    "negative_style_prompt",
    "type",
)
_SILENT += ("ref_images", "canvas_v2_metadata", "cfg_rescale_multiplier", "init_image", "hrf_enabled", "variations")


def read(items: Mapping[str, str]) -> Foreign | None:
    found = load_object(items.get("invokeai_metadata"))
    if found:
        return _from_metadata(found)
    old = load_object(items.get("sd-metadata"))
    if isinstance(old.get("image"), dict):
        return _from_sd_metadata(old, dict(old["image"]))
    return _from_dream(items["Dream"]) if items.get("Dream", "").startswith('"') else None


def _from_metadata(found: dict[str, Any]) -> Foreign:
    draft = Draft("InvokeAI", found.get("app_version"))
    positive, negative = found.pop("positive_prompt", ""), found.pop("negative_prompt", "")
    draft.prompt, draft.negative = weights(_text(positive), draft), weights(_text(negative), draft)
    draft.take(found, "steps", "Steps", whole)
    draft.sampler(found.pop("scheduler", None))
    draft.take(found, "cfg_scale", "CFG scale")
    draft.take(found, "seed", "Seed", whole)
    draft.size(found.pop("width", None), found.pop("height", None))
    draft.set("Model", _name(found.pop("model", None)), stem)
    draft.set("VAE", _name(found.pop("vae", None)), stem)
    if skipped := found.pop("clip_skip", None):
        draft.set("Clip skip", skipped, lambda value: whole(value) + 1)
    if found.get("generation_mode", "txt2img") not in ("txt2img", "sdxl_txt2img") and "strength" in found:
        draft.take(found, "strength", "Denoising strength")
        draft.note("the init image: it is not in the picture")
    if found.pop("seamless_x", False) and found.pop("seamless_y", False):
        draft.fields["Tiling"] = True
    if found.pop("hrf_enabled", False):
        draft.take(found, "hrf_strength", "Denoising strength")
        width, height = found.pop("hrf_width", None), found.pop("hrf_height", None)
        if width and height:  # what was made; width and height are of the first pass
            draft.set("Hires resize", f"{width}x{height}", _size)
        method = found.pop("hrf_method", None)
        draft.fields["Hires upscaler"] = "Latent" if method in (None, "bilinear") else stem(shown(method))
    loras = found.pop("loras", None)
    for lora in loras if isinstance(loras, list) else []:
        if isinstance(lora, dict):
            draft.lora(_name(lora.get("model", lora.get("lora"))) or _name(lora), lora.get("weight", 1))
    if refiner := _name(found.pop("refiner_model", None)):
        draft.set("Refiner", refiner, stem)
        draft.take(found, "refiner_start", "Refiner switch at")
    if found.get("rand_device", "cpu") == "cpu":
        draft.fields["RNG"] = "CPU"
    draft.note_rest(found, _SILENT)
    return draft.finish()


def _from_sd_metadata(old: dict[str, Any], image: dict[str, Any]) -> Foreign:
    draft = Draft("InvokeAI", old.get("app_version"))
    prompt = image.pop("prompt", "")
    if isinstance(prompt, list):
        prompt = " ".join(
            one["prompt"] for one in prompt if isinstance(one, dict) and isinstance(one.get("prompt"), str)
        )
    positive, negative = _split_negative(_text(prompt))
    draft.prompt, draft.negative = weights(positive, draft), weights(negative, draft)
    draft.take(image, "steps", "Steps", whole)
    draft.sampler(image.pop("sampler", None))
    draft.take(image, "cfg_scale", "CFG scale")
    draft.take(image, "seed", "Seed", whole)
    draft.size(image.pop("width", None), image.pop("height", None))
    draft.set("Model", old.get("model_weights"), stem)
    if image.get("type") == "img2img":
        draft.take(image, "strength", "Denoising strength")
        draft.note("the init image: it is not in the picture")
    if image.pop("seamless", False):
        draft.fields["Tiling"] = True
    draft.note_rest(image, (*_SILENT, "strength", "height", "width"))
    return draft.finish()


_SWITCHES = {
    "-s": "Steps",
    "-S": "Seed",
    "-C": "CFG scale",
    "-A": "Sampler",
    "-W": "width",
    "-H": "height",
    "-f": "strength",
}


def _from_dream(text: str) -> Foreign:
    """`"a prompt" -s 50 -S 1234 -W 512 -H 512 -C 7.5 -A k_lms`"""
    draft = Draft("InvokeAI")
    try:
        words = shlex.split(text[:20_000])
    except ValueError:  # quotes that do not end
        words = text[:20_000].replace('"', "").rsplit(" -s", 1)[:1]
    positive, negative = _split_negative(words[0])
    draft.prompt, draft.negative = weights(positive, draft), weights(negative, draft)
    found: dict[str, str] = {}
    rest = iter(words[1:])
    for word in rest:
        name = _SWITCHES.get(word[:2])
        if name:
            found[name] = word[2:] or next(rest, "")
        else:
            draft.note(shown(word))
    for name, convert in (("Steps", whole), ("Seed", whole), ("CFG scale", number)):
        draft.set(name, found.get(name), convert)
    draft.sampler(found.get("Sampler"))
    draft.size(found.get("width"), found.get("height"))
    draft.set("Denoising strength", found.get("strength"))
    return draft.finish()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _name(model: Any) -> Any:
    """Of a model, by the names of its entries through the versions."""
    if isinstance(model, dict):
        found = next((model[key] for key in ("model_name", "name", "base_model_name") if model.get(key)), None)
        return found
    return model


def _size(value: str) -> str:
    if not re.fullmatch(r"\d{1,6}x\d{1,6}", value):
        raise ValueError("is no size")
    return value


def _split_negative(prompt: str) -> tuple[str, str]:
    """What stands in brackets is not wanted."""
    negatives = re.findall(r"\[([^\[\]]*)\]", prompt)
    return re.sub(r"\s*\[[^\[\]]*\]", "", prompt).strip(), ", ".join(part.strip() for part in negatives)


_CLOSED = re.compile(r"\)(\++|-+|\d+\.?\d*|\.\d+)")
_WORD = re.compile(r"(?<![\w)])([^\W_][\w']*)(\++|-{1,10})(?=[\s,.;)]|$)")


def weights(text: str, draft: Draft) -> str:
    """InvokeAI's weights as A1111's; a pair of parentheses without one is plain text."""
    if re.search(r"\)\.(swap|blend|and)\(", text):
        draft.note("parts of the prompt that are swapped, blended or joined: .swap(), .blend(), .and()")
    text = text.replace("[", "\\[").replace("]", "\\]")
    text = _WORD.sub(lambda found: f"({found[1]}){found[2]}", text)
    closing = {found.start(): found for found in _CLOSED.finditer(text)}
    weighted = _pairs(text, closing)
    parts: list[str] = []
    position = 0
    for index, character in enumerate(text):
        if character not in "()" or index < position or text[index - 1 : index] == "\\":
            continue
        parts.append(text[position:index])
        position = index + 1
        if character == "(":
            parts.append("(" if index in weighted else "\\(")
        elif index in weighted:
            parts.append(f":{number(_factor(closing[index][1]))})")
            position = closing[index].end()
        else:
            parts.append("\\)")
    return "".join(parts) + text[position:]


def _pairs(text: str, closing: Mapping[int, Any]) -> set[int]:
    """Where the parentheses are that have a weight."""
    opened: list[int] = []
    found: set[int] = set()
    for index, character in enumerate(text):
        if text[index - 1 : index] == "\\":
            continue
        if character == "(":
            opened.append(index)
        elif character == ")" and opened:
            start = opened.pop()
            found |= {start, index} if index in closing else set()
    return found


def _factor(text: str) -> float:
    if text[0] in "+-":
        return max(0.01, min(100.0, float((1.1 if text[0] == "+" else 0.9) ** min(len(text), 40))))
    return min(100.0, float(text[:10]))
