"""What a request asks of the networks at most: how much at once, and how large. Plain numbers, for the planner of
memory."""

from modules.families.levels import Work
from modules.generation.hires import sizes_of
from modules.generation.plan import ImagePlan, Plan, split
from modules.library.upscalers import LATENT_UPSCALE_MODES
from modules.prompt.composition import compose
from modules.settings.schema import Settings


def work_of(plan: Plan, settings: Settings) -> Work:
    """Of the largest batch and the largest pass."""
    request, sizes = plan.request, sizes_of(plan.request)
    passes = [(request.width, request.height), *([sizes.target] if sizes else [])]
    width, height = max(passes, key=lambda size: size[0] * size[1])
    again = request.hires is not None and request.hires.upscaler not in LATENT_UPSCALE_MODES
    return Work(
        pictures=max(map(len, plan.batches), default=1),
        rows=max((rows_of(batch, settings.batch_cond_uncond) for batch in plan.batches), default=1),
        width=width,
        height=height,
        encodes=request.init is not None or again,
    )


def rows_of(batch: tuple[ImagePlan, ...], at_once: bool) -> int:
    """Prompts, each of which may have several parts; and negative prompts, if they go through the UNet `at_once`."""
    parts = sum(len(compose(split(image.prompt).text)) for image in batch)
    return parts + len(batch) if at_once else parts
