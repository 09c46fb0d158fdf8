"""SwarmUI: JSON with sui_image_params, in a PNG's parameters or as an EXIF comment."""

from collections.abc import Mapping
from typing import Any

from modules.generation.foreign.draft import Draft, Foreign, load_object, stem, whole

_SILENT: tuple[str, ...] = (
    "aspectratio",
    "swarm_version",
    "automaticvae",
    "images",
    "personalnote",
    "date",
    "generation_time",
    "sidelength",
)
_SILENT += ("refinermethod", "refinerupscalemethod", "refinersteps", "batchsize", "colorcorrectionbehavior")


def read(items: Mapping[str, str]) -> Foreign | None:
    for key in ("parameters", "exif comment"):
        params = load_object(items.get(key)).get("sui_image_params")
        if isinstance(params, dict):
            return _convert(dict(params), load_object(items.get(key)))
    return None


def _convert(params: dict[str, Any], whole_text: dict[str, Any]) -> Foreign:
    draft = Draft("SwarmUI", params.get("swarm_version"))
    prompt, negative = params.pop("prompt", ""), params.pop("negativeprompt", "")
    draft.prompt, draft.negative = (text if isinstance(text, str) else "" for text in (prompt, negative))
    draft.take(params, "steps", "Steps", whole)
    draft.sampler(params.pop("sampler", None), params.pop("scheduler", None))
    draft.take(params, "cfgscale", "CFG scale")
    draft.take(params, "seed", "Seed", whole)
    draft.size(params.pop("width", None), params.pop("height", None))
    draft.take(params, "model", "Model", stem)
    draft.take(params, "vae", "VAE", stem)
    if draft.fields.get("VAE") in ("Automatic", "None"):
        del draft.fields["VAE"]
    draft.take(params, "variationseed", "Variation seed", whole)
    draft.take(params, "variationseedstrength", "Variation seed strength")
    if "Variation seed strength" not in draft.fields:
        draft.fields.pop("Variation seed", None)
    if params.get("clipstopatlayer") is not None:
        draft.set("Clip skip", params.pop("clipstopatlayer"), lambda layer: abs(whole(layer)))
    if "initimage" in params or "initimagecreativity" in params:
        draft.take(params, "initimagecreativity", "Denoising strength")
        draft.note("the init image: it is not in the picture")
        params.pop("initimage", None)
    draft.fields["RNG"] = "CPU"
    _refine(params, draft)
    loras, strengths = params.pop("loras", None), params.pop("loraweights", None)
    loras, strengths = (_listed(value) for value in (loras, strengths))
    for index, name in enumerate(loras):
        draft.lora(name, strengths[index] if index < len(strengths) else 1)
    _add_hash(whole_text.get("sui_models"), draft)
    draft.note_rest(params, _SILENT)
    return draft.finish()


def _refine(params: dict[str, Any], draft: Draft) -> None:
    """Its refiner is a second pass, at a larger size if it has an upscale, or with another model."""
    control, upscale = params.pop("refinercontrolpercentage", None), params.pop("refinerupscale", None)
    if control is None:
        return
    if upscale is not None and str(upscale) not in ("1", "1.0"):
        draft.set("Hires upscale", upscale)
        draft.set("Denoising strength", control)
        method = params.pop("refinerupscalemethod", "")
        latent = isinstance(method, str) and method.startswith("latent-")
        name = str(method).removeprefix("latent-").removeprefix("model-").removeprefix("pixel-")
        draft.fields["Hires upscaler"] = (
            f"Latent ({name})" if latent and name != "bilinear" else "Latent" if latent else stem(name or "None")
        )
        draft.take(params, "refinersteps", "Hires steps", whole)
        draft.take(params, "refinermodel", "Hires checkpoint", stem)
    elif "refinermodel" in params:
        draft.take(params, "refinermodel", "Refiner", stem)
        draft.set("Refiner switch at", control, lambda value: round(1 - float(value), 4))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else value.split(",") if isinstance(value, str) and value else []


def _add_hash(models: Any, draft: Draft) -> None:
    """Of the model: its whole sha256, of which A1111's name is the beginning."""
    for model in models if isinstance(models, list) else []:
        digest = str(model.get("hash", "")).removeprefix("0x") if isinstance(model, dict) else ""
        if isinstance(model, dict) and model.get("param") == "model" and len(digest) == 64:
            draft.fields["Model hash"] = digest[:10]
