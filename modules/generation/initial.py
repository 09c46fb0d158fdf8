"""What img2img begins with: the user's pictures and mask as latents, and the way back from what was painted to the
finished picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modules.diffusion import soft_inpaint
from modules.diffusion.noise import ImageNoise, stream
from modules.families.family import Model
from modules.generation.denoise import Blend
from modules.generation.latent_upscale import upscale_latent
from modules.generation.pixels import to_tensor
from modules.generation.plan import ImagePlan
from modules.generation.request import RESIZE_MODES, GenerationRequest, Init, Mask
from modules.generation.shelf import Shelf
from modules.imaging.colours import corrected
from modules.imaging.inpainting import Inpainting, inpainting, masked_part, overlaid
from modules.imaging.masks import fit_mask, prepared_mask
from modules.imaging.resize import Upscale, lanczos, resize_image
from modules.imaging.soft_inpaint import SoftInpainting, soft_overlay
from modules.imaging.transparency import flatten
from modules.settings.schema import Settings

POSTERIOR = 0x5EED1A7E  # added to a picture's seed for what the VAE's encoder draws: never the numbers of its noise
LATENT_UPSCALE = RESIZE_MODES[3]


@dataclass(frozen=True)
class Initial:
    """The start of one batch. Tensors are on the model's device."""

    sources: tuple[Image.Image, ...]  # RGB, what the model starts from; one a picture, or one for all
    originals: tuple[Image.Image, ...]  # RGB, as the user gave them
    latent: Tensor  # (B, C, h, w)
    painting: Inpainting | None = None
    latent_mask: Tensor | None = None  # (1, 1, h, w): 1 where the picture is new
    soft: SoftInpainting | None = None
    note: str | None = None  # a sentence for the user

    @property
    def blend(self) -> Blend | None:
        """Keeps what is outside the mask, at every step."""
        mask, original, soft = self.latent_mask, self.latent, self.soft
        if mask is None:
            return None
        if soft is None:
            return lambda latents, sigma: original * (1 - mask) + latents * mask

        def softly(latents: Tensor, sigma: Tensor) -> Tensor:
            now = soft_inpaint.soft_mask(mask, sigma, soft.mask_blend_power, soft.mask_blend_scale)
            return soft_inpaint.blend(original, latents, now, soft.inpaint_detail_preservation)

        return softly

    def settled(self, latents: Tensor) -> Tensor:
        """After the last step: what is outside a hard mask is the original's."""
        if self.latent_mask is None or self.soft is not None:
            return latents
        return self.latent * (1 - self.latent_mask) + latents * self.latent_mask


@dataclass(frozen=True)
class Pictures:
    """What all batches of a request begin with: no seed and no model has touched it."""

    sources: tuple[Image.Image, ...]  # RGB, what the model starts from, one for each init image
    originals: tuple[Image.Image, ...]  # RGB, as the user gave them
    painting: Inpainting | None
    note: str | None  # a sentence for the user


def pictures_of(init: Init, size: tuple[int, int], shelf: Shelf, settings: Settings) -> Pictures:
    """Raises ValueError when a picture is gone or does not fit."""
    name = settings.upscaler_for_img2img  # for init images that are smaller than the picture
    upscale = shelf.upscaler(name, settings) if name else lanczos
    originals = [flatten(shelf.picture(id), settings.img2img_background_color) for id in init.images]
    painting, note = None, None
    if init.mask:
        painting, note = painting_of(init.mask, init, size, originals[0].size, shelf.picture, upscale)
    if painting and init.mask:
        sources = [painting.source(original, init.mask.content) for original in originals]
    elif init.resize_mode == LATENT_UPSCALE:
        sources = originals
    else:
        sources = [resize_image(init.resize_mode, original, *size, upscale) for original in originals]
    return Pictures(tuple(sources), tuple(originals), painting, note)


def prepare(
    pictures: Pictures, request: GenerationRequest, batch: Sequence[ImagePlan], model: Model, settings: Settings
) -> Initial:
    """The start of this batch: of every init image one, or all of the only one."""
    init, painting = request.init, pictures.painting
    assert init is not None
    order = [image.index % len(pictures.sources) for image in batch]
    sources = tuple(pictures.sources[i] for i in order)
    latent = encoded(model, sources, [image.seed for image in batch])
    if init.resize_mode == LATENT_UPSCALE:
        latent = upscale_latent(latent, request.width // model.latent.factor, request.height // model.latent.factor)
    soft = SoftInpainting(**init.mask.soft.model_dump()) if painting and init.mask and init.mask.soft else None
    mask = latent_mask_of(painting, init.mask, soft is not None, model) if painting and init.mask else None
    if mask is not None and init.mask:
        latent = filled(latent, mask, init.mask, batch, settings)
    return Initial(sources, tuple(pictures.originals[i] for i in order), latent, painting, mask, soft, pictures.note)


def painting_of(
    mask: Mask,
    init: Init,
    size: tuple[int, int],
    original: tuple[int, int],
    picture: Callable[[str], Image.Image],
    upscale: Upscale,
) -> tuple[Inpainting | None, str | None]:
    """None: the mask is black, and nothing of it counts; and a sentence if it had to be resized. Raises MaskError."""
    image, note = fit_mask(picture(mask.image), original)
    prepared = prepared_mask(image, rounded=mask.round, invert=mask.invert, blur_x=mask.blur_x, blur_y=mask.blur_y)
    found = inpainting(
        prepared, size, init.resize_mode, only_masked=mask.only_masked, padding=mask.padding, upscale=upscale
    )
    return found, note


def latent_mask_of(painting: Inpainting, mask: Mask, soft: bool, model: Model) -> Tensor:
    """(1, 1, h, w)."""
    cells = painting.latent_mask(model.latent.factor, rounded=mask.round and not soft)
    return torch.from_numpy(np.ascontiguousarray(cells))[None, None].to(model.device)


def encoded(model: Model, pictures: Sequence[Image.Image], seeds: Sequence[int]) -> Tensor:
    """RGB pictures of one size -> (B, C, h, w); each draws from the VAE's posterior by its own seed."""
    pixels = to_tensor(pictures)
    factor = model.latent.factor
    shape = (model.latent.channels, pixels.shape[2] // factor, pixels.shape[3] // factor)
    noise = torch.stack([stream((seed + POSTERIOR) % 2**63, "CPU")(shape) for seed in seeds])
    return model.encode_image(pixels, noise)


def filled(latent: Tensor, mask: Tensor, how: Mask, batch: Sequence[ImagePlan], settings: Settings) -> Tensor:
    """The masked part as the latent contents want it."""
    if how.content == "latent nothing":
        return latent * (1 - mask)
    if how.content == "latent noise":
        shape = (latent.shape[1], latent.shape[2], latent.shape[3])
        noise = ImageNoise(shape, [image.seed for image in batch], settings.randn_source, latent.device).first()
        return latent * (1 - mask) + noise * mask
    return latent


Beside = tuple[tuple[str, Image.Image], ...]  # what it is, and the picture


def finished(
    initial: Initial, index: int, painted: Image.Image, latents: Tensor, settings: Settings
) -> tuple[Image.Image, Beside]:
    """The picture `index` of the batch as the user gets it, colours matched and kept parts pasted over; and its mask,
    and what was painted alone, where the settings want to see or keep them. `latents`: of the batch, after the last
    step."""
    if settings.img2img_color_correction:
        painted = corrected(painted, initial.sources[index])
    painting = initial.painting
    if painting is None:
        return painted, ()
    overlay, hole = overlay_of(initial, index, latents)
    placed = painting.placed(painted, overlay.size)
    picture = overlaid(placed, overlay) if settings.overlay_inpaint else painted
    beside = []
    if settings.return_mask or settings.save_mask:
        beside.append(("mask", hole.convert("RGB")))
    if settings.return_mask_composite or settings.save_mask_composite:
        beside.append(("mask composite", masked_part(placed, hole)))
    return picture, tuple(beside)


def overlay_of(initial: Initial, index: int, latents: Tensor) -> tuple[Image.Image, Image.Image]:
    """(the original with a hole, RGBA; the hole, L)."""
    painting, original = initial.painting, initial.originals[index]
    assert painting is not None
    if initial.soft is None or initial.latent_mask is None:
        return painting.overlay(original), painting.overlay_mask
    whole = original
    if painting.region is None:
        whole = resize_image(painting.mode, original, *painting.size)
    moved = soft_inpaint.distance(initial.latent, latents)[index].cpu().numpy()
    mask = initial.latent_mask[0, 0].cpu().numpy()
    return soft_overlay(moved, mask, whole, painting.size, initial.soft, painting.region)
