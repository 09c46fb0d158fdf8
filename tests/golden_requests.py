"""A measured API request as a GenerationRequest and the settings that it runs with."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from modules.generation.request import (
    MASKED_CONTENTS,
    RESIZE_MODES,
    GenerationRequest,
    Hires,
    Init,
    Loopback,
    Mask,
    Refiner,
    SdUpscale,
    SoftInpainting,
)

SAMPLING = ("s_churn", "s_tmin", "s_tmax", "s_noise", "s_min_uncond", "initial_noise_multiplier")
SETTINGS_OF = {**{name: (name,) for name in SAMPLING}, "eta": ("eta_ancestral", "eta_ddim"), "tiling": ("tiling",)}
SOFT = "soft inpainting"


@dataclass
class Asked:
    request: GenerationRequest
    settings: dict[str, Any]
    pictures: dict[str, Path] = field(default_factory=dict)  # by the ids that the request has

    def picture(self, id: str) -> Image.Image:
        image = Image.open(self.pictures[id])
        image.load()
        return image


def asked(wanted: dict[str, Any], folder: Path, checkpoint: str = "tiny-sd1") -> Asked:
    """`wanted`: the request of a case; `folder`: of the golden data. Raises KeyError for what has no place here."""
    left = dict(wanted)
    settings = dict(left.pop("override_settings", {}))
    for name, keys in SETTINGS_OF.items():
        if name in left:
            settings |= dict.fromkeys(keys, left.pop(name))
    pictures: dict[str, Path] = {}

    def picture(path: str) -> str:
        id = f"{len(pictures):064x}"
        pictures[id] = folder / path
        return id

    sampler, schedule = left.pop("sampler_name", "Euler"), left.pop("scheduler", "Automatic")
    if sampler.endswith(" Karras"):
        sampler, schedule = sampler.removesuffix(" Karras"), "Karras"
    request = GenerationRequest(
        prompt=left.pop("prompt"),
        negative_prompt=left.pop("negative_prompt", ""),
        styles=tuple(left.pop("styles", ())),
        checkpoint=checkpoint,
        sampler=left.pop("sampler_index", sampler),
        schedule=schedule,
        steps=left.pop("steps"),
        cfg_scale=float(left.pop("cfg_scale")),
        width=left.pop("width"),
        height=left.pop("height"),
        seed=left.pop("seed"),
        variation_seed=left.pop("subseed", -1),
        variation_strength=left.pop("subseed_strength", 0),
        seed_resize_width=left.pop("seed_resize_from_w", 0),
        seed_resize_height=left.pop("seed_resize_from_h", 0),
        batch_size=left.pop("batch_size", 1),
        batch_count=left.pop("n_iter", 1),
        init=_init(left, picture),
        hires=_hires(left),
        refiner=_refiner(left),
    )
    for name in ("send_images", "save_images", "do_not_save_grid", "do_not_save_samples", "save_images"):
        left.pop(name, None)
    if left:
        raise KeyError(f"no place for {sorted(left)}")
    return Asked(request, settings, pictures)


def _init(left: dict[str, Any], picture: Any) -> Init | None:
    if "init_images" not in left:
        return None
    soft = left.pop("alwayson_scripts", {}).get(SOFT, {}).get("args")
    mask = None
    if "mask" in left:
        blur = left.pop("mask_blur", 4)
        mask = Mask(
            image=picture(left.pop("mask")),
            blur_x=blur,
            blur_y=blur,
            content=MASKED_CONTENTS[left.pop("inpainting_fill", 0)],
            invert=bool(left.pop("inpainting_mask_invert", 0)),
            only_masked=left.pop("inpaint_full_res", True),
            padding=left.pop("inpaint_full_res_padding", 0),
            round=left.pop("mask_round", True),
            soft=SoftInpainting(**dict(zip(SoftInpainting.model_fields, soft[1:], strict=True))) if soft else None,
        )
    return Init(
        images=tuple(map(picture, left.pop("init_images"))),
        denoising_strength=left.pop("denoising_strength", 0.75),
        resize_mode=RESIZE_MODES[left.pop("resize_mode", 0)],
        mask=mask,
        script=_script(left),
    )


def _script(left: dict[str, Any]) -> SdUpscale | Loopback | None:
    name, args = left.pop("script_name", None), left.pop("script_args", [])
    if name == "sd upscale":
        return SdUpscale(overlap=args[1], upscaler=args[2], scale=args[3])
    if name == "loopback":
        return Loopback(loops=args[0], final_denoising_strength=args[1], curve=args[2])
    if name is not None:
        raise KeyError(f"no place for the script {name!r}")
    return None


def _hires(left: dict[str, Any]) -> Hires | None:
    if not left.pop("enable_hr", False):
        return None
    return Hires(
        upscaler=left.pop("hr_upscaler", "Latent"),
        denoising_strength=left.pop("denoising_strength", 0.75),
        scale=float(left.pop("hr_scale", 2.0)),
        resize_width=left.pop("hr_resize_x", 0),
        resize_height=left.pop("hr_resize_y", 0),
        steps=left.pop("hr_second_pass_steps", 0),
        sampler=left.pop("hr_sampler_name", ""),
        schedule=left.pop("hr_scheduler", ""),
        prompt=left.pop("hr_prompt", ""),
        negative_prompt=left.pop("hr_negative_prompt", ""),
    )


def _refiner(left: dict[str, Any]) -> Refiner | None:
    name, at = left.pop("refiner_checkpoint", None), left.pop("refiner_switch_at", None)
    return Refiner(checkpoint=name.removesuffix(".safetensors"), switch_at=at) if name else None
