"""Which fields the infotext of a picture has, in A1111's order: from the request, the settings, and what the engine
found out. Plain values; knows no torch and no files."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from modules.diffusion.names import sampler_info
from modules.generation.infotext import generation_fields
from modules.generation.plan import ImagePlan
from modules.generation.request import GenerationRequest, Hires, Loopback, Mask, SdUpscale, SoftInpainting
from modules.settings.schema import Settings

Fields = dict[str, object]


@dataclass(frozen=True)
class RunFacts:
    """What the request leaves open, and the engine knows."""

    checkpoint_name: str
    checkpoint_hash: str | None  # 10 characters
    schedule: str  # of the (first) pass, resolved: Karras for DPM++ 2M with Automatic
    version: str
    vae_name: str | None = None  # None: the checkpoint's own
    vae_hash: str | None = None  # 10 characters
    hires_schedule: str = "Automatic"  # of the second pass, resolved in the same way
    hires_checkpoint: str = ""  # short title, "x [hash]"; "": the same
    init_hash: str | None = None  # of the init image, where it is kept
    sees_mask: bool = False  # the checkpoint is made for inpainting: 9 channels
    edits: bool = False  # the checkpoint is instruct-pix2pix: the image has a CFG scale of its own
    user: str | None = None
    # What sampler, networks and scripts add, by the names that infotexts have. A1111 writes such fields in the order in
    # which they come about; between groups (ORDER in infotext.py) the order here does not matter, within one it does.
    noted: Mapping[str, object] = field(default_factory=dict)


def fields_of(request: GenerationRequest, image: ImagePlan, facts: RunFacts, settings: Settings) -> Fields:
    """All fields of one picture. `write(image.prompt, image.negative_prompt, …)` makes the text of them."""
    init, hires = request.init, request.hires
    info = sampler_info(request.sampler)
    extra: Fields = script_fields(init.script) if init else {}
    if init and init.mask:
        extra |= soft_inpainting_fields(init.mask.soft) if init.mask.soft else {}
        extra |= inpaint_fields(init.mask)
    if hires:
        extra |= hires_fields(hires, request.sampler, image, facts)
    extra |= {"Step caching": settings.step_caching} if settings.step_caching > 1 else {}
    extra |= noise_fields(settings, init=init is not None, hires=hires is not None)
    fixed = {
        "Image CFG scale": init.image_cfg_scale if init and facts.edits else None,
        "VAE hash": facts.vae_hash if settings.add_vae_hash_to_info else None,
        "VAE": facts.vae_name if settings.add_vae_name_to_info else None,
        **variation_fields(request, image),
        "Denoising strength": init.denoising_strength if init else hires.denoising_strength if hires else None,
        "Conditional mask weight": settings.inpainting_mask_weight if facts.sees_mask else None,
        **token_merging_fields(settings, init=init is not None, hires=hires is not None),
        "Init image hash": facts.init_hash,
        "Tiling": settings.tiling or None,
        "User": facts.user if settings.add_user_name_to_info else None,
    }
    return generation_fields(
        steps=request.steps,
        sampler=request.sampler,
        schedule=facts.schedule,
        cfg_scale=request.cfg_scale,
        seed=image.seed,
        width=request.width,
        height=request.height,
        checkpoint_name=facts.checkpoint_name,
        checkpoint_hash=facts.checkpoint_hash,
        prompt=image.prompt,
        negative_prompt=image.negative_prompt,
        settings=settings,
        version=facts.version,
        uses_ensd=info.uses_ensd and settings.eta_ancestral != 0,
        before_extra=fixed,
        extra={**extra, **facts.noted},
    )


def variation_fields(request: GenerationRequest, image: ImagePlan) -> Fields:
    fields: Fields = {}
    if request.variation_strength:
        fields["Variation seed"] = image.variation_seed
        fields["Variation seed strength"] = request.variation_strength
    if request.seed_resize_width and request.seed_resize_height:
        fields["Seed resize from"] = f"{request.seed_resize_width}x{request.seed_resize_height}"
    return fields


def script_fields(script: SdUpscale | Loopback | None) -> Fields:
    if isinstance(script, SdUpscale):
        return {"SD upscale overlap": script.overlap, "SD upscale upscaler": script.upscaler}
    if isinstance(script, Loopback):
        return {"Final denoising strength": script.final_denoising_strength, "Denoising curve": script.curve}
    return {}


def hires_fields(hires: Hires, sampler: str, image: ImagePlan, facts: RunFacts) -> Fields:
    """What is as in the first pass is left out."""
    fields: Fields = {}
    if facts.hires_checkpoint:
        fields["Hires checkpoint"] = facts.hires_checkpoint
    if hires.sampler and hires.sampler != sampler:
        fields["Hires sampler"] = hires.sampler
    if hires.cfg_scale:  # A1111 has no such thing; the name is Forge's
        fields["Hires CFG Scale"] = hires.cfg_scale
    if image.hires_prompt != image.prompt:
        fields["Hires prompt"] = image.hires_prompt
    if image.hires_negative_prompt != image.negative_prompt:
        fields["Hires negative prompt"] = image.hires_negative_prompt
    if facts.hires_schedule not in ("Automatic", facts.schedule):
        fields["Hires schedule type"] = facts.hires_schedule
    if hires.resize_width or hires.resize_height:
        fields["Hires resize"] = f"{hires.resize_width}x{hires.resize_height}"
    else:
        fields["Hires upscale"] = hires.scale
    if hires.steps:
        fields["Hires steps"] = hires.steps
    fields["Hires upscaler"] = hires.upscaler
    return fields


def inpaint_fields(mask: Mask) -> Fields:
    fields: Fields = {}
    if mask.invert:
        fields["Mask mode"] = "Inpaint not masked"
    if mask.blur_x and mask.blur_x == mask.blur_y:  # A1111 has no words for a blur of two widths
        fields["Mask blur"] = mask.blur_x
    if mask.only_masked:
        fields |= {"Inpaint area": "Only masked", "Masked area padding": mask.padding}
    if mask.content != "original":
        fields["Masked content"] = mask.content
    return fields


SOFT_INPAINTING = {  # the infotext's name: ours
    "Soft inpainting schedule bias": "mask_blend_power",
    "Soft inpainting preservation strength": "mask_blend_scale",
    "Soft inpainting transition contrast boost": "inpaint_detail_preservation",
    "Soft inpainting mask influence": "composite_mask_influence",
    "Soft inpainting difference threshold": "composite_difference_threshold",
    "Soft inpainting difference contrast": "composite_difference_contrast",
}


def soft_inpainting_fields(soft: SoftInpainting) -> Fields:
    values = {name: getattr(soft, attribute) for name, attribute in SOFT_INPAINTING.items()}
    return {"Soft inpainting enabled": True, **values}


def memory_fields(fallback: object, tiles: int | None) -> Fields:
    """`fallback`: what was done after memory had not sufficed; `tiles`: pixels of those that the VAE took. Fields of
    ours; A1111 reads over them."""
    return {**({"Memory fallback": str(fallback)} if fallback else {}), **({"VAE tiles": tiles} if tiles else {})}


def refiner_fields(title: str, switch_at: float, settings: Settings, hires: bool) -> Fields:
    """For the engine to note when the refiner (its short title) has taken over, and not before."""
    fields: Fields = {"Refiner": title, "Refiner switch at": switch_at}
    if hires and settings.hires_fix_refiner_pass != "second pass":
        fields = {"Hires refiner": settings.hires_fix_refiner_pass, **fields}
    return fields


def noise_fields(settings: Settings, init: bool, hires: bool) -> Fields:
    fields: Fields = {}
    if init and settings.initial_noise_multiplier != 1.0:
        fields["Noise multiplier"] = settings.initial_noise_multiplier
    if (init or hires) and settings.img2img_extra_noise > 0:
        fields["Extra noise"] = settings.img2img_extra_noise
    return fields


def token_merging_fields(settings: Settings, init: bool, hires: bool) -> Fields:
    """Each ratio falls back to the one for all."""
    for_all = settings.token_merging_ratio
    ratio = (settings.token_merging_ratio_img2img if init else 0) or for_all
    fields: Fields = {"Token merging ratio": ratio or None}
    if hires:
        fields["Token merging ratio hr"] = settings.token_merging_ratio_hr or for_all or None
    return fields
