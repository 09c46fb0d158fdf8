"""One request becomes pictures: plan → encode → denoise → decode → infotext. Read it top-down, like a recipe.

Knows one model and one snapshot of the settings; nothing of queues, files or HTTP.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modules.diffusion.samplers import Step
from modules.diffusion.schedules import resolve
from modules.families.family import Model, TextOptions
from modules.generation.denoise import Encoder, denoise, notes_for, sampler_info
from modules.generation.infotext import generation_fields, write
from modules.generation.plan import ImagePlan, Plan
from modules.generation.progress import Interrupted, Progress, Skipped, Watch
from modules.generation.request import GenerationRequest
from modules.library.checkpoints import Checkpoint
from modules.runtime.version import VERSION
from modules.settings.schema import Settings


@dataclass(frozen=True)
class GeneratedImage:
    index: int  # 0-based, among all pictures of the request
    image: Image.Image
    infotext: str
    plan: ImagePlan
    complete: bool  # False: interrupted or skipped before the last step


def generate(
    plan: Plan, model: Model, checkpoint: Checkpoint, settings: Settings, watch: Watch
) -> Iterator[GeneratedImage]:
    """Yields the pictures batch by batch. `watch` is told every step, and may raise Interrupted, Skipped or Stopped.

    Images interrupted before their first step are left out. Raises NotFinite when the model gave no numbers.
    """
    encoder = Encoder(model, text_options(settings))
    for number in range(len(plan.batches)):
        images, stopped = run_batch(number, plan, model, checkpoint, settings, encoder, watch)
        yield from images
        if isinstance(stopped, Interrupted):
            return


# The mode belongs to this function and not to the generator above: it must not reach the code that takes the pictures.
@torch.inference_mode()
def run_batch(
    number: int,
    plan: Plan,
    model: Model,
    checkpoint: Checkpoint,
    settings: Settings,
    encoder: Encoder,
    watch: Watch,
) -> tuple[list[GeneratedImage], Interrupted | Skipped | None]:
    """The pictures of one batch, and what ended it early, if anything did."""
    request, batch = plan.request, plan.batches[number]
    report = partial(Progress, batch=number, batches=len(plan.batches), steps=request.steps)
    latest: Tensor | None = None  # the model's last guess at the clean latents
    stopped: Interrupted | Skipped | None = None

    def on_step(step: Step) -> None:
        nonlocal latest
        latest = step.denoised
        preview = partial(preview_of, model, step.denoised)
        watch(report("sampling", step=step.index + 1, steps=step.total, preview=preview))

    try:
        watch(report("encoding"))
        latents = denoise(batch, request, model, settings, encoder, on_step)
    except (Interrupted, Skipped) as stop:
        if latest is None:
            return [], stop
        latents, stopped = latest, stop
    watch(report("decoding", step=request.steps))
    pixels = model.decode(latents)  # (B, 3, H, W)
    if not pixels.isfinite().all():
        raise NotFinite(
            f"{checkpoint.model_name} gave values that are not numbers (NaN); no picture was made. "
            "Try --no-half, or --no-half-vae, or another checkpoint."
        )
    made = [
        GeneratedImage(
            index=image.index,
            image=picture,
            infotext=infotext_of(request, image, checkpoint, settings),
            plan=image,
            complete=stopped is None,
        )
        for image, picture in zip(batch, to_pictures(pixels), strict=True)
    ]
    return made, stopped


class NotFinite(ValueError):
    """The networks gave NaN or infinity: a black picture is not a picture."""


def infotext_of(request: GenerationRequest, image: ImagePlan, checkpoint: Checkpoint, settings: Settings) -> str:
    """The parameters of one picture, as A1111 writes them."""
    info = sampler_info(request.sampler)
    schedule = resolve(info, request.schedule)
    fields = generation_fields(
        steps=request.steps,
        sampler=info.name,
        schedule=schedule,
        cfg_scale=request.cfg_scale,
        seed=image.seed,
        width=request.width,
        height=request.height,
        checkpoint_name=checkpoint.model_name,
        checkpoint_hash=checkpoint.shorthash,
        prompt=image.prompt,
        negative_prompt=image.negative_prompt,
        settings=settings,
        version=f"easel-v{VERSION}",
        uses_ensd=info.uses_ensd,
        extra=notes_for(info, schedule, settings),
    )
    return write(image.prompt, image.negative_prompt, fields)


def text_options(settings: Settings) -> TextOptions:
    return TextOptions(settings.emphasis, settings.CLIP_stop_at_last_layers, settings.comma_padding_backtrack)


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in 0–1 -> PIL images."""
    # Cut off, not rounded, as A1111 does: pictures can be compared byte for byte.
    array = (pixels * 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in array]


def preview_of(model: Model, latents: Tensor) -> Image.Image:
    """What the batch looks like by now: one small picture, its images side by side."""
    with torch.inference_mode():
        pictures = to_pictures(model.glimpse(latents))
    width, height = pictures[0].size
    columns = next(n for n in range(1, len(pictures) + 1) if n * n >= len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet
