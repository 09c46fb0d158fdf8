"""One inpainting, picture-wise: what of the picture and the mask the model gets to see, and how its answer goes back
into the picture. Knows no latent but its size."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from modules.imaging import masks
from modules.imaging.masks import Box, MaskedContent
from modules.imaging.resize import ResizeMode, Size, Upscale, lanczos, resize_image


@dataclass(frozen=True)
class Inpainting:
    """`inpainting(…)` makes it; it serves all pictures of one size with one mask."""

    size: Size  # of what the model paints, pixels
    mode: ResizeMode
    mask: Image.Image  # L, as large as `size`
    overlay_mask: Image.Image  # L: where the finished picture is new
    region: Box | None = None  # only masked: the part of the picture that is painted
    upscale: Upscale = field(default=lanczos, compare=False)

    def source(self, image: Image.Image, content: MaskedContent = "original") -> Image.Image:
        """The RGB picture that the model starts from, as large as `size` (but with latent upscale)."""
        if self.region is not None:
            image = resize_image("Resize and fill", image.crop(self.region), *self.size, self.upscale)
        else:
            image = self._placed(image)
        if content == "original":
            return image
        return masks.fill(image, _fitted(self.mask, image.size))

    def overlay(self, image: Image.Image) -> Image.Image:
        """The original with a hole, in RGBA and in the finished picture's size."""
        whole = image if self.region is not None else resize_image(self.mode, image, *self.size, self.upscale)
        return masks.punched(whole, _fitted(self.overlay_mask, whole.size)).convert("RGBA")

    def latent_mask(self, factor: int = 8, *, rounded: bool = True) -> npt.NDArray[np.float32]:
        """(H, W) in latent cells, 1 where they are painted anew."""
        return masks.latent_mask(self.mask, self.size[0] // factor, self.size[1] // factor, rounded=rounded)

    def placed(self, painted: Image.Image, whole: Size) -> Image.Image:
        """What the model painted, where it belongs in a picture as large as `whole`: RGBA around it is nothing. Painted
        wholes stay as they are."""
        return placed(painted, self.region, whole)

    def _placed(self, image: Image.Image) -> Image.Image:
        if self.mode == "Just resize (latent upscale)":
            return image
        return resize_image(self.mode, image, *self.size, self.upscale)


def inpainting(
    mask: Image.Image,
    size: Size,
    mode: ResizeMode = "Just resize",
    *,
    only_masked: bool = False,
    padding: int = 0,
    upscale: Upscale = lanczos,
) -> Inpainting | None:
    """`mask`: prepared (blurred and all). `size`: what the model paints. `padding`: pixels around the mask that "only
    masked" shows the model too. None for "only masked" with a black mask: A1111 then does plain img2img."""
    if not only_masked:
        sized = resize_image(mode, mask, *size)
        return Inpainting(size, mode, sized, masks.strengthened(sized), None, upscale)
    region = masks.crop_region(mask, padding)
    if region is None:
        return None
    region = masks.expand_region(region, size, mask.size)
    part = resize_image("Resize and fill", mask.crop(region), *size)
    return Inpainting(size, mode, part, mask, region, upscale)


def placed(painted: Image.Image, region: Box | None, whole: Size) -> Image.Image:
    if region is None:
        return painted
    left, top, right, bottom = region
    canvas = Image.new("RGBA", whole)
    canvas.paste(resize_image("Crop and resize", painted, right - left, bottom - top), (left, top))
    return canvas


def overlaid(painted: Image.Image, overlay: Image.Image) -> Image.Image:
    """The original's kept parts over what was painted, both in the finished picture's size: RGB."""
    whole = painted.convert("RGBA")
    whole.alpha_composite(overlay)
    return whole.convert("RGB")


def masked_part(painted: Image.Image, overlay_mask: Image.Image) -> Image.Image:
    """Only what was painted, in RGBA (settings return_mask_composite, save_mask_composite)."""
    mask = resize_image("Resize and fill", overlay_mask, *painted.size).convert("L")
    return Image.composite(painted.convert("RGBA").convert("RGBa"), Image.new("RGBa", painted.size), mask).convert(
        "RGBA"
    )


def _fitted(mask: Image.Image, size: Size) -> Image.Image:
    return mask if mask.size == size else lanczos(mask, *size)
