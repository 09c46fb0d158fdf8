"""Between the two passes of hires fix: the first pass's latents, enlarged."""

from collections.abc import Sequence

from torch import Tensor

from modules.families.family import Model
from modules.generation.initial import encoded
from modules.generation.latent_upscale import upscale_latent
from modules.generation.pixels import to_pictures
from modules.generation.plan import ImagePlan
from modules.generation.request import GenerationRequest
from modules.generation.shelf import Shelf
from modules.imaging.resize import HiresSizes, hires_sizes, resize_image
from modules.library.upscalers import LATENT_UPSCALE_MODES
from modules.settings.schema import Settings


def as_made(request: GenerationRequest, settings: Settings) -> GenerationRequest:
    """With use_old_hires_fix_width_height: the request whose size is that of its first pass."""
    if request.hires is None or not settings.use_old_hires_fix_width_height:
        return request
    sizes = hires_sizes(request.width, request.height, final_size_given=True)
    hires = request.hires.model_copy(update={"resize_width": request.width, "resize_height": request.height})
    return request.model_copy(update={"width": sizes.first[0], "height": sizes.first[1], "hires": hires})


def sizes_of(request: GenerationRequest) -> HiresSizes | None:
    """What both passes are as large as; None: there is only one."""
    hires = request.hires
    if hires is None:
        return None
    return hires_sizes(request.width, request.height, hires.scale, hires.resize_width, hires.resize_height)


def enlarge(
    latents: Tensor,
    upscaler: str,
    sizes: HiresSizes,
    batch: Sequence[ImagePlan],
    model: Model,
    shelf: Shelf,
    settings: Settings,
) -> Tensor:
    """(B, C, h, w) of the first pass -> (B, C, H, W) of the second's size."""
    width, height = sizes.upscaled
    factor = model.latent.factor
    if upscaler in LATENT_UPSCALE_MODES:
        larger = upscale_latent(latents, width // factor, height // factor, upscaler)
        rows, columns = sizes.part(larger.shape[3], larger.shape[2])
        return larger[:, :, rows, columns].contiguous()
    upscale = shelf.upscaler(upscaler, settings)
    pictures = [
        resize_image("Just resize", picture, *sizes.target, upscale) for picture in to_pictures(model.decode(latents))
    ]
    return encoded(model, pictures, [image.seed for image in batch])
