"""Inpainting masks: white is painted anew, black is kept. From what a user drew to what the latent and the overlay
take."""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

from modules.imaging.blur import blur_mask
from modules.imaging.resize import Size

MaskedContent = Literal["fill", "original", "latent noise", "latent nothing"]
MASKED_CONTENTS: tuple[MaskedContent, ...] = get_args(MaskedContent)  # in A1111's numbering
Box = tuple[int, int, int, int]  # left, top, right, bottom: pixels; right and bottom lie outside

# Blurs from wide to narrow, each drawn so many times over the last: near the hole, near colours cover far ones.
FILL_BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))  # radius in pixels, times


class MaskError(ValueError):
    """A mask that does not belong to its picture."""


def mask_from(image: Image.Image, *, rounded: bool = True) -> Image.Image:
    """Mode L. A picture with transparent parts is a mask by its alpha, cut at one half if `rounded`; any other by its
    brightness, soft edges and all."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha.point([0] * 129 + [255] * 127) if rounded else alpha
    return image.convert("L")


def prepared_mask(
    image: Image.Image, *, rounded: bool = True, invert: bool = False, blur_x: float = 0, blur_y: float = 0
) -> Image.Image:
    """The user's mask in mode L, inverted and blurred; `blur_x`, `blur_y`: sigma in pixels."""
    mask = mask_from(image, rounded=rounded)
    if invert:
        mask = ImageOps.invert(mask)
    return Image.fromarray(blur_mask(np.asarray(mask), blur_x, blur_y))


def fit_mask(mask: Image.Image, picture: Size) -> tuple[Image.Image, str | None]:
    """The mask in the picture's size, and a sentence if it had another; MaskError if its proportions are others."""
    if mask.size == picture:
        return mask, None
    sizes = f"the mask is {mask.width}×{mask.height}, its picture {picture[0]}×{picture[1]}"
    if abs(mask.width * picture[1] - picture[0] * mask.height) > max(mask.size) * max(picture) / 50:
        raise MaskError(f"{sizes}; draw the mask on a picture of the same proportions")
    return mask.resize(picture, Image.Resampling.LANCZOS), f"{sizes}: the mask was resized"


def strengthened(mask: Image.Image) -> Image.Image:
    """Twice as white: what the overlay of a whole picture takes, so that a blurred rim shows mostly new pixels."""
    return mask.convert("L").point([min(2 * value, 255) for value in range(256)])


def latent_mask(mask: Image.Image, width: int, height: int, *, rounded: bool = True) -> npt.NDArray[np.float32]:
    """(height, width) latent cells, 1 where they are painted anew; 0 or 1 if `rounded`."""
    small = mask.convert("L").resize((width, height), Image.Resampling.BICUBIC)
    cells: npt.NDArray[np.float32] = np.asarray(small, dtype=np.float32) / np.float32(255)
    return cells.round() if rounded else cells


def crop_region(mask: Image.Image, padding: int = 0) -> Box | None:
    """The smallest box around all that is not black, with `padding` pixels about it; None for a black mask."""
    box = mask.convert("L").getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    return (
        max(left - padding, 0),
        max(top - padding, 0),
        min(right + padding, mask.width),
        min(bottom + padding, mask.height),
    )


def expand_region(region: Box, wanted: Size, image: Size) -> Box:
    """The box with the proportions of `wanted`, grown to both sides, moved where the picture's border is in the way,
    and cut where the picture ends."""
    left, top, right, bottom = region
    width, height = right - left, bottom - top
    if width / height > wanted[0] / wanted[1]:
        top, bottom = _grown(top, bottom, int(width / (wanted[0] / wanted[1]) - height), image[1])
    else:
        left, right = _grown(left, right, int(height * (wanted[0] / wanted[1]) - width), image[0])
    return left, top, right, bottom


def fill(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with the masked part painted over by blurs of what surrounds it."""
    hollow = punched(image, mask)
    filled = Image.new("RGBA", image.size)
    for radius, times in FILL_BLURS:
        blurred = hollow.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            filled.alpha_composite(blurred)
    return filled.convert("RGB")


def punched(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture, transparent where the mask is white: mode RGBa (colours times alpha)."""
    hollow = Image.new("RGBa", image.size)
    hollow.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    return hollow


def _grown(start: int, end: int, by: int, limit: int) -> tuple[int, int]:
    start, end = start - by // 2, end + by - by // 2
    if end >= limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)
