"""Easy Diffusion: one text a parameter in a PNG, or all of them as JSON in an EXIF comment."""

from collections.abc import Mapping
from typing import Any

from modules.generation.foreign.draft import Draft, Foreign, load, load_object, stem, whole

_SILENT: tuple[str, ...] = (
    "num_outputs",
    "vram_usage_level",
    "output_format",
    "output_quality",
    "metadata_output_format",
)
_SILENT += ("stream_progress_updates", "stream_image_progress", "show_only_filtered_image", "session_id", "use_cpu")
_SILENT += ("stream_image_progress_interval", "original_prompt", "used_random_seed", "active_tags", "inactive_tags")
_NONE = (None, "None", "none", "")


def read(items: Mapping[str, str]) -> Foreign | None:
    found: dict[str, Any] = dict(items)
    if "num_inference_steps" not in found:
        found = load_object(items.get("exif comment"))
    if "num_inference_steps" not in found or "prompt" not in found:
        return None
    draft = Draft("Easy Diffusion")
    draft.prompt, draft.negative = str(found.pop("prompt")), str(found.pop("negative_prompt", "") or "")
    draft.take(found, "num_inference_steps", "Steps", whole)
    draft.sampler(found.pop("sampler_name", None), found.pop("scheduler_name", None))
    draft.take(found, "guidance_scale", "CFG scale")
    draft.take(found, "seed", "Seed", whole)
    draft.size(found.pop("width", None), found.pop("height", None))
    for key, name in (("use_stable_diffusion_model", "Model"), ("use_vae_model", "VAE")):
        if found.get(key) in _NONE:
            found.pop(key, None)
        draft.take(found, key, name, stem)
    if str(found.pop("clip_skip", False)) in ("True", "true", "1"):
        draft.fields["Clip skip"] = 2
    if "prompt_strength" in found and found.get("init_image") not in _NONE:
        draft.take(found, "prompt_strength", "Denoising strength")
    names, strengths = found.pop("use_lora_model", None), found.pop("lora_alpha", None)
    names, strengths = _listed(names), _listed(strengths)
    for index, name in enumerate(names):
        if name not in _NONE:
            draft.lora(name, strengths[index] if index < len(strengths) else 1)
    draft.note_rest({name: value for name, value in found.items() if value not in ("None", "False", "[]")}, _SILENT)
    return draft.finish()


def _listed(value: Any) -> list[Any]:
    found = load(value.replace("'", '"')) if isinstance(value, str) and value.startswith("[") else value
    return found if isinstance(found, list) else [] if found is None else [found]
